-- What the tree has under names of one directory: one question for all of them.
-- ARGV: how many names lead to the directory from the root, those names; then the names that are asked for.
-- Reply: {DIRECTORY, ...}: the directory's inode number, then two values for each name: ENTRY, INODE (null where there is none);
--        {} where there is no such directory.
-- KEYS[1], where it is given: the cluster whose tree must stand here whole; else nothing is read or done.
if KEYS[1] and redis.call('HGET', 'ks:meta', 'whole') ~= KEYS[1] then
  return redis.error_reply('KSGONE the tree is not here')
end
local call, words = redis.call, ARGV
local above = tonumber(words[1])
local ino = '1'
for i = 2, above + 1 do
  local entry = call('HGET', 'ks:d:' .. ino, words[i])
  if not entry then
    return {}
  end
  ino = string.match(entry, '^%d+')
end

local reply = {ino}
-- As many as one call takes.
for first = above + 2, #words, 1000 do
  local last = math.min(first + 999, #words)
  local entries = call('HMGET', 'ks:d:' .. ino, unpack(words, first, last))
  local keys, places = {}, {}
  for i = 1, last - first + 1 do
    local at = #reply
    reply[at + 1] = entries[i]
    reply[at + 2] = false
    if entries[i] then
      keys[#keys + 1] = 'ks:i:' .. string.match(entries[i], '^%d+')
      places[#keys] = at + 2
    end
  end
  if #keys > 0 then
    local inodes = call('MGET', unpack(keys))
    for i = 1, #keys do
      reply[places[i]] = inodes[i]
    end
  end
end
return reply

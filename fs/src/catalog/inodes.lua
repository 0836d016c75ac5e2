-- Inodes by number, with the numbers of those that are directories.
-- ARGV: entries, "<ino> <kind>" (kind 1, a directory, where it is not known).
-- Reply: three values for each: INODE, TIME, SUBDIRECTORIES (null where there is none).
-- KEYS[1], where it is given: the cluster whose tree must stand here whole; else nothing is read or done.
if KEYS[1] and redis.call('HGET', 'ks:meta', 'whole') ~= KEYS[1] then
  return redis.error_reply('KSGONE the tree is not here')
end
local inos, keys = {}, {}
for i, entry in ipairs(ARGV) do
  inos[i] = string.match(entry, '^%d+')
  keys[i] = 'ks:i:' .. inos[i]
end
local inodes = redis.call('MGET', unpack(keys))
local reply = {}
for i, entry in ipairs(ARGV) do
  local meta = {false, false}
  if string.sub(entry, -2) == ' 1' then
    meta = redis.call('HMGET', 'ks:d:' .. inos[i], '/t', '/n')
  end
  reply[#reply + 1] = inodes[i]
  reply[#reply + 1] = meta[1]
  reply[#reply + 1] = meta[2]
end
return reply

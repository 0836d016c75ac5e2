-- Enters files that stood in a data directory before the catalog knew of them, in one directory: all whose names are free. They
-- are told as one event.
-- ARGV: DIRECTORY (its inode number), ORIGIN, NONCE, EVENT; then five words for each file: NAME, ENTRY ("<ino> <kind>"), INODE,
--       NODE and HOLDING (who holds it, and what; both empty of what nobody holds).
-- Reply: {LAST, PREVIOUS, DONE...}: the event stream's last id after and before (both empty where nothing was entered), and for each
--        file 1, or 0 where the name is taken; {} where there is no such directory.
-- KEYS[1], where it is given: the cluster whose tree must stand here whole; else nothing is read or done.
if KEYS[1] and redis.call('HGET', 'ks:meta', 'whole') ~= KEYS[1] then
  return redis.error_reply('KSGONE the tree is not here')
end
local call, words = redis.call, ARGV
local directory = 'ks:d:' .. words[1]
if call('HEXISTS', directory, '/t') == 0 then
  return {}
end
-- While nodes may still bring what their journals say of this tree: what is changed now is later than all of it.
local is_recovered = call('EXISTS', 'ks:recovered') == 1
local reply, any = {'', ''}, false
for at = 5, #words, 5 do
  local entry = words[at + 1]
  local done = call('HSETNX', directory, words[at], entry)
  reply[#reply + 1] = done
  if done == 1 then
    local ino = string.match(entry, '^%d+')
    any = true
    call('SET', 'ks:i:' .. ino, words[at + 2])
    if words[at + 3] ~= '' then
      call('HSET', 'ks:h:' .. ino, words[at + 3], words[at + 4])
    end
    if is_recovered then
      call('HSET', 'ks:recovered', ino, '~')
    end
  end
end
if any then
  local before = call('XREVRANGE', 'ks:events', '+', '-', 'COUNT', 1)
  local previous = before[1] and before[1][1] or '0-0'
  local origin, nonce, event = words[2], words[3], words[4]
  local last = call('XADD', 'ks:events', 'MAXLEN', '~', 1000000, '*', 'o', origin, 'k', nonce, 'e', event)
  call('PUBLISH', 'ks:changes', table.concat({last, previous, origin, nonce, directory, event}, ' '))
  reply[1], reply[2] = last, previous
end
return reply

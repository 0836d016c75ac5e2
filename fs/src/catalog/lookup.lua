-- One name of a directory, with its inode: one round trip.
-- ARGV: the directory's inode number, the name.
-- Reply: {} where there is no such name; else {ENTRY, INODE, TIME, SUBDIRECTORIES}, the last two of a directory.
-- KEYS[1], where it is given: the cluster whose tree must stand here whole; else nothing is read or done.
if KEYS[1] and redis.call('HGET', 'ks:meta', 'whole') ~= KEYS[1] then
  return redis.error_reply('KSGONE the tree is not here')
end
local entry = redis.call('HGET', 'ks:d:' .. ARGV[1], ARGV[2])
if not entry then
  return {}
end
local ino, kind = string.match(entry, '^(%d+) (%d+)$')
local meta = {false, false}
if kind == '1' then
  meta = redis.call('HMGET', 'ks:d:' .. ino, '/t', '/n')
end
return {entry, redis.call('GET', 'ks:i:' .. ino), meta[1], meta[2]}

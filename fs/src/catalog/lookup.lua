-- One name of a directory, with its inode: one round trip.
-- ARGV: the directory's inode number, the name.
-- Reply: {} where there is no such name; else {ENTRY, INODE, TIME, SUBDIRECTORIES}, the last two of a directory.
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

-- An inode and who holds copies of it, as they stood at one moment.
-- ARGV: the inode number.
-- Reply: {INODE, TIME, SUBDIRECTORIES, HOLDINGS}: INODE null where there is none; HOLDINGS node, holding, ...
-- KEYS[1], where it is given: the cluster whose tree must stand here whole; else nothing is read or done.
if KEYS[1] and redis.call('HGET', 'ks:meta', 'whole') ~= KEYS[1] then
  return redis.error_reply('KSGONE the tree is not here')
end
local meta = redis.call('HMGET', 'ks:d:' .. ARGV[1], '/t', '/n')
return {redis.call('GET', 'ks:i:' .. ARGV[1]), meta[1], meta[2], redis.call('HGETALL', 'ks:h:' .. ARGV[1])}

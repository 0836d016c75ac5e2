-- An inode and who holds copies of it, as they stood at one moment.
-- ARGV: the inode number.
-- Reply: {INODE, TIME, SUBDIRECTORIES, HOLDINGS}: INODE null where there is none; HOLDINGS node, holding, ...
local meta = redis.call('HMGET', 'ks:d:' .. ARGV[1], '/t', '/n')
return {redis.call('GET', 'ks:i:' .. ARGV[1]), meta[1], meta[2], redis.call('HGETALL', 'ks:h:' .. ARGV[1])}

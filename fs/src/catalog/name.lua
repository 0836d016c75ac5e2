-- Begins or ends the giving of names in a catalog that is being rebuilt.
-- ARGV: CLUSTER, ACT ("begin": the names that stood before are cleared away by now; or "end"), LAST (the latest event that any journal knows, "ms-seq"; at the end), EVENT (one that means nothing).
-- Reply: 1; 0 when this is not that catalog, or it is whole.
local call = redis.call
local meta = call('HMGET', 'ks:meta', 'cluster', 'whole')
if meta[1] ~= ARGV[1] or meta[2] then
  return 0
end
if ARGV[2] == 'begin' then
  call('HSET', 'ks:meta', 'naming', '1')
  call('HSET', 'ks:d:1', '/t', call('HGET', 'ks:times', '1') or ARGV[3])
  call('HSETNX', 'ks:d:1', '/n', '0')
  return 1
end
-- What happens from now on is later than all that happened before the loss, whatever the clock says.
if ARGV[3] ~= '0-0' then
  pcall(call, 'XADD', 'ks:events', ARGV[3], 'o', '0000000000000000', 'k', '0', 'e', ARGV[4])
end
call('HSET', 'ks:meta', 'whole', ARGV[1], 'floor', call('HGET', 'ks:meta', 'next_ino'))
call('HDEL', 'ks:meta', 'naming', 'uncleared')
call('UNLINK', 'ks:merging', 'ks:lead', 'ks:times')
return 1

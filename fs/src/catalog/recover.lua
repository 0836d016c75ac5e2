-- Declares the tree lost, so that it is rebuilt from the nodes' journals.
-- ARGV: CLUSTER, RECOVERY (a random name for this rebuilding).
-- Reply: 1; 0 when that tree does not stand here whole.
local call = redis.call
if call('HGET', 'ks:meta', 'whole') ~= ARGV[1] then
  return 0
end
local time = call('TIME')
call('HDEL', 'ks:meta', 'whole', 'floor', 'naming')
call('HSET', 'ks:meta', 'recovery', ARGV[2], 'uncleared', '1', 'began', string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000)))
call('UNLINK', 'ks:recovered', 'ks:merged', 'ks:merging', 'ks:times', 'ks:reports', 'ks:undead')
return 1

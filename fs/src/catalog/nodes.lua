-- All nodes, with what their heart-beats said last.
-- Reply: three values for each: NODE, INFO, BEAT (null when it is gone).
local all = redis.call('HGETALL', 'ks:nodes')
local reply = {}
for i = 1, #all, 2 do
  local at = #reply
  reply[at + 1] = all[i]
  reply[at + 2] = all[i + 1]
  reply[at + 3] = redis.call('GET', 'ks:alive:' .. all[i])
end
return reply

-- A node has brought values to itself. ARGV: node, until (ms), then id, hash of each. Returns how many are kept still.
local count = 0
for at = 3, #ARGV, 2 do
  local id, key = ARGV[at], 'ks:k:' .. ARGV[at]
  if redis.call('HGET', key, 'h') == ARGV[at + 1] then
    redis.call('HSET', key, '@' .. ARGV[1], '1')
    redis.call('ZADD', 'ks:kn:' .. ARGV[1], ARGV[2], id)
    count = count + 1
  end
end
return count

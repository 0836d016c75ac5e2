-- A node does not have values any more. ARGV: node, its name, how long (ms) it is remembered who had what nobody has, then ids.
-- Returns how many nobody has now.
local lost = 0
for at = 4, #ARGV do
  local id, key = ARGV[at], 'ks:k:' .. ARGV[at]
  redis.call('ZREM', 'ks:kn:' .. ARGV[1], id)
  if redis.call('HDEL', key, '@' .. ARGV[1]) == 1 then
    local held = false
    for _, field in ipairs(redis.call('HKEYS', key)) do
      held = held or string.sub(field, 1, 1) == '@'
    end
    if not held then
      local group = redis.call('HGET', key, 'g')
      if group ~= '' then
        redis.call('SREM', 'ks:kg:' .. group, id)
      end
      redis.call('HSET', key, 'x', ARGV[2])
      redis.call('PEXPIRE', key, ARGV[3])
      lost = lost + 1
    end
  end
end
return lost

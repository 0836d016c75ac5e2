-- Values are not needed any more: their holders are told. ARGV: ids. Returns how many there were.
local count = 0
for at = 1, #ARGV do
  local id, key = ARGV[at], 'ks:k:' .. ARGV[at]
  local hash = redis.call('HGET', key, 'h')
  if hash then
    local fields = redis.call('HKEYS', key)
    for _, field in ipairs(fields) do
      local holder = string.match(field, '^@(%x+)$')
      if holder then
        redis.call('PUBLISH', 'ks:wake:' .. holder, 'k' .. hash)
        redis.call('ZREM', 'ks:kn:' .. holder, id)
      end
    end
    local group = redis.call('HGET', key, 'g')
    if group ~= '' then
      redis.call('SREM', 'ks:kg:' .. group, id)
    end
    redis.call('DEL', key)
    count = count + 1
  end
end
return count

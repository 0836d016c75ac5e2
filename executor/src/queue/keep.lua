-- Values are kept on a node. ARGV: node, until (ms or 'inf'), then id, hash, size, group, name of each.
-- A value that stood under the same id before goes: its holders are told.
--
-- ks:k:<id>  hash: h hash (hex), s size, g group, n name, @<node> for each holder, x who had it last (once nobody has it)
-- ks:kn:<node>  zset of the ids that a node holds, by until when; ks:kg:<group>  set of ids
local node, till = ARGV[1], ARGV[2]
for at = 3, #ARGV, 5 do
  local id, hash, size, group, name = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local key = 'ks:k:' .. id
  local before = redis.call('HGETALL', key)
  local old = redis.call('HGET', key, 'h')
  if old and old ~= hash then
    for field = 1, #before, 2 do
      local holder = string.match(before[field], '^@(%x+)$')
      if holder then
        redis.call('PUBLISH', 'ks:wake:' .. holder, 'k' .. old)
        redis.call('ZREM', 'ks:kn:' .. holder, id)
      end
    end
    redis.call('DEL', key)
  end
  redis.call('HSET', key, 'h', hash, 's', size, 'g', group, 'n', name, '@' .. node, '1')
  redis.call('HDEL', key, 'x')
  redis.call('PERSIST', key)
  redis.call('ZADD', 'ks:kn:' .. node, till == 'inf' and '+inf' or till, id)
  if group ~= '' then
    redis.call('SADD', 'ks:kg:' .. group, id)
  end
end
return #ARGV

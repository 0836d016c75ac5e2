-- Notes that an owner waits for another one, unless that one waits for it in the end.
-- ARGV: the owner; whom it waits for; the note's life, ms.
-- Reply: 1 when they would wait for each other for ever (nothing is noted); else 0.
local at = ARGV[2]
for step = 1, 16 do
  if at == ARGV[1] then
    return 1
  end
  at = redis.call('GET', 'ks:kw:' .. at)
  if not at then
    break
  end
end
redis.call('SET', 'ks:kw:' .. ARGV[1], ARGV[2], 'PX', ARGV[3])
return 0

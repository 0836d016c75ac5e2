-- Commands on a tree that is being rebuilt: whoever was held up for so long that another has finished it does no harm.
-- ARGV: CLUSTER, then each command: how many words, the words.
-- Reply: 1; 0 when this is not that catalog, or it is whole.
local words = ARGV
local meta = redis.call('HMGET', 'ks:meta', 'cluster', 'whole')
if meta[1] ~= words[1] or meta[2] then
  return 0
end
local at = 2
while at <= #words do
  local count = tonumber(words[at])
  redis.call(unpack(words, at + 1, at + count))
  at = at + count + 1
end
return 1

-- From now on this node is told of these jobs. ARGV: node, then ids
-- Returns for each: {'ended', the end (encoded)}, {'going'} or {'unknown'}
local answers = {}
for at = 2, #ARGV do
  local key = 'ks:j:' .. ARGV[at]
  local job = redis.call('HMGET', key, 's', 't', 'e')
  if job[1] == 'e' then
    answers[#answers + 1] = { 'ended', job[3] }
  elseif job[1] then
    redis.call('HSET', key, 'o', ARGV[1])
    if job[1] == 'c' then
      redis.call('PUBLISH', 'ks:wake:' .. string.match(job[2], '^%x+'), 'o' .. ARGV[1] .. ARGV[at])
    end
    answers[#answers + 1] = { 'going' }
  else
    answers[#answers + 1] = { 'unknown' }
  end
end
return answers

-- Cancels jobs: one that waits is claimed by the caller, who then ends it; one that runs: its node is told.
-- ARGV: node, incarnation, lease ms, then ids
-- Returns for each: 'taken' (the caller ends it), 'told', 'over' or 'unknown'
local token = ARGV[1] .. ':' .. ARGV[2]
local answers = {}
lease(ARGV[1], ARGV[2], ARGV[3])
for at = 4, #ARGV do
  local id = ARGV[at]
  local job = redis.call('HMGET', 'ks:j:' .. id, 's', 'q', 'l', 't')
  if job[1] == 'q' then
    unqueue(id, job[2], job[3])
    claim(id, token)
    answers[#answers + 1] = 'taken'
  elseif job[1] == 'c' then
    redis.call('PUBLISH', 'ks:wake:' .. string.match(job[4], '^%x+'), 'c' .. id)
    answers[#answers + 1] = 'told'
  elseif job[1] == 'e' then
    answers[#answers + 1] = 'over'
  else
    answers[#answers + 1] = 'unknown'
  end
end
return answers

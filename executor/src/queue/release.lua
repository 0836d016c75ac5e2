-- Gives claimed jobs that have not begun back to their queues (no retry is spent).
-- ARGV: node, incarnation, then for each job: id, its new places ('*': as they were)
-- Returns how many were given back
local token = ARGV[1] .. ':' .. ARGV[2]
local now = clock_ms()
local released, wake, queues = 0, {}, {}
for at = 3, #ARGV, 2 do
  local id, places = ARGV[at], ARGV[at + 1]
  local key = 'ks:j:' .. id
  local job = redis.call('HMGET', key, 's', 't', 'q', 'p', 'l')
  redis.call('SREM', 'ks:c:' .. token, id)
  if job[1] == 'c' and job[2] == token then
    if places == '*' then
      places = job[5]
    end
    redis.call('HSET', key, 's', 'q', 'l', places)
    redis.call('HDEL', key, 't')
    enqueue(id, job[3], job[4], places, now, 0, wake, queues)
    released = released + 1
  end
end
announce(wake, queues)
return released

-- Records a batch of jobs and enqueues them; up to `want` of those that may run here at once are claimed for this node right away.
-- ARGV: node, incarnation, lease ms, want, slots, result keep ms, function keep seconds, most jobs that may go on, most bytes of their
--       bodies, percent more of both for jobs that jobs make, number of functions,
--       then for each (hash, code), then for each job: id, body, queue, priority, retries, places, here (1: may be claimed here now),
--       the job that makes it, or ''
-- Returns {now ms, {claimed ids}, {ids that were there already}, '' or what is full: 'jobs' or 'bodies'; then nothing was recorded}
local node, incarnation, lease_ms = ARGV[1], ARGV[2], ARGV[3]
local want = tonumber(ARGV[4])
local token = node .. ':' .. incarnation
local now = clock_ms()
local functions = tonumber(ARGV[11])
local first = 12 + 2 * functions

-- Whether the jobs that are new would go beyond a limit.
local function full()
  local count, bytes, percent = 0, 0, 100
  for at = first, #ARGV, 8 do
    count = count + 1
    bytes = bytes + counted(ARGV[at + 1])
    if ARGV[at + 7] ~= '' then
      percent = 100 + tonumber(ARGV[10])
    end
  end
  local going_max, bytes_max = tonumber(ARGV[8]) * percent / 100, tonumber(ARGV[9]) * percent / 100
  local going = redis.call('ZCARD', 'ks:jobs')
  local taken = bytes > 0 and tonumber(redis.call('GET', 'ks:bodies') or 0) or 0
  if going + count <= going_max and (bytes == 0 or taken + bytes <= bytes_max) then
    return ''
  end
  -- What is sent again is there already, and takes nothing.
  for at = first, #ARGV, 8 do
    if redis.call('EXISTS', 'ks:j:' .. ARGV[at]) == 1 then
      count = count - 1
      bytes = bytes - counted(ARGV[at + 1])
    end
  end
  if count > 0 and going + count > going_max then
    return 'jobs'
  end
  return bytes > 0 and taken + bytes > bytes_max and 'bodies' or ''
end

local what = full()
if what ~= '' then
  return { now, {}, {}, what }
end
local at, bodies = 12, 0
for _ = 1, functions do
  redis.call('SET', 'ks:f:' .. ARGV[at], ARGV[at + 1], 'EX', ARGV[7])
  at = at + 2
end
local count = (#ARGV - at + 1) / 8
local claimed, known, going, wake, queues = {}, {}, {}, {}, {}
if want > 0 then
  hold(node, incarnation, lease_ms)
end
for i = 0, count - 1 do
  local id, body, queue, priority, retries, places, here, outer = unpack(ARGV, at, at + 7)
  at = at + 8
  local key = 'ks:j:' .. id
  if redis.call('EXISTS', key) == 1 then
    known[#known + 1] = id
  else
    bodies = bodies + counted(body)
    going[#going + 1] = now
    going[#going + 1] = id
    if outer ~= '' then
      redis.call('SADD', 'ks:n:' .. outer, id)
      redis.call('PEXPIRE', 'ks:n:' .. outer, ARGV[6])
    end
    if here == '1' and #claimed < want then
      redis.call('HSET', key, 's', 'c', 't', token, 'b', body, 'q', queue, 'p', priority, 'r', retries, 'l', places, 'o', node, 'a', now)
      claimed[#claimed + 1] = id
    else
      redis.call('HSET', key, 's', 'q', 'b', body, 'q', queue, 'p', priority, 'r', retries, 'l', places, 'o', node, 'a', now)
      enqueue(id, queue, priority, places, now, math.floor(i * 256 / count), wake, queues)
    end
  end
end
if bodies > 0 then
  redis.call('INCRBY', 'ks:bodies', bodies)
end
if #going > 0 then
  redis.call('ZADD', 'ks:jobs', unpack(going))
end
if #claimed > 0 then
  if #claimed < count then
    work(node, incarnation, ARGV[5], now)
  end
  redis.call('SADD', 'ks:c:' .. token, unpack(claimed))
end
announce(wake, queues)
return { now, claimed, known, '' }

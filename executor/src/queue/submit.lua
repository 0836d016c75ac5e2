-- Records a batch of jobs and enqueues them; up to `want` of those that may run here at once are claimed for this node right away.
-- ARGV: node, incarnation, lease ms, want, slots, result keep ms, function keep seconds, number of functions,
--       then for each (hash, code), then for each job: id, body, queue, priority, retries, places, here (1: may be claimed here now),
--       the job that makes it, or ''
-- Returns {now ms, {claimed ids}, {ids that were there already}}
local node, incarnation, lease_ms = ARGV[1], ARGV[2], ARGV[3]
local want = tonumber(ARGV[4])
local token = node .. ':' .. incarnation
local now = clock_ms()
local at = 9
for _ = 1, tonumber(ARGV[8]) do
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
return { now, claimed, known }

-- Closes the records of jobs that this node has claimed; a job that is not (any more) its own is refused: so a job ends exactly once.
-- ARGV: node, incarnation, keep ms, most records kept of ends that were told, and of others, most bytes of
--       the ends of each,
--       then for each job: id, kind, the end (encoded), retry (1: run again while retries are left), notify (1: tell its origin)
-- Returns {bytes that the ends take of those that were told or of the others, whichever is more, for each: 'ended', 'again' or 'refused'}
local token = ARGV[1] .. ':' .. ARGV[2]
local now = clock_ms()
local answers, mine, wake, queues = {}, {}, {}, {}
local without_inner, bodies = {}, 0
local closed, finished, kept_bytes = { ['0'] = {}, ['1'] = {} }, {}, 0
for at = 7, #ARGV, 5 do
  local id, kind, ended, retry, notify = unpack(ARGV, at, at + 4)
  local key = 'ks:j:' .. id
  local job = redis.call('HMGET', key, 's', 't', 'r', 'o')
  if job[1] ~= 'c' or job[2] ~= token then
    answers[#answers + 1] = 'refused'
  elseif retry == '1' and tonumber(job[3]) > 0 then
    local more = redis.call('HMGET', key, 'q', 'p', 'l')
    redis.call('HSET', key, 's', 'q', 'r', tonumber(job[3]) - 1, 't', '')
    enqueue(id, more[1], more[2], more[3], now, 0, wake, queues)
    mine[#mine + 1] = id
    answers[#answers + 1] = 'again'
  else
    local body = redis.call('HSTRLEN', key, 'b')
    bodies = bodies + (body > SMALL_BYTES and body or 0)
    redis.call('HSET', key, 's', 'e', 'k', kind, 'e', ended, 'b', '', 't', '')
    redis.call('PEXPIRE', key, ARGV[3])
    mine[#mine + 1] = id
    local bytes = counted(ended)
    table.insert(closed[notify], bytes > 0 and id .. ':' .. bytes or id)
    finished[#finished + 1] = id
    if kind == 'done' then
      without_inner[#without_inner + 1] = 'ks:n:' .. id
    end
    if notify == '1' then
      redis.call('PUBLISH', 'ks:wake:' .. job[4], 'e' .. id)
    end
    answers[#answers + 1] = 'ended'
  end
end
if #mine > 0 then
  redis.call('SREM', 'ks:c:' .. token, unpack(mine))
end
if #without_inner > 0 then
  redis.call('UNLINK', unpack(without_inner))
end
if #finished > 0 then
  redis.call('ZREM', 'ks:jobs', unpack(finished))
  uncount_bodies(bodies)
end
for notify, entries in pairs(closed) do
  if #entries > 0 then
    local list, most = 'ks:ended', ARGV[4]
    if notify == '1' then
      list, most = 'ks:ended:untold', ARGV[5]
    end
    kept_bytes = math.max(kept_bytes, forget(list, entries, tonumber(most), tonumber(ARGV[6])))
  end
end
announce(wake, queues)
return { kept_bytes, answers }

-- Shared by the job scripts: it stands before each of them. All changes to a job are made by these scripts, so each is atomic.
--
-- ks:j:<job>  hash: s state (q queued, c claimed, e ended), b body (encoded), q queue, p priority, r retries left, l places,
--             o origin node (who is told), t claim token (<node>:<incarnation>), a accepted at (ms), k how it ended, e the end (encoded)
-- ks:q:<queue>, ks:q:<queue>:<node>  zset of jobs that may run now, in the order of `rank`
-- ks:w:<queue>:<node>  zset of jobs whose data that node lacks, in the same order
-- ks:n:<job>  set of jobs that this job makes: cancelled when it is stopped or lost
-- ks:pace  hash: node, how it works: "<calls at once> <when it took some last, ms> <incarnation>"
-- ks:took  hash: function, how long its calls take, ms: "<but for a worker's first; 0: not known> <the longest of late>"
-- ks:busy  hash: node, until when (ms) it is thought to send data to nodes that took jobs of others
-- ks:d:<data>  zset of nodes that fetch such data for jobs of others, by when (ms) they are thought to have it
-- ks:nq:<node>  set of the queues that ever had jobs for that node alone
-- ks:c:<token>  set of jobs claimed under it; ks:claimants  set of tokens; ks:lease:<node>  its incarnation, while it lives
-- ks:renewed  hash: key that expires and is renewed, when and how it was last (the Redis client's `absence.lua`)
-- ks:ended, ks:ended:untold  lists of jobs whose records are kept although they have ended, the oldest first; "<job>:<bytes>" where its
--             end counts; ks:ended:bytes, ks:ended:untold:bytes  the sums of these
-- ks:jobs  zset of jobs that have not ended, by when they were accepted
-- ks:bodies  bytes of their bodies, as far as they count
local EPOCH_MS = 1767225600000
local PRIORITY_SPAN = 2 ^ 47
-- `queue/limits.rs`, SMALL_BYTES
local SMALL_BYTES = 1024

-- What a body or an end adds to what they take of Redis: the number of records bounds the small ones.
local function counted(text)
  return #text > SMALL_BYTES and #text or 0
end

local function clock_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- Higher priority first, then who became eligible first, then the order of submission (`index` 0 to 255). Exact in a double.
local function rank(priority, at_ms, index)
  return -tonumber(priority) * PRIORITY_SPAN + (at_ms - EPOCH_MS) * 256 + index
end

-- Says how a node works that has just taken jobs.
local function work(node, incarnation, slots, now)
  redis.call('HSET', 'ks:pace', node, string.format('%d %d %s', slots, now, incarnation))
end

-- Puts a job into its queues; notes in `wake` who has to be told, and in `queues` which node has which queue.
local function enqueue(job, queue, priority, places, now, index, wake, queues)
  if places == '' then
    redis.call('ZADD', 'ks:q:' .. queue, rank(priority, now, index), job)
    wake['ks:wake'] = true
    return
  end
  for node, delay in string.gmatch(places, '(%x+)=(%d+)') do
    if delay == '0' then
      redis.call('ZADD', 'ks:q:' .. queue .. ':' .. node, rank(priority, now, index), job)
    else
      redis.call('ZADD', 'ks:w:' .. queue .. ':' .. node, rank(priority, now, index), job)
    end
    wake['ks:wake:' .. node] = true
    queues[node .. queue] = { node, queue }
  end
end

-- Takes a job out of all its queues.
local function unqueue(job, queue, places)
  if places == '' then
    redis.call('ZREM', 'ks:q:' .. queue, job)
    return
  end
  for node, delay in string.gmatch(places, '(%x+)=(%d+)') do
    redis.call('ZREM', (delay == '0' and 'ks:q:' or 'ks:w:') .. queue .. ':' .. node, job)
  end
end

-- Says that there is something to claim, once to each.
local function announce(wake, queues)
  for _, pair in pairs(queues) do
    redis.call('SADD', 'ks:nq:' .. pair[1], pair[2])
    -- Incarnation 0 has no lease: so the next `reap` looks whether that node lives.
    redis.call('SADD', 'ks:claimants', pair[1] .. ':0')
  end
  for channel in pairs(wake) do
    redis.call('PUBLISH', channel, 'q')
  end
end

-- Notes that `token` has claimed the job.
local function claim(job, token)
  redis.call('HSET', 'ks:j:' .. job, 's', 'c', 't', token)
  redis.call('SADD', 'ks:c:' .. token, job)
end

-- The node lives: whatever it claims is its own until the lease ends.
local function lease(node, incarnation, lease_ms)
  redis.call('SET', 'ks:lease:' .. node, incarnation, 'PX', lease_ms)
  redis.call('SADD', 'ks:claimants', node .. ':' .. incarnation)
end

-- The same where its lease may run already: what is only read costs no write to the append-only file.
local function hold(node, incarnation, lease_ms)
  if redis.call('GET', 'ks:lease:' .. node) ~= incarnation then
    lease(node, incarnation, lease_ms)
  end
end

-- The body of a job that ends goes; it has just been cleared where `bytes` is what it had.
local function uncount_bodies(bytes)
  if bytes > 0 and redis.call('DECRBY', 'ks:bodies', bytes) < 0 then
    redis.call('SET', 'ks:bodies', 0)
  end
end

-- Notes that these jobs have ended ("<job>", or "<job>:<bytes>"); the oldest records beyond `most` of them, or beyond `most_bytes`, go
-- before their time. (Those that have expired are the oldest.) Returns the bytes that are left.
local function forget(list, ended, most, most_bytes)
  local function size(entry)
    return tonumber(string.match(entry, ':(%d+)$') or 0)
  end
  local count, bytes = redis.call('RPUSH', list, unpack(ended)), tonumber(redis.call('GET', list .. ':bytes') or 0)
  local before = bytes
  for _, entry in ipairs(ended) do
    bytes = bytes + size(entry)
  end
  local oldest, left = {}, 2 * #ended + 16
  while left > 0 and (count > most or bytes > most_bytes) do
    local entry = redis.call('LPOP', list)
    if not entry then
      bytes = 0
      break
    end
    oldest[#oldest + 1] = 'ks:j:' .. string.match(entry, '^%x+')
    count, bytes, left = count - 1, bytes - size(entry), left - 1
  end
  if #oldest > 0 then
    redis.call('UNLINK', unpack(oldest))
  end
  if bytes ~= before then
    redis.call('SET', list .. ':bytes', bytes)
  end
  return bytes
end

-- A node with free slots takes up to `want` jobs: first those that may run there at once, highest priority first, then as they came; with
-- slots left jobs whose data it lacks, where those who have the data would take longer to come to them than the fetch takes.
-- `queue/model.rs` says the same in Rust, and why; a test holds one to the other.
-- ARGV: node, incarnation, lease ms, want, how many of them may be such whose data it lacks, slots, of how many functions it says how long
--       their calls take, for each of them: function, call ms, longest ms; then the queues it serves
-- Returns {now ms, when to look again (ms; 0: more may run now; -1: nothing waits), {id, body, retries, accepted at, origin}...}
local node, incarnation, lease_ms = ARGV[1], ARGV[2], ARGV[3]
local want = tonumber(ARGV[4])
local token = node .. ':' .. incarnation
local now = clock_ms()
local LOOKED_AT_MAX, MARGIN_MS, WAKE_MS, LOOK_AGAIN_MS, COPIES_KEPT_S = 32, 1000, 50, 50, 600
local FUNCTIONS_MAX, FADES = 4096, 16
hold(node, incarnation, lease_ms)

-- How long a function's calls take.
local function took(fn)
  local call_ms, longest_ms = string.match(redis.call('HGET', 'ks:took', fn) or '', '^(%d+) (%d+)$')
  return tonumber(call_ms or 0), tonumber(longest_ms or 0)
end

local first_queue = 8 + 3 * tonumber(ARGV[7])
for i = 8, first_queue - 1, 3 do
  local call_ms, longest_ms = took(ARGV[i])
  if redis.call('HLEN', 'ks:took') >= FUNCTIONS_MAX then
    redis.call('DEL', 'ks:took')
  end
  if tonumber(ARGV[i + 1]) > 0 then
    call_ms = tonumber(ARGV[i + 1])
  end
  longest_ms = math.max(tonumber(ARGV[i + 2]), longest_ms - math.floor(longest_ms / FADES))
  redis.call('HSET', 'ks:took', ARGV[i], string.format('%d %d', call_ms, longest_ms))
end

local ready = {}
for i = first_queue, #ARGV do
  ready[#ready + 1] = 'ks:q:' .. ARGV[i]
  ready[#ready + 1] = 'ks:q:' .. ARGV[i] .. ':' .. node
end

local taken, mine = {}, {}
local function take(id, job)
  if job[4] ~= '' then
    unqueue(id, job[3], job[4])
  end
  redis.call('HSET', 'ks:j:' .. id, 's', 'c', 't', token)
  mine[#mine + 1] = id
  taken[#taken + 1] = { id, job[2], job[5], job[6], job[7] }
end

while #taken < want do
  local candidates = {}
  for _, key in ipairs(ready) do
    local found = redis.call('ZRANGE', key, 0, want - #taken - 1, 'WITHSCORES')
    for f = 1, #found, 2 do
      candidates[#candidates + 1] = { tonumber(found[f + 1]), found[f], key }
    end
  end
  if #candidates == 0 then
    break
  end
  table.sort(candidates, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
  local gone = {}
  for c = 1, math.min(#candidates, want - #taken) do
    local id, key = candidates[c][2], candidates[c][3]
    local job = redis.call('HMGET', 'ks:j:' .. id, 's', 'b', 'q', 'l', 'r', 'a', 'o')
    gone[key] = gone[key] or {}
    table.insert(gone[key], id)
    if job[1] == 'q' then
      take(id, job)
    end
  end
  for key, ids in pairs(gone) do
    redis.call('ZREM', key, unpack(ids))
  end
end

-- How many calls run at once at a node, when it took some last, how many run.
local function pace(other, since)
  local known = redis.call('HGET', 'ks:pace', other)
  local slots, claimed, its = string.match(known or '', '^(%d+) (%d+) (%x+)$')
  if not slots then
    return 1, tonumber(since), 0
  end
  local running = redis.call('SCARD', 'ks:c:' .. other .. ':' .. its)
  return math.max(tonumber(slots), 1), math.max(tonumber(claimed), tonumber(since)), running
end

-- From which node a job's data would be fetched, and when its turn comes there.
local function source(first_choices, data)
  local best, turn
  local function consider(other)
    local busy = math.max(now, tonumber(redis.call('HGET', 'ks:busy', other) or now))
    if not best or busy < turn or (busy == turn and other < best) then
      best, turn = other, busy
    end
  end
  for _, other in ipairs(first_choices) do
    consider(other)
  end
  for _, other in ipairs(data and redis.call('ZRANGEBYSCORE', 'ks:d:' .. data, '-inf', now, 'LIMIT', 0, 16) or {}) do
    consider(other)
  end
  return best, turn or now
end

-- From when on this node may take a job whose data it lacks, and the fetch that it would be: source and end.
local function from_when(job)
  local places = job[4]
  local first_choices, lack = {}, 0
  for other, delay in string.gmatch(places, '(%x+)=(%d+)') do
    if delay == '0' then
      first_choices[#first_choices + 1] = other
    elseif other == node then
      lack = tonumber(delay)
    end
  end
  local data, fn = string.match(places, ';(%x+);(%x+)$')
  local wanted, from, there = 1, nil, nil
  if not (data and redis.call('ZSCORE', 'ks:d:' .. data, node)) then
    local turn
    from, turn = source(first_choices, data)
    if turn - now > lack then
      return turn - lack
    end
    there = turn + lack
    wanted = there - now + MARGIN_MS
  end
  local at = math.max(now, tonumber(job[6]) + WAKE_MS)
  local call_ms, longest_ms = took(fn or '')
  if call_ms == 0 then
    call_ms = longest_ms
  end
  for _, other in ipairs(first_choices) do
    local backlog = redis.call('ZCARD', 'ks:q:' .. job[3] .. ':' .. other)
    local slots, claimed, running = pace(other, job[6])
    local stands_from = claimed + 2 * longest_ms
    local ahead = math.max(backlog - math.max(slots - running, 0), 0)
    local wait = math.floor(math.max(ahead * call_ms, backlog * math.max(now - stands_from, 0)) / slots)
    if wait < wanted then
      at = math.max(at, stands_from + math.ceil(wanted * slots / math.max(backlog, 1)))
    end
  end
  return at, from, there, data
end

local next_ms = -1
local most = #taken + math.min(tonumber(ARGV[5]), want - #taken)
local function look(lacking)
  for _, id in ipairs(redis.call('ZRANGE', lacking, 0, LOOKED_AT_MAX - 1)) do
    local job = redis.call('HMGET', 'ks:j:' .. id, 's', 'b', 'q', 'l', 'r', 'a', 'o')
    if job[1] ~= 'q' then
      redis.call('ZREM', lacking, id)
    elseif #taken == most then
      next_ms = now + LOOK_AGAIN_MS
      return
    else
      local at, from, there, data = from_when(job)
      if at > now then
        at = math.max(at, now + LOOK_AGAIN_MS)
        next_ms = next_ms == -1 and at or math.min(next_ms, at)
      else
        if from and data then
          redis.call('HSET', 'ks:busy', from, there)
          redis.call('ZADD', 'ks:d:' .. data, there, node)
          redis.call('EXPIRE', 'ks:d:' .. data, COPIES_KEPT_S)
        end
        take(id, job)
        redis.call('ZREM', lacking, id)
      end
    end
  end
end
for i = first_queue, #ARGV do
  look('ks:w:' .. ARGV[i] .. ':' .. node)
end
if #mine > 0 then
  redis.call('SADD', 'ks:c:' .. token, unpack(mine))
  work(node, incarnation, ARGV[6], now)
end

for _, key in ipairs(ready) do
  if redis.call('EXISTS', key) == 1 then
    next_ms = 0
    break
  end
end
return { now, next_ms, taken }

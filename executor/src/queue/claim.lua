-- A node with free slots takes up to `want` jobs that may run there now: highest priority first, then longest eligible.
-- ARGV: node, incarnation, lease ms, want, then the queues it serves
-- Returns {now ms, when the next becomes eligible (ms; 0: more may run now; -1: none waits), {id, body, retries, accepted at, origin}...}
local node, incarnation, lease_ms = ARGV[1], ARGV[2], ARGV[3]
local want = tonumber(ARGV[4])
local token = node .. ':' .. incarnation
local now = clock_ms()
local PROMOTED_MAX = 1000
hold(node, incarnation, lease_ms)

-- Those whose time has come are moved to where they are ranked.
local ready, next_ms = {}, -1
for i = 5, #ARGV do
  local mine = 'ks:q:' .. ARGV[i] .. ':' .. node
  local waiting = 'ks:w:' .. ARGV[i] .. ':' .. node
  ready[#ready + 1] = 'ks:q:' .. ARGV[i]
  ready[#ready + 1] = mine
  local due = redis.call('ZRANGEBYSCORE', waiting, '-inf', now, 'WITHSCORES', 'LIMIT', 0, PROMOTED_MAX)
  for d = 1, #due, 2 do
    local priority = redis.call('HGET', 'ks:j:' .. due[d], 'p')
    if priority then
      redis.call('ZADD', mine, rank(priority, tonumber(due[d + 1]), 0), due[d])
    end
    redis.call('ZREM', waiting, due[d])
  end
  local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
  if first[2] and (next_ms == -1 or math.ceil(tonumber(first[2])) < next_ms) then
    next_ms = math.ceil(tonumber(first[2]))
  end
end

local taken, mine = {}, {}
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
      if job[4] ~= '' then
        unqueue(id, job[3], job[4])
      end
      redis.call('HSET', 'ks:j:' .. id, 's', 'c', 't', token)
      mine[#mine + 1] = id
      taken[#taken + 1] = { id, job[2], job[5], job[6], job[7] }
    end
  end
  for key, ids in pairs(gone) do
    redis.call('ZREM', key, unpack(ids))
  end
end
if #mine > 0 then
  redis.call('SADD', 'ks:c:' .. token, unpack(mine))
end

for _, key in ipairs(ready) do
  if redis.call('EXISTS', key) == 1 then
    next_ms = 0
    break
  end
end
return { now, next_ms, taken }

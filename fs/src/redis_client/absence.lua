-- Redis is back, or somebody connects: whoever lived when it went is given his whole time again to say that he lives.
-- ks:renewed  hash: key that expires and is renewed -> "<renewed at, ms> <for so long, ms> <its value>"; `run` -> which run of Redis it was
-- ARGV: this run of Redis; after how long (ms) without any renewal Redis has been away
-- Returns how many keys stand again, or stand longer.
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local all = redis.call('HGETALL', 'ks:renewed')
local renewed, last, run = {}, 0, nil
for i = 1, #all, 2 do
  local at, span, value = string.match(all[i + 1], '^(%d+) (%d+) (.*)$')
  if all[i] == 'run' then
    run = all[i + 1]
  elseif at then
    renewed[#renewed + 1] = { all[i], tonumber(at), tonumber(span), value }
    last = math.max(last, tonumber(at))
  end
end
if run == ARGV[1] and now - last < tonumber(ARGV[2]) then
  return 0
end
local count = 0
for _, one in ipairs(renewed) do
  local key, at, span, value = unpack(one)
  if at + span <= last then
    -- It was dead before Redis went.
    redis.call('HDEL', 'ks:renewed', key)
  else
    if not redis.call('SET', key, value, 'PX', span, 'NX') then
      redis.call('PEXPIRE', key, span)
    end
    count = count + 1
  end
end
redis.call('HSET', 'ks:renewed', 'run', ARGV[1])
return count

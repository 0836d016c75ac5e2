-- Checks conditions, then carries out operations, all or nothing: the one way in which the catalog changes.
--
-- ARGV: the number of conditions; each condition's words; then each operation's words, to the end.
--   conditions   absent K | present K | equals K V | nofield K F | field K F | fieldequals K F V | fields K N | member K M
--   operations   set K V | expiring K V MS | del K | hset K F V | hdel K F | hincrby K F N | sadd K M | srem K M
--                | event ORIGIN NONCE EVENT
-- Reply: {0, I} when condition I (from 1) does not hold, and nothing was done;
--        {1, LAST, PREVIOUS, N...}: the event stream's last id after and before (empty without events), then what each
--        hincrby came to.
local call = redis.call
local at = 2

local function word()
  local value = ARGV[at]
  at = at + 1
  return value
end

local check = {
  absent = function() return call('EXISTS', word()) == 0 end,
  present = function() return call('EXISTS', word()) == 1 end,
  equals = function() return call('GET', word()) == word() end,
  nofield = function() return call('HEXISTS', word(), word()) == 0 end,
  field = function() return call('HEXISTS', word(), word()) == 1 end,
  fieldequals = function()
    local key, field = word(), word()
    return call('HGET', key, field) == word()
  end,
  fields = function() return call('HLEN', word()) == tonumber(word()) end,
  member = function() return call('SISMEMBER', word(), word()) == 1 end,
}

for i = 1, tonumber(ARGV[1]) do
  if not check[word()]() then
    return {0, i}
  end
end

local reply = {1, '', ''}

local function event()
  local origin, nonce, encoded = word(), word(), word()
  if reply[2] == '' then
    local last = call('XREVRANGE', 'ks:events', '+', '-', 'COUNT', 1)
    reply[3] = last[1] and last[1][1] or '0-0'
  end
  reply[2] = call('XADD', 'ks:events', 'MAXLEN', '~', 1000000, '*', 'o', origin, 'k', nonce, 'e', encoded)
end

local act = {
  set = function() call('SET', word(), word()) end,
  expiring = function() call('SET', word(), word(), 'PX', word()) end,
  del = function() call('DEL', word()) end,
  hset = function() call('HSET', word(), word(), word()) end,
  hdel = function() call('HDEL', word(), word()) end,
  hincrby = function() reply[#reply + 1] = call('HINCRBY', word(), word(), word()) end,
  sadd = function() call('SADD', word(), word()) end,
  srem = function() call('SREM', word(), word()) end,
  event = event,
}

while at <= #ARGV do
  act[word()]()
end
return reply

-- Checks conditions, then carries out operations, all or nothing: the one way in which the catalog changes.
--
-- ARGV: the number of conditions; each condition's words; then each operation's words, to the end.
--   conditions   absent K | present K | equals K V | nofield K F | field K F | fieldequals K F V | fields K N | member K M
--   operations   set K V | expiring K V MS | del K | hset K F V | hdel K F | hincrby K F N | sadd K M | srem K M
--                | quietly K (what follows is not noted in ks:recovered as changed now)
--                | tell ORIGIN NONCE TOUCHED EVENT
-- `tell` publishes on ks:changes, in the order of the changes: "LAST PREVIOUS ORIGIN NONCE TOUCHED EVENT", TOUCHED the
-- keys of inodes and directories that were changed, with commas between; an EVENT that is not empty is entered in the
-- stream first (without one LAST and PREVIOUS are "-").
-- Reply: {0, I} when condition I (from 1) does not hold, and nothing was done;
--        {1, LAST, PREVIOUS, N...}: the event stream's last id after and before (of a change without an event LAST is "0-" and a
--        number that grows; both empty where nothing is told), then what each hincrby came to.
-- One chain of comparisons each and no functions: making them would cost more than the whole change.
-- KEYS[1], where it is given: the cluster whose tree must stand here whole; else nothing is read or done.
if KEYS[1] and redis.call('HGET', 'ks:meta', 'whole') ~= KEYS[1] then
  return redis.error_reply('KSGONE the tree is not here')
end
local call, words = redis.call, ARGV
local at = 2

for i = 1, tonumber(words[1]) do
  local check, key = words[at], words[at + 1]
  local holds
  at = at + 2
  if check == 'equals' then
    holds = call('GET', key) == words[at]
    at = at + 1
  elseif check == 'fieldequals' then
    holds = call('HGET', key, words[at]) == words[at + 1]
    at = at + 2
  elseif check == 'nofield' then
    holds = call('HEXISTS', key, words[at]) == 0
    at = at + 1
  elseif check == 'field' then
    holds = call('HEXISTS', key, words[at]) == 1
    at = at + 1
  elseif check == 'absent' then
    holds = call('EXISTS', key) == 0
  elseif check == 'present' then
    holds = call('EXISTS', key) == 1
  elseif check == 'fields' then
    holds = call('HLEN', key) == tonumber(words[at])
    at = at + 1
  elseif check == 'member' then
    holds = call('SISMEMBER', key, words[at]) == 1
    at = at + 1
  else
    return redis.error_reply('ERR no such check: ' .. tostring(check))
  end
  if not holds then
    return {0, i}
  end
end

local reply = {1, '', ''}
local total = #words
-- While nodes may still bring what their journals say of this tree: what is changed now is later than all of it.
local is_recovered = call('EXISTS', 'ks:recovered') == 1
while at <= total do
  local act, key = words[at], words[at + 1]
  at = at + 2
  if is_recovered and (act == 'set' or act == 'del') and string.sub(key, 1, 5) == 'ks:i:' then
    call('HSET', 'ks:recovered', string.sub(key, 6), '~')
  end
  if act == 'set' then
    call('SET', key, words[at])
    at = at + 1
  elseif act == 'hset' then
    call('HSET', key, words[at], words[at + 1])
    at = at + 2
  elseif act == 'hincrby' then
    reply[#reply + 1] = call('HINCRBY', key, words[at], words[at + 1])
    at = at + 2
  elseif act == 'hdel' then
    call('HDEL', key, words[at])
    at = at + 1
  elseif act == 'del' then
    call('DEL', key)
    if string.sub(key, 1, 9) == 'ks:alive:' then
      call('HDEL', 'ks:renewed', key)
    end
  elseif act == 'sadd' or act == 'srem' then
    if is_recovered and string.sub(key, 1, 5) == 'ks:l:' then
      call('HSET', 'ks:recovered', 'l' .. string.sub(key, 6) .. '/' .. words[at], '~')
    end
    call(act == 'sadd' and 'SADD' or 'SREM', key, words[at])
    at = at + 1
  elseif act == 'quietly' then
    is_recovered = false
  elseif act == 'expiring' then
    -- Noted, too, so that Redis's own absence is not taken for a death (`redis_client/absence.lua`).
    local t = call('TIME')
    local now_ms = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
    call('SET', key, words[at], 'PX', words[at + 1])
    call('HSET', 'ks:renewed', key, string.format('%d %d %s', now_ms, words[at + 1], words[at]))
    at = at + 2
  elseif act == 'tell' then
    local origin, nonce, touched, event = key, words[at], words[at + 1], words[at + 2]
    at = at + 3
    local last, previous = '-', '-'
    if event ~= '' then
      local before = call('XREVRANGE', 'ks:events', '+', '-', 'COUNT', 1)
      previous = before[1] and before[1][1] or '0-0'
      last = call('XADD', 'ks:events', 'MAXLEN', '~', 1000000, '*', 'o', origin, 'k', nonce, 'e', event)
      reply[2], reply[3] = last, previous
    else
      local before = call('XREVRANGE', 'ks:events', '+', '-', 'COUNT', 1)
      reply[2] = '0-' .. call('HINCRBY', 'ks:meta', 'untold', 1)
      reply[3] = before[1] and before[1][1] or '0-0'
    end
    call('PUBLISH', 'ks:changes', table.concat({last, previous, origin, nonce, touched, event}, ' '))
  else
    return redis.error_reply('ERR no such operation: ' .. tostring(act))
  end
end
return reply

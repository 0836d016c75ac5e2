-- Puts a file's table of locks in the place of the one it was computed from, and tells who waits.
-- ARGV: the inode number; the table expected ('': none); the new one ('': none left); its life, ms; the session whose lease
--       goes on ('': none) and the lease's life, ms; the session that must have ended ('': none) and how long Redis must
--       have been up to believe that, s; then each session to be told.
-- Reply: {1, N} done, N: 1 where that lease stood before; {0, TABLE} another table stands there, and nothing was done; {2} that session lives.
local call = redis.call
local key = 'ks:k:' .. ARGV[1]
local current = call('GET', key) or ''
if current ~= ARGV[2] then
  return {0, current}
end
if ARGV[7] ~= '' then
  local up = string.match(call('INFO', 'server'), 'uptime_in_seconds:(%d+)')
  if call('EXISTS', 'ks:kl:' .. ARGV[7]) == 1 or tonumber(up) < tonumber(ARGV[8]) then
    return {2}
  end
end
if ARGV[3] == '' then
  call('DEL', key)
else
  call('SET', key, ARGV[3], 'PX', ARGV[4])
end
local stood = 1
if ARGV[5] ~= '' then
  stood = call('EXISTS', 'ks:kl:' .. ARGV[5])
  call('SET', 'ks:kl:' .. ARGV[5], '1', 'PX', ARGV[6])
end
for i = 9, #ARGV do
  call('PUBLISH', 'ks:lock:' .. ARGV[i], ARGV[1])
end
return {1, stood}

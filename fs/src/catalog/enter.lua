-- Gives names to inodes of a catalog that is being rebuilt; again, it changes nothing.
-- ARGV: CLUSTER, then four words each: PARENT, NAME, ENTRY ("<ino> <kind>"), TIME (of a directory).
-- Reply: for each 1, or 0 where the name stands for something else already; -1 when this is not that catalog, or it is whole.
local call, words = redis.call, ARGV
local meta = call('HMGET', 'ks:meta', 'cluster', 'whole')
if meta[1] ~= words[1] or meta[2] then
  return -1
end
local reply = {}
for at = 2, #words, 4 do
  local directory, name, entry, time = 'ks:d:' .. words[at], words[at + 1], words[at + 2], words[at + 3]
  local is_directory = string.sub(entry, -2) == ' 1'
  if is_directory then
    local own = 'ks:d:' .. string.match(entry, '^%d+')
    call('HSET', own, '/t', time)
    call('HSETNX', own, '/n', '0')
  end
  if call('HSETNX', directory, name, entry) == 1 then
    reply[#reply + 1] = 1
    call('HINCRBY', directory, '/n', is_directory and 1 or 0)
  else
    reply[#reply + 1] = call('HGET', directory, name) == entry and 1 or 0
  end
end
return reply

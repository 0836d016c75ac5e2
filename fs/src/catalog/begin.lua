-- Enters this node in the rebuilding of a catalog that Redis has lost, and begins it where it is the first.
-- ARGV: CLUSTER (what its journal says), FORMAT, FIRST (the last inode number that counts as given), ROOT (the root's record),
--       RECOVERY (a random name for this rebuilding), NODE.
-- Reply: {CLUSTER, WHOLE, RECOVERY, AGE}: the cluster that stands or is being rebuilt here; WHOLE its name once it is whole, else
--        null; the rebuilding's name; how long ago it began, milliseconds. Another CLUSTER than asked for: nothing was done.
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if call('HSETNX', 'ks:meta', 'cluster', ARGV[1]) == 1 then
  call('HSET', 'ks:meta', 'format', ARGV[2], 'next_ino', ARGV[3], 'recovery', ARGV[5], 'began', string.format('%d', now))
end
if call('HEXISTS', 'ks:meta', 'recovery') == 0 then
  call('HSETNX', 'ks:meta', 'whole', call('HGET', 'ks:meta', 'cluster')) -- of a program that did not say so yet
end
local meta = call('HMGET', 'ks:meta', 'cluster', 'whole', 'recovery', 'began')
if meta[1] == ARGV[1] and not meta[2] then
  call('SETNX', 'ks:i:1', ARGV[4])
  call('HSETNX', 'ks:merging', ARGV[6], 'reads')
end
return {meta[1], meta[2], meta[3] or '', now - (tonumber(meta[4] or '') or now)}

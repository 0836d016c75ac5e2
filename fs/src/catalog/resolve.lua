-- Walks a path from the root in one round trip, and tells who holds what stands at its end.
-- ARGV: the path's names.
-- Reply: {STEPS, TIME, SUBDIRECTORIES, HOLDINGS}: STEPS two values for each name found, ENTRY and INODE (fewer than
--        names: the next one is not there); of the last one, its numbers if it is a directory, else its holdings
--        (node, holding, ...).
-- KEYS[1], where it is given: the cluster whose tree must stand here whole; else nothing is read or done.
if KEYS[1] and redis.call('HGET', 'ks:meta', 'whole') ~= KEYS[1] then
  return redis.error_reply('KSGONE the tree is not here')
end
local steps = {}
local ino, kind = '1', '1'
for i = 1, #ARGV do
  local entry = redis.call('HGET', 'ks:d:' .. ino, ARGV[i])
  if not entry then
    return {steps, false, false, {}}
  end
  ino, kind = string.match(entry, '^(%d+) (%d+)$')
  steps[#steps + 1] = entry
  steps[#steps + 1] = redis.call('GET', 'ks:i:' .. ino)
end
if kind == '1' then
  local meta = redis.call('HMGET', 'ks:d:' .. ino, '/t', '/n')
  return {steps, meta[1], meta[2], {}}
end
local holdings = redis.call('HGETALL', 'ks:h:' .. ino)
return {steps, false, false, holdings}

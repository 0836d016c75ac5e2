-- Reserves inode numbers.
-- ARGV: how many.
-- Reply: the last one of them.
-- KEYS[1], where it is given: the cluster whose tree must stand here whole; else nothing is read or done.
if KEYS[1] and redis.call('HGET', 'ks:meta', 'whole') ~= KEYS[1] then
  return redis.error_reply('KSGONE the tree is not here')
end
return redis.call('HINCRBY', 'ks:meta', 'next_ino', ARGV[1])

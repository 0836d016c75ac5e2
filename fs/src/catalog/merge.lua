-- Merges what a node's journal says into a catalog that is being rebuilt: the latest counts, whoever brings it, in whatever order and
-- however often.
-- ARGV: CLUSTER, NODE, COUNT (what this node has brought so far), INO_MAX (the highest inode number among these), then four words each:
--   i INO STAND RECORD (empty: gone) | l INO STAND "+PARENT/NAME" or "-PARENT/NAME" | t INO STAND TIME
-- Times are kept in ks:times, further links in ks:links:<ino>, until names are given.
-- ks:recovered keeps STAND (text, in order) by inode, and by 'l<ino>/<parent>/<name>' and 't<ino>'.
-- Reply: how many were news; -1 when this is not that catalog, or names are given already (it comes later then, change by change).
local call, words = redis.call, ARGV
local meta = call('HMGET', 'ks:meta', 'cluster', 'whole', 'next_ino', 'naming')
if meta[1] ~= words[1] or meta[2] or meta[4] then
  return -1
end
call('HSET', 'ks:merging', words[2], words[3])
if tonumber(words[4]) > tonumber(meta[3]) then
  call('HSET', 'ks:meta', 'next_ino', words[4])
end
local news = 0
for at = 5, #words, 4 do
  local kind, ino, stand, value = words[at], words[at + 1], words[at + 2], words[at + 3]
  local field = ino
  if kind == 'l' then
    field = 'l' .. ino .. '/' .. string.sub(value, 2)
  elseif kind == 't' then
    field = 't' .. ino
  end
  local known = call('HGET', 'ks:recovered', field)
  if not known or known < stand then
    news = news + 1
    call('HSET', 'ks:recovered', field, stand)
    if kind == 't' then
      call('HSET', 'ks:times', ino, value)
    elseif kind == 'l' then
      local act = string.sub(value, 1, 1) == '+' and 'SADD' or 'SREM'
      call(act, 'ks:links:' .. ino, string.sub(value, 2))
      call('EXPIRE', 'ks:links:' .. ino, 86400)
    elseif value == '' then
      call('DEL', 'ks:i:' .. ino)
    else
      call('SET', 'ks:i:' .. ino, value)
    end
  end
end
return news

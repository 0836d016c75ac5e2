-- A page of a directory with the inodes of its names: one round trip a thousand names.
-- ARGV: the directory's inode number, the cursor (0 at first).
-- Reply: {CURSOR, TIME, SUBDIRECTORIES, ROWS}, the cursor 0 after the last page, TIME null where there is no such
--        directory; ROWS five values for each name: NAME, ENTRY, INODE, TIME, SUBDIRECTORIES.
-- KEYS[1], where it is given: the cluster whose tree must stand here whole; else nothing is read or done.
if KEYS[1] and redis.call('HGET', 'ks:meta', 'whole') ~= KEYS[1] then
  return redis.error_reply('KSGONE the tree is not here')
end
local call = redis.call
local directory = 'ks:d:' .. ARGV[1]
local own = call('HMGET', directory, '/t', '/n')
local page = call('HSCAN', directory, ARGV[2], 'COUNT', 1000)
local fields = page[2]

local names, entries, inos, keys = {}, {}, {}, {}
for i = 1, #fields, 2 do
  if string.byte(fields[i]) ~= 47 then -- not /t and /n
    local n = #names + 1
    names[n] = fields[i]
    entries[n] = fields[i + 1]
    inos[n] = string.match(fields[i + 1], '^%d+')
    keys[n] = 'ks:i:' .. inos[n]
  end
end

local rows = {}
for first = 1, #names, 1000 do
  local last = math.min(first + 999, #names)
  local inodes = call('MGET', unpack(keys, first, last))
  for n = first, last do
    local time, subdirectories = false, false
    if string.sub(entries[n], -2) == ' 1' then
      local meta = call('HMGET', 'ks:d:' .. inos[n], '/t', '/n')
      time, subdirectories = meta[1], meta[2]
    end
    local at = #rows
    rows[at + 1] = names[n]
    rows[at + 2] = entries[n]
    rows[at + 3] = inodes[n - first + 1]
    rows[at + 4] = time
    rows[at + 5] = subdirectories
  end
end
return {page[1], own[1], own[2], rows}

-- One heart-beat of an executor. ARGV: node, incarnation, lease ms
-- Returns 1: its lease had not run out; 0: it had, and what it claimed may have been taken from it
local kept = redis.call('GET', 'ks:lease:' .. ARGV[1]) == ARGV[2]
lease(ARGV[1], ARGV[2], ARGV[3])
-- Redis's own absence is not taken for this node's death.
redis.call('HSET', 'ks:renewed', 'ks:lease:' .. ARGV[1], string.format('%d %d %s', clock_ms(), ARGV[3], ARGV[2]))
return kept and 1 or 0

-- Takes over what nodes without a lease have claimed, and jobs that are queued for such nodes only. The caller ends or places them again;
-- dies it too, the next takes them over from it.
-- ARGV: node, incarnation, lease ms, most jobs at a time, 1: only what earlier incarnations of this node have left
-- Returns {{id, body, node that had claimed it, or '' for a job that only waited}...}
local me, incarnation = ARGV[1], ARGV[2]
local token = me .. ':' .. incarnation
local left = tonumber(ARGV[4])
local own_only = ARGV[5] == '1'
local taken = {}
lease(me, incarnation, ARGV[3])

for _, claimant in ipairs(redis.call('SMEMBERS', 'ks:claimants')) do
  local node, its = string.match(claimant, '^(%x+):(%x+)$')
  if claimant ~= token and (node == me or not own_only) and redis.call('GET', 'ks:lease:' .. node) ~= its then
    local key = 'ks:c:' .. claimant
    for _, id in ipairs(left > 0 and redis.call('SPOP', key, left) or {}) do
      local job = redis.call('HMGET', 'ks:j:' .. id, 's', 't', 'b')
      if job[1] == 'c' and job[2] == claimant then
        claim(id, token)
        taken[#taken + 1] = { id, job[3], node }
        left = left - 1
      end
    end
    -- Jobs that wait for this node alone would wait for ever.
    local emptied = redis.call('EXISTS', 'ks:lease:' .. node) == 1
    if not emptied then
      emptied = true
      for _, queue in ipairs(redis.call('SMEMBERS', 'ks:nq:' .. node)) do
        for _, kind in ipairs({ 'ks:q:', 'ks:w:' }) do
          local zset = kind .. queue .. ':' .. node
          for _, id in ipairs(left > 0 and redis.call('ZRANGE', zset, 0, left - 1) or {}) do
            local job = redis.call('HMGET', 'ks:j:' .. id, 's', 'b', 'l')
            redis.call('ZREM', zset, id)
            if job[1] == 'q' then
              local places = string.gsub(job[3], node .. '=%d+,?', '')
              redis.call('HSET', 'ks:j:' .. id, 'l', places)
              if not string.find(places, '=', 1, true) then
                claim(id, token)
                taken[#taken + 1] = { id, job[2], '' }
                left = left - 1
              end
            end
          end
          if redis.call('EXISTS', zset) == 1 then
            emptied = false
          end
        end
      end
      if emptied then
        redis.call('DEL', 'ks:nq:' .. node)
      end
    end
    if emptied and redis.call('EXISTS', key) == 0 then
      redis.call('SREM', 'ks:claimants', claimant)
    end
  end
end
return taken

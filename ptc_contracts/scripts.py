"""The Lua scripts of the run record: every change of a run is one of them, on the server's clock.

They use only what Redis 6.2, Redis 7 and Valkey all know. What each takes and returns stands in its first lines.
"""

from __future__ import annotations

from ptc_contracts.keys import CALLERS_SUFFIX, RUN_PREFIX

NOW = (
    f"local RUN, CALLERS = '{RUN_PREFIX}', '{CALLERS_SUFFIX}'\n"
    "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
)

SUBMIT = (
    NOW
    + """
-- KEYS: run, callers, claim, attempt, active, stats, then the meta key of each cache entry that was looked at
-- ARGV: run id, exclusive ('1' = joins none), n fields, field/value pairs…, seen metas…
-- Returns: what was done, run id, whether somebody else started it
local function answer(how, id)
  return {how, id, redis.call('HGET', RUN .. id, 'attempt') == KEYS[4] and '0' or '1'}
end
local function known(id)
  return id and redis.call('HGET', RUN .. id, 'state')
end
local retried = redis.call('GET', KEYS[4])
if known(retried) then return answer('retry', retried) end
local fields = 2 * tonumber(ARGV[3])
for i = 7, #KEYS do
  if (redis.call('GET', KEYS[i]) or '') ~= ARGV[3 + fields + i - 6] then return {'look'} end
end
if #KEYS > 6 then redis.call('HINCRBY', KEYS[6], 'misses', 1) end
local claimed = ARGV[2] ~= '1' and redis.call('GET', KEYS[3])
local state = known(claimed)
if state and state ~= 'ended' then
  local deadline = redis.call('HGET', RUN .. claimed, 'deadline_at')
  if not deadline or tonumber(deadline) > now then
    redis.call('SADD', RUN .. claimed .. CALLERS, KEYS[4])
    redis.call('SET', KEYS[4], claimed)
    return answer('join', claimed)
  end
end
for i = 4, 2 + fields, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'state', 'queued', 'fence', 0, 'submitted_at', now, 'published', 0, 'attempt', KEYS[4])
redis.call('SADD', KEYS[2], KEYS[4])
redis.call('SET', KEYS[4], ARGV[1])
if ARGV[2] ~= '1' then redis.call('SET', KEYS[3], ARGV[1]) end
redis.call('ZADD', KEYS[5], now, ARGV[1])
return answer('new', ARGV[1])
"""
)

BEGIN = (
    NOW
    + """
-- KEYS: run, active   ARGV: run id, stage, lease ms
local h = redis.call('HMGET', KEYS[1], 'state', 'stage', 'lease_until', 'started_at', 'timeout_ms')
if not h[1] then return {'gone'} end
if h[1] == 'ended' then return {'ended', redis.call('HGET', KEYS[1], 'result')} end
if h[2] ~= ARGV[2] then return {'elsewhere'} end
if h[1] == 'running' and tonumber(h[3]) > now then return {'busy'} end
local lease = now + tonumber(ARGV[3])
redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('HSET', KEYS[1], 'state', 'running', 'lease_until', lease)
if not h[4] then redis.call('HSET', KEYS[1], 'started_at', now, 'deadline_at', now + tonumber(h[5])) end
redis.call('ZADD', KEYS[2], lease, ARGV[1])
return {'ok', now, redis.call('HGETALL', KEYS[1])}
"""
)

RENEW = (
    NOW
    + """
-- KEYS: active   ARGV: lease ms, then run id and fence of each run; returns the ids that are held no more
local lost, lease = {}, now + tonumber(ARGV[1])
for i = 2, #ARGV, 2 do
  local run = RUN .. ARGV[i]
  local h = redis.call('HMGET', run, 'state', 'fence')
  if h[1] == 'running' and h[2] == ARGV[i + 1] then
    redis.call('HSET', run, 'lease_until', lease)
    redis.call('ZADD', KEYS[1], 'XX', lease, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
"""
)

PUBLISHED = """
-- KEYS: run, active   ARGV: run id, stage, iteration of the message
-- A queued run whose message was sent is overdue no more: it merely waits.
local h = redis.call('HMGET', KEYS[1], 'state', 'stage', 'iteration')
if h[1] ~= 'queued' or h[2] ~= ARGV[2] or h[3] ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'published', 1)
return redis.call('ZADD', KEYS[2], 'XX', 'inf', ARGV[1])
"""

RECLAIM = (
    NOW
    + """
-- KEYS: active, sweeps   ARGV: grace ms, most, longest pause ms, lease ms
-- Returns id, stage, key and iteration of each run that needs a message: a running one whose lease has passed, and
-- a queued one whose message nobody has sent. Whoever asks next within the grace gets other runs, so one process at
-- a time publishes a run. After a pause of all sweeps (this server stood still, or no worker was there) the leases
-- say nothing until the living could have renewed them.
local s = redis.call('HMGET', KEYS[2], 'last', 'since')
if not s[1] or now - tonumber(s[1]) > tonumber(ARGV[3]) then s[2] = now end
redis.call('HSET', KEYS[2], 'last', now, 'since', s[2])
local steady = now - tonumber(s[2]) >= tonumber(ARGV[4])
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[1]), 'LIMIT', 0, ARGV[2])) do
  local run = RUN .. id
  local h = redis.call('HMGET', run, 'state', 'stage', 'key', 'iteration')
  if h[1] == 'running' and not steady then
    redis.call('ZADD', KEYS[1], now, id)
  elseif h[1] and h[1] ~= 'ended' then
    if h[1] == 'running' then redis.call('HSET', run, 'state', 'queued', 'published', 0) end
    redis.call('ZADD', KEYS[1], now, id)
    found[#found + 1] = {id, h[2], h[3], h[4]}
  else
    redis.call('ZREM', KEYS[1], id)
  end
end
return found
"""
)

KEEP = """
-- KEYS: run, checkpoints, usage   ARGV: fence, checkpoint name ('' = usage only), value, then call id/JSON pairs
-- Paid answers are kept even from a holder that lost its run; the first one written stays.
if not redis.call('HGET', KEYS[1], 'state') then return {0, ''} end
for i = 4, #ARGV, 2 do redis.call('HSETNX', KEYS[3], ARGV[i], ARGV[i + 1]) end
local kept = ''
if ARGV[2] ~= '' then
  redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3])
  kept = redis.call('HGET', KEYS[2], ARGV[2])
end
local h = redis.call('HMGET', KEYS[1], 'state', 'fence')
if h[1] == 'ended' then
  for i = 2, 3 do redis.call('EXPIRE', KEYS[i], redis.call('TTL', KEYS[1])) end
end
return {(h[1] == 'running' and h[2] == ARGV[1]) and 1 or 0, kept}
"""

HAND_OVER = (
    NOW
    + """
-- KEYS: run, active   ARGV: run id, fence, stage, progress, iteration, history
local h = redis.call('HMGET', KEYS[1], 'state', 'fence')
if h[1] ~= 'running' or h[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued', 'stage', ARGV[3], 'progress', ARGV[4], 'iteration', ARGV[5])
redis.call('HSET', KEYS[1], 'published', 0, 'history', ARGV[6])
redis.call('ZADD', KEYS[2], now, ARGV[1])
return 1
"""
)

FINISH = (
    NOW
    + """
-- KEYS: run, checkpoints, usage, callers, claim, active, then exec and meta key of each cache entry to write
-- ARGV: run id, fence, status, result, progress, result ttl s, retry ttl s, cache ttl s, cached result, cached
-- meta, channel
local h = redis.call('HMGET', KEYS[1], 'state', 'fence', 'result')
if not h[1] then return {'gone', ''} end
if h[1] == 'ended' then return {'ended', h[3]} end
if h[2] ~= ARGV[2] then return {'lost', ''} end
redis.call('HSET', KEYS[1], 'state', 'ended', 'status', ARGV[3], 'result', ARGV[4], 'progress', ARGV[5], 'ended_at', now)
if redis.call('GET', KEYS[5]) == ARGV[1] then redis.call('DEL', KEYS[5]) end
redis.call('ZREM', KEYS[6], ARGV[1])
for _, attempt in ipairs(redis.call('SMEMBERS', KEYS[4])) do redis.call('EXPIRE', attempt, ARGV[7]) end
for i = 1, 4 do redis.call('EXPIRE', KEYS[i], ARGV[6]) end
for i = 7, #KEYS, 2 do
  redis.call('SET', KEYS[i], ARGV[9], 'EX', ARGV[8])
  redis.call('SET', KEYS[i + 1], ARGV[10], 'EX', ARGV[8])
end
redis.call('PUBLISH', ARGV[11], ARGV[3])
return {'ok', ARGV[4]}
"""
)

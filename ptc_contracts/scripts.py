"""The Lua scripts of the run record: every change of a run is one of them, on the server's clock.

They use only what Redis 6.2, Redis 7 and Valkey all know. What each takes and returns stands in its first lines.
"""

from __future__ import annotations

from ptc_contracts.keys import CALLERS_SUFFIX, EVENTS_SUFFIX, LANE_PREFIX, RUN_PREFIX, WAITING_PREFIX

MOST_EVENTS = 20_000
"""Messages that a run's stream keeps, about: the oldest go first. What a run tells is bounded well below."""

NOW = (
    f"local RUN, CALLERS, EVENTS = '{RUN_PREFIX}', '{CALLERS_SUFFIX}', '{EVENTS_SUFFIX}'\n"
    f"local WAITING, LANE = '{WAITING_PREFIX}', '{LANE_PREFIX}'\n"
    "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
)

_TELL = f"""
-- Adds to what a run tells, from this place in ARGV on: the message that opens a run (told where nothing was told before;
-- '' = none), the name of a telling (fence:number) and how many of the messages that follow it has: they were told if it,
-- or a later one of the same fence, has arrived. A copy may come late: from a connection that was given up. Nothing that
-- goes wrong with messages stops a run.
local function arrived(last, name)
  local fence, number = string.match(name, '^(%d+):(%d+)$')
  local before, latest = string.match(last or '', '^(%d+):(%d+)$')
  return fence ~= nil and fence == before and tonumber(number) <= tonumber(latest)
end
local function tell(id, first)
  local events, from = RUN .. id .. EVENTS, first + 3
  local function add(message) redis.pcall('XADD', events, 'MAXLEN', '~', {MOST_EVENTS}, '*', 'm', message) end
  if ARGV[first] ~= '' and redis.call('EXISTS', events) == 0 then add(ARGV[first]) end
  if ARGV[first + 1] ~= '' then
    if arrived(redis.call('HGET', RUN .. id, 'told'), ARGV[first + 1]) then from = from + tonumber(ARGV[first + 2])
    else redis.call('HSET', RUN .. id, 'told', ARGV[first + 1]) end
  end
  for i = from, #ARGV do add(ARGV[i]) end
end
"""

_WAITS = """
-- Takes a run off the list of those whose message was sent and that nobody has begun.
local function waits_no_more(id)
  local h = redis.call('HMGET', RUN .. id, 'stage', 'priority')
  redis.call('ZREM', WAITING .. h[1] .. ':' .. h[2], id)
end
"""

_OWE = (
    _WAITS
    + """
-- Puts a run back into a queue, held by nobody; returns the message that is owed to it. Who owes it has the grace
-- (ms) to send it. It has started, so it goes before those that have not, except where it never did.
local function owe(id, active, grace)
  local run = RUN .. id
  waits_no_more(id)
  local priority = redis.call('HEXISTS', run, 'started_at') == 1 and '0' or redis.call('HGET', run, 'priority')
  local sending = redis.call('HINCRBY', run, 'sending', 1)
  redis.call('HSET', run, 'state', 'queued', 'published', 0, 'priority', priority, 'queued_at', now)
  redis.call('ZADD', active, redis.call('HEXISTS', run, 'cancelled') == 1 and now or now + grace, id)
  local h = redis.call('HMGET', run, 'stage', 'key', 'iteration')
  return {id, h[1], h[2], h[3], sending, priority}
end
"""
)

SUBMIT = (
    NOW
    + _OWE
    + """
-- KEYS: run, callers, claim, attempt, active, stats, checkpoints, runs, then the meta key of each cache entry looked at
-- ARGV: run id, exclusive ('1' = joins none), grace ms, expires ms ('' = never), priority, most runs to list, n fields,
-- field/value pairs…, n checkpoints, name/value pairs…, seen metas…
-- Returns: what was done, run id, whether somebody else started it; the message that is owed to a run that moves up
local function answer(how, id, owed)
  return {how, id, redis.call('HGET', RUN .. id, 'attempt') == KEYS[4] and '0' or '1', owed}
end
local function known(id)
  return id and redis.call('HGET', RUN .. id, 'state')
end
local retried = redis.call('GET', KEYS[4])
if known(retried) then return answer('retry', retried) end
local fields = {7, 7 + 2 * tonumber(ARGV[7])}
local kept = {fields[2] + 1, fields[2] + 1 + 2 * tonumber(ARGV[fields[2] + 1])}
for i = 9, #KEYS do
  if (redis.call('GET', KEYS[i]) or '') ~= ARGV[kept[2] + i - 8] then return {'look', '', ''} end
end
if #KEYS > 8 then redis.call('HINCRBY', KEYS[6], 'misses', 1) end
local claimed = ARGV[2] ~= '1' and redis.call('GET', KEYS[3])
local state = known(claimed)
if state and state ~= 'ended' then
  local run = RUN .. claimed
  local h = redis.call('HMGET', run, 'started_at', 'deadline_at', 'expires_at', 'published', 'priority')
  local over = h[1] and h[2] or h[3]
  if not over or tonumber(over) > now then
    redis.call('SADD', run .. CALLERS, KEYS[4])
    redis.call('SET', KEYS[4], claimed)
    if h[3] and not h[1] then -- the most patient caller decides how long it may wait
      local until_ = ARGV[4] == '' and 'inf' or math.max(tonumber(h[3]), now + tonumber(ARGV[4]))
      if until_ == 'inf' then redis.call('HDEL', run, 'expires_at') else redis.call('HSET', run, 'expires_at', until_) end
      if h[4] == '1' then redis.call('ZADD', KEYS[5], until_, claimed) end
    end
    if not h[1] and tonumber(ARGV[5]) < tonumber(h[5]) then -- its earlier message, further back, finds it begun
      waits_no_more(claimed)
      redis.call('HSET', run, 'priority', ARGV[5])
      return answer('join', claimed, owe(claimed, KEYS[5], tonumber(ARGV[3])))
    end
    return answer('join', claimed)
  end
end
for i = fields[1] + 1, fields[2], 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
for i = kept[1] + 1, kept[2], 2 do redis.call('HSET', KEYS[7], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'state', 'queued', 'fence', 0, 'starts', 0, 'sending', 1, 'published', 0)
redis.call('HSET', KEYS[1], 'submitted_at', now, 'queued_at', now, 'attempt', KEYS[4], 'priority', ARGV[5])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'expires_at', now + tonumber(ARGV[4])) end
redis.call('SADD', KEYS[2], KEYS[4])
redis.call('SET', KEYS[4], ARGV[1])
if ARGV[2] ~= '1' then redis.call('SET', KEYS[3], ARGV[1]) end
redis.call('ZADD', KEYS[5], now + tonumber(ARGV[3]), ARGV[1])
redis.call('ZADD', KEYS[8], string.format('%.3f', t[1] * 1000 + t[2] / 1000), ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[8], 0, -1 - ARGV[6])
return answer('new', ARGV[1])
"""
)

LIST = (
    NOW
    + """
-- KEYS: runs   ARGV: highest score, how many to look at, how many to find, what the first four fields must be
-- ('' = anything), then the fields
-- Returns the score of the last run that was looked at ('' = there are no more), and of each run that was found its id,
-- score, number of callers and fields. Runs whose record is gone are taken off the list.
local found = {}
local page = redis.call('ZREVRANGEBYSCORE', KEYS[1], ARGV[1], '-inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
for i = 1, #page, 2 do
  local h = redis.call('HMGET', RUN .. page[i], unpack(ARGV, 8))
  local fits = h[1]
  for n = 1, 4 do fits = fits and (ARGV[n + 3] == '' or h[n] == ARGV[n + 3]) end
  if fits then
    found[#found + 1] = {page[i], page[i + 1], redis.call('SCARD', RUN .. page[i] .. CALLERS), h}
    if #found == tonumber(ARGV[3]) then return {page[i + 1], found} end
  elseif not h[1] then
    redis.call('ZREM', KEYS[1], page[i])
  end
end
return {#page == 2 * ARGV[2] and page[#page] or '', found}
"""
)

PUBLISHED = (
    NOW
    + """
-- KEYS: run, active   ARGV: run id, number of the message
-- A queued run whose message was sent merely waits: no sweep looks at it before its time is over, or it is cancelled.
local h = redis.call('HMGET', KEYS[1], 'state', 'sending', 'stage', 'priority', 'started_at', 'deadline_at', 'expires_at',
                     'cancelled')
if h[1] ~= 'queued' or h[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'published', 1)
redis.call('ZADD', WAITING .. h[3] .. ':' .. h[4], now, ARGV[1])
return redis.call('ZADD', KEYS[2], 'XX', h[8] and now or h[5] and h[6] or h[7] or 'inf', ARGV[1])
"""
)

BEGIN = (
    NOW
    + _WAITS
    + """
-- KEYS: run, active   ARGV: run id, stage, number of the message, lease ms, who asks, newest form we can read
-- Whoever asks again, because the answer was lost, gets it again. Nobody else gets a run that is held, whatever its
-- lease says: only a sweep takes one away. A run that is begun by the message it waits for tells how far its lane has
-- come: lists are first in, first out.
local h = redis.call('HMGET', KEYS[1], 'state', 'stage', 'lease_until', 'started_at', 'timeout_ms', 'sending',
                     'queued_at', 'priority', 'expires_at', 'holder', 'schema_version')
if not h[1] then return {'gone'} end
if h[1] == 'ended' then return {'ended', unpack(redis.call('HMGET', KEYS[1], 'digest', 'result'))} end
if tonumber(h[11]) > tonumber(ARGV[6]) then return {'newer'} end
if h[2] ~= ARGV[2] then return {'elsewhere'} end
local lease = now + tonumber(ARGV[4])
if h[1] == 'running' then
  if h[10] ~= ARGV[5] then return {'busy'} end
  redis.call('HSET', KEYS[1], 'lease_until', lease)
  redis.call('ZADD', KEYS[2], lease, ARGV[1])
  return {'ok', now, redis.call('HGETALL', KEYS[1])}
end
if h[1] == 'queued' and h[6] == ARGV[3] then
  local lane = LANE .. h[2] .. ':' .. h[8]
  if tonumber(h[7]) > tonumber(redis.call('HGET', lane, 'reached') or 0) then
    redis.call('HSET', lane, 'reached', h[7])
  end
end
waits_no_more(ARGV[1])
redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('HINCRBY', KEYS[1], 'starts', 1)
redis.call('HSET', KEYS[1], 'state', 'running', 'lease_until', lease, 'holder', ARGV[5])
if not h[4] then
  redis.call('HSET', KEYS[1], 'started_at', now, 'deadline_at', now + tonumber(h[5]))
  if h[9] and tonumber(h[9]) <= now then redis.call('HSET', KEYS[1], 'expired', 1) end
end
redis.call('ZADD', KEYS[2], lease, ARGV[1])
return {'ok', now, redis.call('HGETALL', KEYS[1])}
"""
)

RENEW = (
    NOW
    + """
-- KEYS: active   ARGV: lease ms, grace ms after the deadline, then run id and fence of each run
-- Returns id and reason, 'lost' or 'cancelled', of each run whose work must stop. A lease ends with the time that its
-- holder has to see that the deadline is over: a stage that hangs there is ended by a sweep.
local stop, lease = {}, now + tonumber(ARGV[1])
for i = 3, #ARGV, 2 do
  local run = RUN .. ARGV[i]
  local h = redis.call('HMGET', run, 'state', 'fence', 'cancelled', 'deadline_at')
  if h[1] == 'running' and h[2] == ARGV[i + 1] and now < h[4] + ARGV[2] then
    redis.call('HSET', run, 'lease_until', lease)
    redis.call('ZADD', KEYS[1], 'XX', lease, ARGV[i])
    if h[3] then stop[#stop + 1] = {ARGV[i], 'cancelled'} end
  else
    stop[#stop + 1] = {ARGV[i], 'lost'}
  end
end
return stop
"""
)

SWEEP = (
    NOW
    + _OWE
    + """
-- KEYS: active, sweeps, dead, then for each lane its hash, the runs that wait in it, and its list of messages
-- ARGV: grace ms, most, shortest pause ms, longest pause ms, lease ms, patience ms, oldest dead ms
-- Returns the messages that are owed (see owe), and the ids of runs that are over and that nobody holds.
local s = redis.call('HMGET', KEYS[2], 'last', 'since')
local pause = s[1] and now - tonumber(s[1])
if pause and pause >= 0 and pause < tonumber(ARGV[3]) then return {{}, {}} end -- another worker has just swept
if pause and pause < 0 then -- the clock was set back: no lease may last longer than one
  local lease = now + tonumber(ARGV[5])
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. lease, '(inf')) do
    if redis.call('HGET', RUN .. id, 'state') == 'running' then
      redis.call('HSET', RUN .. id, 'lease_until', lease)
      redis.call('ZADD', KEYS[1], lease, id)
    end
  end
end
-- After a pause of all sweeps (this server stood still, or no worker was there) the leases say nothing until the
-- living could have renewed them.
if not pause or pause < 0 or pause > tonumber(ARGV[4]) then s[2] = now end
redis.call('HSET', KEYS[2], 'last', now, 'since', s[2])
local steady = now - tonumber(s[2]) >= tonumber(ARGV[5])
local owed, over = {}, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])) do
  local h = redis.call('HMGET', RUN .. id, 'state', 'cancelled', 'started_at', 'deadline_at', 'expires_at', 'published')
  local ends = h[3] and h[4] or h[5]
  if not h[1] or h[1] == 'ended' then
    redis.call('ZREM', KEYS[1], id)
  elseif h[1] == 'running' and not steady then
    redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), id)
  elseif h[2] or (ends and tonumber(ends) <= now) then
    redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), id)
    over[#over + 1] = id
  elseif h[1] == 'queued' and h[6] == '1' then -- its time was put off
    redis.call('ZADD', KEYS[1], ends or 'inf', id)
  else
    owed[#owed + 1] = owe(id, KEYS[1], tonumber(ARGV[1]))
  end
end
-- A lane is first in, first out. What was sent before the message of a run that has begun was queued, or before an
-- empty list was seen, has left the list; if it has not begun some patience later, its message is lost.
for i = 4, #KEYS, 3 do
  local reached = redis.call('LLEN', KEYS[i + 2]) == 0 and now or tonumber(redis.call('HGET', KEYS[i], 'reached') or 0)
  local l = redis.call('HMGET', KEYS[i], 'newer', 'older', 'turned')
  if math.max(reached, tonumber(l[1] or 0), tonumber(l[3] or 0)) > now then -- the clock was set back
    redis.call('DEL', KEYS[i])
    reached, l = 0, {}
  end
  if not l[3] or now - tonumber(l[3]) >= tonumber(ARGV[6]) then
    l = {reached, l[1] or 0}
    redis.call('HSET', KEYS[i], 'newer', l[1], 'older', l[2], 'turned', now)
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[i + 1], '-inf', '(' .. l[2], 'LIMIT', 0, ARGV[2])) do
    local h = redis.call('HMGET', RUN .. id, 'state', 'published')
    if h[1] == 'queued' and h[2] == '1' then
      owed[#owed + 1] = owe(id, KEYS[1], tonumber(ARGV[1]))
    else
      redis.call('ZREM', KEYS[i + 1], id)
    end
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - tonumber(ARGV[7]))
return {owed, over}
"""
)

LIVING = (
    NOW
    + """
-- KEYS: sweeps, then that of each worker   ARGV: how long a beat holds ms, longest pause ms
-- Returns the places of those that live among the workers, from 1. After a pause of all sweeps (this server stood still,
-- was full, or its clock was set) beats say nothing until the living could have beaten again: all of them live.
local s = redis.call('HMGET', KEYS[1], 'last', 'since')
local pause = s[1] and now - tonumber(s[1])
local sure = pause and pause >= 0 and pause <= tonumber(ARGV[2]) and now - tonumber(s[2]) >= tonumber(ARGV[1])
local living = {}
for i = 2, #KEYS do
  if not sure or redis.call('EXISTS', KEYS[i]) == 1 then living[#living + 1] = i - 1 end
end
return living
"""
)

KEEP = """
-- KEYS: run, checkpoints, usage   ARGV: fence, checkpoint name ('' = usage only), value, then call id/JSON pairs
-- Paid answers are kept even from a holder that lost its run; the first one written stays. Returns whether the run is
-- ours, and what was there before.
if not redis.call('HGET', KEYS[1], 'state') then return {0, ''} end
for i = 4, #ARGV, 2 do redis.call('HSETNX', KEYS[3], ARGV[i], ARGV[i + 1]) end
local kept = ''
if ARGV[2] ~= '' then
  if redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3]) == 1 then
    redis.call('HSET', KEYS[1], 'starts', 0)
  else
    kept = redis.call('HGET', KEYS[2], ARGV[2])
  end
end
local h = redis.call('HMGET', KEYS[1], 'state', 'fence')
if h[1] == 'ended' then
  for i = 2, 3 do redis.call('EXPIRE', KEYS[i], redis.call('TTL', KEYS[1])) end
end
return {(h[1] == 'running' and h[2] == ARGV[1]) and 1 or 0, kept}
"""

TELL = (
    NOW
    + _TELL
    + """
-- KEYS: run, events   ARGV: run id, fence, then what is told (see tell)
-- Only whoever holds the run tells of it.
local h = redis.call('HMGET', KEYS[1], 'state', 'fence')
if h[1] ~= 'running' or h[2] ~= ARGV[2] then return 0 end
tell(ARGV[1], 3)
return 1
"""
)

HAND_OVER = (
    NOW
    + _OWE
    + _TELL
    + """
-- KEYS: run, active   ARGV: run id, fence, grace ms, stage, progress, iteration, history, then what is told (see tell)
-- Returns the message that is owed, nothing if the run is held by somebody else.
local h = redis.call('HMGET', KEYS[1], 'state', 'fence')
if h[1] ~= 'running' or h[2] ~= ARGV[2] then return {} end
redis.call('HSET', KEYS[1], 'stage', ARGV[4], 'progress', ARGV[5], 'iteration', ARGV[6], 'history', ARGV[7], 'starts', 0)
redis.call('HDEL', KEYS[1], 'waited_for')
tell(ARGV[1], 8)
return owe(ARGV[1], KEYS[2], tonumber(ARGV[3]))
"""
)

HAND_BACK = (
    NOW
    + _OWE
    + _TELL
    + """
-- KEYS: run, active   ARGV: run id, fence, grace ms, what it waits for ('' = a worker), then what is told
-- Returns the message that is owed, nothing if the run is held by somebody else. This start does not count.
local h = redis.call('HMGET', KEYS[1], 'state', 'fence')
if h[1] ~= 'running' or h[2] ~= ARGV[2] then return {} end
redis.call('HINCRBY', KEYS[1], 'starts', -1)
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'waited_for', ARGV[4]) end
tell(ARGV[1], 5)
return owe(ARGV[1], KEYS[2], tonumber(ARGV[3]))
"""
)

CANCEL = """
-- KEYS: run, callers, claim, active   ARGV: run id, marker of the caller ('' = the only one there is), force ('1')
-- Returns what became of it and how many callers are left: 'gone', 'ended', 'stranger' (not a caller), 'shared'
-- (nobody was named and there are several), 'left', 'stopping' (its worker is told) or 'free' (nobody holds it)
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'gone', 0} end
if state == 'ended' then return {'ended', 0} end
if redis.call('HEXISTS', KEYS[1], 'cancelled') == 1 then return {state == 'running' and 'stopping' or 'free', 0} end
local force, callers = ARGV[3] == '1', redis.call('SMEMBERS', KEYS[2])
local leaver = ARGV[2]
if leaver == '' and #callers == 1 then leaver = callers[1] end
if leaver == '' and #callers > 1 and not force then return {'shared', #callers} end
local left = #callers
if leaver ~= '' then
  left = left - redis.call('SREM', KEYS[2], leaver)
  if left == #callers and not force then return {'stranger', left} end
  if redis.call('GET', leaver) == ARGV[1] then redis.call('DEL', leaver) end
end
if left > 0 and not force then
  if redis.call('HGET', KEYS[1], 'attempt') == leaver then -- whoever stays counts the cost
    redis.call('HSET', KEYS[1], 'attempt', redis.call('SRANDMEMBER', KEYS[2]))
  end
  return {'left', left}
end
redis.call('HSET', KEYS[1], 'cancelled', 1)
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
if state == 'running' then return {'stopping', left} end
redis.call('ZADD', KEYS[4], 0, ARGV[1])
return {'free', left}
"""

FINISH = (
    NOW
    + _WAITS
    + _TELL
    + """
-- KEYS: run, checkpoints, usage, callers, claim, active, dead, then exec and meta key of each cache entry to write
-- ARGV: run id, fence, status, result, progress, result ttl s, retry ttl s, cache ttl s, cached result, cached
-- meta, channel, why it was given up ('' = it was not; else into the list of the dead), events' ttl s, then what is told
local h = redis.call('HMGET', KEYS[1], 'state', 'fence', 'result')
if not h[1] then return {'gone', ''} end
if h[1] == 'ended' then return {'ended', h[3]} end
if h[2] ~= ARGV[2] then return {'lost', ''} end
waits_no_more(ARGV[1])
redis.call('HSET', KEYS[1], 'state', 'ended', 'status', ARGV[3], 'result', ARGV[4], 'progress', ARGV[5], 'ended_at', now)
if redis.call('GET', KEYS[5]) == ARGV[1] then redis.call('DEL', KEYS[5]) end
redis.call('ZREM', KEYS[6], ARGV[1])
if ARGV[12] ~= '' then
  redis.call('HSET', KEYS[1], 'given_up', ARGV[12])
  redis.call('ZADD', KEYS[7], now, ARGV[1])
end
for _, attempt in ipairs(redis.call('SMEMBERS', KEYS[4])) do redis.call('EXPIRE', attempt, ARGV[7]) end
for i = 1, 4 do redis.call('EXPIRE', KEYS[i], ARGV[6]) end
for i = 8, #KEYS, 2 do
  redis.call('SET', KEYS[i], ARGV[9], 'EX', ARGV[8])
  redis.call('SET', KEYS[i + 1], ARGV[10], 'EX', ARGV[8])
end
tell(ARGV[1], 14)
redis.call('EXPIRE', RUN .. ARGV[1] .. EVENTS, ARGV[13])
redis.call('PUBLISH', ARGV[11], ARGV[3])
return {'ok', ''}
"""
)

FORGET = """
-- KEYS: attempt   ARGV: run id
-- Lets the plan of a run that has ended be submitted again, as a new run.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""

COUNT_START = """
-- KEYS: run   ARGV: fence, number to add to the starts
if redis.call('HGET', KEYS[1], 'fence') == ARGV[1] then redis.call('HINCRBY', KEYS[1], 'starts', ARGV[2]) end
return 1
"""

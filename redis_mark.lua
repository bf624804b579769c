-- Notes in the log of a topic that messages up to an ID, which Redis had taken, are gone:
-- the log begins anew with an entry that is no message. No position before it is good any
-- more, not even that ID: between it and the note others may have published.
--
-- KEYS[1]  head of this partition
-- KEYS[2]  the topic
-- KEYS[3]  its newest ID
-- ARGV[1]  the ID
-- ARGV[2]  milliseconds that a stream outlives its newest message
-- ARGV[3]  PUBLISH or SPUBLISH
-- ARGV[4]  the note: "!" and the reason
-- ARGV[5]  a nonce
--
-- Returns 1 if it was noted, 0 if there is no need to: the ID is in the log after all, or
-- the log has begun anew since.

local COUNTERS, NONCES = 1024, 2048 -- see redis_publish.lua

local lineage, headMs = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d+)')
local function parse(id)
  local a, b = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(a), tonumber(b)
end
local function before(a, b)
  local ams, aseq = parse(a)
  local bms, bseq = parse(b)
  return ams < bms or ams == bms and aseq < bseq
end

local key, lost = KEYS[2], ARGV[1]
local lostMs, lostSeq = parse(lost)
if not lineage or math.floor(lostSeq / COUNTERS / NONCES) ~= tonumber(lineage) then
  return 0
end
if #redis.call('XRANGE', key, lost, lost) > 0 then
  return 0
end
local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
if newest then
  local _, seq = parse(newest[1])
  if math.floor(seq / COUNTERS / NONCES) ~= tonumber(lineage) then
    redis.call('DEL', key) -- of another lineage
  end
end
local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
if oldest then
  local note = string.match(oldest[2][2], '^%S+ %S+ (.)')
  if note == '!' and before(lost, oldest[1]) then
    return 0
  end
end

local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
ms = math.max(ms, headMs + 1, lostMs + 1)
local seq = (lineage * COUNTERS + 1) * NONCES + ARGV[5]
local id = string.format('%d-%d', ms, seq)
local ttl = string.format('%d', ARGV[2] * 1.25)
local note = id .. ' ' .. lost .. ' ' .. ARGV[4]
redis.call('XADD', key, 'MAXLEN', '=', 1, id, 'm', note)
redis.call('PEXPIRE', key, ttl)
redis.call('SET', KEYS[1], string.format('%s %d 1', lineage, ms))
redis.call('SET', KEYS[3], id, 'PX', ttl)
redis.call(ARGV[3], key, note)
return 1

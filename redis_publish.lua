-- Publishes a batch: appends each message to the stream of its topic, linked to the one
-- before, and sends it to the topic's channel. All or nothing, and at most once.
--
-- KEYS[1]   head of this partition: its lineage, and milliseconds and counter of the newest ID
-- KEYS[2]   the last batch of this writer, and the position that it returned
-- KEYS[3…]  for each topic: its newest ID
-- then, for each topic: key of the stream, and channel
-- then, for each message that has one: its key
-- ARGV[1]   a lineage, in case there is none yet
-- ARGV[2]   number of this batch; a retry has the same
-- ARGV[3]   number of the last batch that the writer knows to have been taken
-- ARGV[4]   milliseconds that a topic outlives its newest message
-- ARGV[5]   PUBLISH or SPUBLISH
-- ARGV[6]   a nonce, random for each batch: so no ID is ever given twice
-- ARGV[7]   how many topics there are
-- ARGV[8]   milliseconds that keys of messages are remembered
-- ARGV[9]   how many sets of limits there are; then each: messages, bytes and milliseconds
--           to keep; and if there are several, for each topic which one is its own
-- then, for each message: which of the topics (1…), negative if it has a key, and the message
--
-- A message whose key is remembered is left out.
--
-- Returns {"ok", "lineage milliseconds counter"}, the ID before the batch: the counters of
-- its messages follow that, and after the last counter comes the next millisecond; after
-- that, each with a space before it, which of the messages (1…) were left out;
-- {"stale"} for a batch that came after a later one; {"lost", number} if batches after
-- that number are gone, which were taken: then nothing was published.

-- The sequence number of an ID is (lineage * COUNTERS + a counter from 1) * NONCES + nonce.
-- Lineages are so large that it has 13 digits; so an ID has 27 characters.
local COUNTERS, NONCES = 1024, 2048

local call, format, floor, sub = redis.call, string.format, math.floor, string.sub

local topics = tonumber(ARGV[7])
local values = call('MGET', unpack(KEYS, 1, topics + 2))
local lineage, headMs, counter = string.match(values[1] or '', '^(%d+) (%d+) (%d+)$')
local number, taken = tonumber(ARGV[2]), tonumber(ARGV[3])
local before = values[2]
local last = 0
if before then
  local n, start = string.match(before, '^(%d+) (.*)$')
  last = tonumber(n)
  if last == number then
    return {'ok', start}
  elseif last > number then
    return {'stale'}
  end
end
if last < taken then
  return {'lost', last}
end

local time = call('TIME')
local now = time[1] * 1000 + floor(time[2] / 1000)
if not lineage then
  lineage, headMs, counter = ARGV[1], 0, 0
end
headMs, counter = tonumber(headMs), tonumber(counter)
if now > headMs then
  headMs, counter = now, 0
end
local start = format('%s %d %d', lineage, headMs, counter)
local first, beyond, nonce = lineage * COUNTERS * NONCES, (lineage + 1) * COUNTERS * NONCES, tonumber(ARGV[6])
local ttl = tonumber(ARGV[4])
local slack = floor(ttl / 8)
local publish = ARGV[5]

local sets = {}
for s = 1, ARGV[9] do
  local keep, bytes, age = tonumber(ARGV[3 * s + 7]), tonumber(ARGV[3 * s + 8]), tonumber(ARGV[3 * s + 9])
  sets[s] = {keep = keep, bytes = bytes, age = age, large = bytes / keep, turn = floor(now * 8 / age) * age / 8}
end
local arg = 10 + 3 * #sets
local limits = {}
if #sets > 1 then
  for t = 1, topics do
    limits[t] = sets[tonumber(ARGV[arg])]
    arg = arg + 1
  end
end
local usual = sets[1]

-- Where the topics are. If a key is of another kind this fails, before anything was written.
local newest, wasMs, streams = {}, {}, topics + 2
for t = 1, topics do
  local v = values[t + 2]
  if v then
    local seq = tonumber(sub(v, 15))
    if seq > first and seq < beyond then
      newest[t], wasMs[t] = v, tonumber(sub(v, 1, 13))
    end
  end
  if not wasMs[t] or now - wasMs[t] > ttl then -- new, idle for long, or of another lineage
    if call('XLEN', KEYS[streams + t]) == 0 then
      newest[t] = nil
    elseif not newest[t] then
      call('DEL', KEYS[streams + t])
    end
  end
end

local root = format('%013d-%d', now - ttl, first) -- since then there was none
local keyed = streams + topics
for a = arg, #ARGV, 2 do
  local t = tonumber(ARGV[a])
  local new = true
  if t < 0 then
    t, keyed = -t, keyed + 1
    new = call('SET', KEYS[keyed], 1, 'NX', 'PX', ARGV[8])
  end
  if new then
    local key = KEYS[streams + t]
    counter = counter + 1
    if counter == COUNTERS then
      headMs, counter = headMs + 1, 1
    end
    local id = format('%d-%d', headMs, first + counter * NONCES + nonce)
    local message = id .. ' ' .. (newest[t] or root) .. ' ' .. ARGV[a + 1]
    newest[t] = id
    call('XADD', key, id, 'm', message)
    call(publish, key, message)
    local limit = limits[t] or usual
    if #message > limit.large then -- else the number of messages limits the bytes
      local held = call('MEMORY', 'USAGE', key)
      if held > limit.bytes then
        call('XTRIM', key, 'MAXLEN', math.max(1, floor(call('XLEN', key) * limit.bytes / held)))
      end
    end
  else
    start = start .. format(' %d', (a - arg) / 2 + 1)
  end
end

-- Trimming and expiry need not be exact: they are done now and then.
local turn = floor(now / slack) * slack
for t = 1, topics do
  local key, was, limit = KEYS[streams + t], wasMs[t] or 0, limits[t] or usual
  if limit.keep < 128 then
    call('XTRIM', key, 'MAXLEN', limit.keep)
  elseif (t + nonce) % 16 == 0 then
    call('XTRIM', key, 'MAXLEN', '~', limit.keep)
  end
  if was < limit.turn then
    call('XTRIM', key, 'MINID', format('%d', now - limit.age))
  end
  if newest[t] then
    call('SETRANGE', KEYS[t + 2], 0, newest[t])
  end
  if was < turn then
    call('PEXPIRE', key, ttl + 2 * slack)
    call('PEXPIRE', KEYS[t + 2], ttl + 2 * slack)
  end
end

call('SET', KEYS[1], format('%s %d %d', lineage, headMs, counter))
call('SET', KEYS[2], ARGV[2] .. ' ' .. start, 'PX', 3600000)
return {'ok', start}

-- Says where topics are.
--
-- KEYS[1]   head of this partition
-- KEYS[2…]  the topics; then, for each, its newest ID
-- ARGV[1]   a lineage, in case there is none yet
-- ARGV[2…]  for each topic an ID, or ""
--
-- IDs that are made after this are after the time returned, even if the clock is set back.
--
-- Returns {lineage, milliseconds now, then for each topic its last ID or "", and 1 if the
-- ID asked about is in it, or none was}.

local COUNTERS = 1024 * 2048 -- and nonces: sequence numbers of a lineage

local lineage, headMs = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d+)')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if not lineage then
  lineage, headMs = ARGV[1], 0
end
if now > tonumber(headMs) then
  redis.call('SET', KEYS[1], string.format('%s %d 0', lineage, now))
else
  now = tonumber(headMs)
end
local answer = {lineage, string.format('%d', now)}
local topics = (#KEYS - 1) / 2
local newest = topics > 0 and redis.call('MGET', unpack(KEYS, topics + 2))
for t = 1, topics do
  local v = newest[t]
  local last, asked, held = '', ARGV[t + 1], 1
  if v and math.floor(tonumber(string.sub(v, 15)) / COUNTERS) == tonumber(lineage) then
    last = v
  end
  if asked ~= '' and asked ~= last and #redis.call('XRANGE', KEYS[t + 1], asked, asked) == 0 then
    held = 0
  end
  answer[#answer + 1] = last
  answer[#answer + 1] = held
end
return answer

-- Says that an instance is alive, and asks which are not.
--
-- KEYS[1]  when each instance is given up: a sorted set of milliseconds
-- ARGV[1]  the instance
-- ARGV[2]  milliseconds from now until it is given up, if it does not come again
-- ARGV[3]  milliseconds that this is kept if nobody renews it
--
-- Returns {1 if the instance was known, instances that are to be given up…}.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local added = redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local answer = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - 1, 'LIMIT', 0, 16)
table.insert(answer, 1, 1 - added)
return answer

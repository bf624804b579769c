-- Takes or renews a lease.
--
-- KEYS[1]  the lease
-- ARGV[1]  who wants it
-- ARGV[2]  for how many milliseconds; 0 gives it back
--
-- Returns 2 if it was taken, 1 if it was renewed or given back, 0 if another has it.

local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
else
  redis.call('DEL', KEYS[1])
end
if not holder then
  return 2
end
return 1

-- Notes how many clients users of a topic have on an instance.
--
-- KEYS[1]  presence of the topic: "i instance user" = clients there, "u user" = instances
--          where that user is, "n instance" = how many users it has
-- KEYS[2]  the topics of the instance
-- ARGV[1]  the instance
-- ARGV[2]  the topic
-- ARGV[3]  milliseconds that this is kept if nobody renews it
-- ARGV[4]  "all" if the instance is gone, with all its users; or nothing, and then
-- users and their clients, in turn
--
-- Returns the users who are new on all instances, with "+" before the name, and those who
-- are gone, with "-".

local call = redis.call
local h, instance = KEYS[1], ARGV[1]
local changes = {}

local function set(user, clients)
  local field = 'i ' .. instance .. ' ' .. user
  if clients > 0 then
    if call('HSET', h, field, clients) == 1 then
      call('HINCRBY', h, 'n ' .. instance, 1)
      if call('HINCRBY', h, 'u ' .. user, 1) == 1 then
        changes[#changes + 1] = '+' .. user
      end
    end
  elseif call('HDEL', h, field) == 1 then
    call('HINCRBY', h, 'n ' .. instance, -1)
    if call('HINCRBY', h, 'u ' .. user, -1) <= 0 then
      call('HDEL', h, 'u ' .. user)
      changes[#changes + 1] = '-' .. user
    end
  end
end

if ARGV[4] == 'all' then
  local prefix = 'i ' .. instance .. ' '
  for _, field in ipairs(call('HKEYS', h)) do
    if string.sub(field, 1, #prefix) == prefix then
      set(string.sub(field, #prefix + 1), 0)
    end
  end
else
  for a = 5, #ARGV, 2 do
    set(ARGV[a], tonumber(ARGV[a + 1]))
  end
end
if (tonumber(call('HGET', h, 'n ' .. instance)) or 0) > 0 then
  call('SADD', KEYS[2], ARGV[2])
  call('PEXPIRE', KEYS[2], ARGV[3])
else
  call('HDEL', h, 'n ' .. instance)
  call('SREM', KEYS[2], ARGV[2])
end
call('PEXPIRE', h, ARGV[3])
return changes

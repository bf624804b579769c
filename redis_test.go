package pushlet_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/internal/redistest"
)

// cluster starts instances that share a Redis.
func instances(t testing.TB, n int, client func() redis.UniversalClient, options ...pushlet.Option) []*site {
	t.Helper()
	sites := make([]*site, n)
	for i := range sites {
		sites[i] = newSite(t, withOptions(append([]pushlet.Option{pushlet.WithRedis(client())}, options...)...))
		sites[i].ready(t)
	}
	return sites
}

// ready waits until the instance hears Redis.
func (s *site) ready(t testing.TB) {
	t.Helper()
	eventually(t, "an instance that is ready", func() bool { return s.p.Ready() == nil })
}

// standalone starts a Redis and returns what makes clients of it.
func standalone(t testing.TB, options ...redistest.Option) (*redistest.Server, func() redis.UniversalClient) {
	t.Helper()
	server := redistest.Start(t, options...)
	return server, func() redis.UniversalClient { return server.Client() }
}

func TestRedisReachesAllInstances(t *testing.T) {
	_, client := standalone(t)
	sites := instances(t, 2, client)
	var streams []*stream
	for _, s := range sites {
		st, _, _ := s.connect(t, "topic=news", "")
		streams = append(streams, st)
	}
	for i := range 10 {
		sites[i%2].publish(t, "news", fmt.Sprint(i))
	}
	check(t, sites[0].p.PublishToAll("message", "all"))
	for _, st := range streams {
		st.expectMessages(append(numbered(0, 9), "all")...)
	}
}

func TestRedisResumeOnAnotherInstance(t *testing.T) {
	_, client := standalone(t)
	sites := instances(t, 2, client)
	st, _, _ := sites[0].connect(t, "topic=a&topic=b", "")
	sites[0].publish(t, "a", "0")
	cursor := st.expectMessages("0").id
	st.close()
	sites[0].publish(t, "a", "1")
	sites[1].publish(t, "b", "2")
	check(t, sites[1].p.PublishToAll("message", "3"))
	st, h, _ := sites[1].connect(t, "topic=b&topic=a", cursor)
	if !h.Resumed {
		t.Error("not resumed")
	}
	st.expectMessages("1", "2", "3")
	sites[0].publish(t, "b", "4")
	st.expectMessages("4")
}

// TestRedisResumeEmpty: a client that has seen a topic empty gets its first messages.
func TestRedisResumeEmpty(t *testing.T) {
	_, client := standalone(t)
	sites := instances(t, 2, client)
	st, _, e := sites[0].connect(t, "topic=a", "")
	st.close()
	sites[0].publish(t, "a", "0", "1")
	st, h, _ := sites[1].connect(t, "topic=a", e.id)
	if !h.Resumed {
		t.Error("not resumed")
	}
	st.expectMessages("0", "1")
}

// TestRedisFlush: what is gone with all the data is signalled, to who is there and to who
// comes back.
func TestRedisFlush(t *testing.T) {
	server, client := standalone(t)
	sites := instances(t, 2, client)
	live, _, _ := sites[0].connect(t, "topic=a", "")
	away, _, _ := sites[1].connect(t, "topic=a", "")
	sites[0].publish(t, "a", "0")
	live.expectMessages("0")
	cursor := away.expectMessages("0").id
	away.close()
	sites[0].publish(t, "a", "1")
	live.expectMessages("1")
	check(t, server.Client().FlushAll(t.Context()).Err())
	expectGaps(live, "restarted", "*", "a")
	sites[0].publish(t, "a", "2")
	live.expectMessages("2")
	st, _, _ := sites[1].connect(t, "topic=a", cursor)
	// It may come before that instance has noticed, and get what it missed from memory.
	for e := st.next(); e.name != "pushlet.gap" || !strings.Contains(e.data, `"a"`); e = st.next() {
	}
}

// expectGaps expects a gap event for each topic, in any order.
func expectGaps(st *stream, reason string, topics ...string) {
	st.t.Helper()
	for len(topics) > 0 {
		e := st.next()
		i := slices.IndexFunc(topics, func(topic string) bool {
			return e.name == "pushlet.gap" && e.data == fmt.Sprintf(`{"topics":[%q],"reason":%q}`, topic, reason)
		})
		if i < 0 {
			st.t.Fatalf("event %v, want a gap %q of one of %q", e, reason, topics)
		}
		topics = slices.Delete(topics, i, i+1)
	}
}

func TestRedisRestart(t *testing.T) {
	server, client := standalone(t, redistest.AppendOnly("always"))
	sites := instances(t, 2, client)
	st, _, _ := sites[0].connect(t, "topic=a", "")
	sites[1].publish(t, "a", "0")
	st.expectMessages("0")
	server.Kill()
	eventually(t, "not ready", func() bool { return errors.Is(sites[1].p.Ready(), pushlet.ErrUnavailable) })
	server.Restart()
	sites[1].ready(t)
	sites[1].publish(t, "a", "1")
	st.expectMessages("1")
}

// TestEnableDistributedMode: whoever looks at the error knows what is wrong.
func TestEnableDistributedMode(t *testing.T) {
	server := redistest.Start(t, redistest.Password("secret"))
	p := newPushlet(t)
	check(t, p.EnableDistributedMode(server.Addr(), "secret", 1))
	if err := p.EnableDistributedMode(server.Addr(), "secret", 1); err == nil {
		t.Error("enabled twice")
	}
	check(t, p.Start())
	check(t, p.Publish("a", "", "0"))
	if n, err := server.Client(func(o *redis.Options) { o.DB = 1 }).Exists(t.Context(), "pushlet{0}:t:a").Result(); n != 1 || err != nil {
		t.Errorf("the stream of the topic: %d, %v", n, err)
	}

	p = newPushlet(t)
	err := p.EnableDistributedMode(server.Addr(), "wrong", 0)
	if err == nil || errors.Is(err, pushlet.ErrUnavailable) || !strings.Contains(err.Error(), "WRONGPASS") || strings.Contains(err.Error(), "wrong,") {
		t.Errorf("with a wrong password: %v", err)
	}
	check(t, p.Start()) // alone

	p = newPushlet(t, pushlet.WithPublishTimeout(50*time.Millisecond))
	err = p.EnableDistributedMode(fmt.Sprintf("127.0.0.1:%d", redistest.FreePort(t)), "secret", 0)
	if !errors.Is(err, pushlet.ErrUnavailable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("without a server: %v, want %v", err, pushlet.ErrUnavailable)
	}
	check(t, p.Start())
	if err := p.Publish("a", "", "0"); !errors.Is(err, pushlet.ErrUnavailable) {
		t.Errorf("Publish = %v, want %v", err, pushlet.ErrUnavailable)
	}
}

// aclRules is what a Redis user needs, as docs/redis.md has it.
const aclRules = "~pushlet{* &pushlet{* +@connection +@scripting -script|flush -script|kill +@pubsub " +
	"+get +set +mget +setrange +del +pexpire +xadd +xtrim +xlen +xrange +xrevrange +memory|usage +time +info +wait " +
	"+hset +hget +hdel +hgetall +hkeys +hincrby +sadd +srem +smembers +zadd +zrem +zrange +zrangebyscore +zscore"

// TestRedisForms: every form of Redis does the same.
func TestRedisForms(t *testing.T) {
	forms := map[string]func(t *testing.T) (client func() redis.UniversalClient, options []pushlet.Option){
		"acl user": func(t *testing.T) (func() redis.UniversalClient, []pushlet.Option) {
			server := redistest.Start(t, redistest.ACLUser("pushlet", "secret", aclRules))
			return func() redis.UniversalClient {
				return server.Client(func(o *redis.Options) { o.Username, o.Password = "pushlet", "secret" })
			}, nil
		},
		"tls": func(t *testing.T) (func() redis.UniversalClient, []pushlet.Option) {
			_, client := standalone(t, redistest.TLS())
			return client, nil
		},
		"sentinel": func(t *testing.T) (func() redis.UniversalClient, []pushlet.Option) {
			s := redistest.StartSentinel(t)
			return func() redis.UniversalClient { return s.Client() }, []pushlet.Option{pushlet.WithReplicaAcks(2, 5*time.Second)}
		},
		"cluster": func(t *testing.T) (func() redis.UniversalClient, []pushlet.Option) {
			c := redistest.StartCluster(t)
			return func() redis.UniversalClient { return c.Client() }, []pushlet.Option{pushlet.WithReplicaAcks(1, 5*time.Second)}
		},
		"partitions": func(t *testing.T) (func() redis.UniversalClient, []pushlet.Option) {
			_, client := standalone(t)
			return client, []pushlet.Option{pushlet.WithRedisPartitions(5)}
		},
	}
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			client, options := form(t)
			var m members
			sites := instances(t, 2, client, append(m.options(0), options...)...)
			const query = "topic=a&topic=b&topic=c&topic=d&user=ann"
			stays, _, _ := sites[0].connect(t, query, "")
			leaves, _, _ := sites[1].connect(t, query, "")
			m.expect(t, "+a ann", "+b ann", "+c ann", "+d ann")
			publish := func(from int) {
				for i := range 20 {
					sites[i%2].publish(t, string(rune('a'+i%4)), fmt.Sprint(from+i))
				}
				check(t, sites[0].p.PublishToAll("message", fmt.Sprint(from+20)))
			}
			// Messages of one topic are in order, those of several need not be.
			receive := func(st *stream, from int) (last event) {
				var got []int
				for range 21 {
					last = st.next()
					n, err := strconv.Atoi(last.data)
					if err != nil {
						t.Fatalf("event %v", last)
					}
					got = append(got, n)
				}
				next := map[int]int{}
				for _, n := range got {
					if n == from+20 {
						continue // the broadcast
					}
					if n < next[(n-from)%4] {
						t.Errorf("%d came too late: %d", n, got)
					}
					next[(n-from)%4] = n
				}
				slices.Sort(got)
				for i, n := range got {
					if n != from+i {
						t.Fatalf("got %d", got)
					}
				}
				return last
			}
			publish(0)
			receive(stays, 0)
			e := receive(leaves, 0)
			leaves.close()
			publish(100)
			receive(stays, 100)
			back, h, _ := sites[1].connect(t, query, e.id)
			if !h.Resumed {
				t.Error("not resumed")
			}
			receive(back, 100)
			publish(200)
			receive(stays, 200)
			receive(back, 200)
			sites[0].expectPresence(t, "b", 2, map[string]int{"ann": 2})
		})
	}
}

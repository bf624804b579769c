package pushlet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
	if n, err := server.Client(func(o *redis.Options) { o.DB = 1 }).Exists(t.Context(), "pushlet/1{0}:t:a").Result(); n != 1 || err != nil {
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
const aclRules = "~pushlet{* &pushlet{* +@connection +@scripting +@pubsub +cluster|slots " +
	"+get +set +mget +setrange +del +pexpire +xadd +xtrim +xlen +xrange +xrevrange +memory|usage +time +info +wait " +
	"+hset +hget +hdel +hgetall +hkeys +hincrby +sadd +srem +smembers +zadd +zrem +zrange +zrangebyscore " +
	"+rpush +blpop " +
	"-script|flush -script|kill -client|kill -client|pause -client|unpause -function"

// TestRedisForms: every form of Redis does the same.
func TestRedisForms(t *testing.T) {
	t.Parallel()
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
			m.expect(t, "+a ann", "+b ann", "+c ann", "+d ann", "+* ann")
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

			// What is for the user, once; and its connections.
			push := pushlet.Push{Users: []string{"ann"}, Events: []pushlet.Event{{Data: "once"}}, Key: "key"}
			for i := range 4 {
				results, err := sites[i%2].p.Push(t.Context(), push)
				if check(t, err); results[0].Err != nil {
					t.Fatal(results[0].Err)
				}
			}
			check(t, sites[1].p.PublishToUsers([]string{"ann", "bob"}, "", "the last"))
			clients, err := sites[0].p.Connections(t.Context(), "ann")
			if check(t, err); len(clients) != 2 {
				t.Errorf("connections %+v, want 2", clients)
			}
			n, err := sites[0].p.Disconnect(t.Context(), "ann", "over")
			if check(t, err); n != 2 {
				t.Errorf("%d disconnected, want 2", n)
			}
			for _, st := range []*stream{stays, back} {
				st.expectMessages("once", "the last")
				st.expect("pushlet.disconnected", `{"reason":"over"}`)
				st.expectEnd()
			}
		})
	}
}

// A counter is a ResponseWriter that only counts the messages of a stream.
type counter struct {
	header   http.Header
	messages *atomic.Int64
	resumed  *atomic.Int64
}

func (c *counter) Header() http.Header { return c.header }
func (c *counter) WriteHeader(int)     {}
func (c *counter) Flush()              {}
func (c *counter) Write(b []byte) (int, error) {
	c.messages.Add(int64(bytes.Count(b, []byte("event: message\n"))))
	c.resumed.Add(int64(bytes.Count(b, []byte(`"resumed":true`))))
	return len(b), nil
}

// TestRedisStorm: when very many clients come back to one instance at once, with different
// cursors, a topic is read a handful of times.
func TestRedisStorm(t *testing.T) {
	const clients, messages = 10_000, 50
	_, client := standalone(t)
	first := instances(t, 1, client)[0]
	st, _, e := first.connect(t, "topic=a", "")
	cursors := []string{e.id}
	for _, data := range numbered(0, messages-1) {
		first.publish(t, "a", data)
		cursors = append(cursors, st.expectMessages(data).id)
	}

	second := instances(t, 1, client)[0]
	before := second.p.Stats().RedisReads
	ctx, leave := context.WithCancel(t.Context())
	var got, resumed atomic.Int64
	want := 0
	var handlers sync.WaitGroup
	for i := range clients {
		at := i % messages // it has not seen the last messages-at
		want += messages - at
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/events?topic=a", nil)
		r.Header.Set("Last-Event-ID", cursors[at])
		handlers.Go(func() { second.p.HandleSSE(&counter{make(http.Header), &got, &resumed}, r) })
	}
	eventually(t, "all to have what they missed", func() bool { return got.Load() >= int64(want) })
	if resumed.Load() != clients {
		t.Errorf("%d of %d resumed", resumed.Load(), clients)
	}
	first.publish(t, "a", "live")
	eventually(t, "all to be live", func() bool { return got.Load() >= int64(want+clients) })
	if n := got.Load(); n != int64(want+clients) {
		t.Errorf("%d messages, want %d", n, want+clients)
	}
	if reads := second.p.Stats().RedisReads - before; reads > 5 {
		t.Errorf("%d reads for one topic", reads)
	}
	leave()
	handlers.Wait()
}

// TestRedisForgets: keys expire, and what nobody follows is not subscribed to for long.
func TestRedisForgets(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	var m members
	s := instances(t, 1, client, append(m.options(0), pushlet.WithRedisPrefix("my:app"))...)[0]
	admin := server.Client()
	st, _, _ := s.connect(t, "topic=a&user=ann", "")
	s.publish(t, "a", "0")
	s.publish(t, "b", "0") // nobody follows it
	check(t, s.p.PublishToAll("", "0"))
	st.expectMessages("0", "0")
	m.expect(t, "+a ann", "+* ann")

	keys, err := admin.Keys(t.Context(), "*").Result()
	check(t, err)
	for _, key := range keys {
		if !strings.HasPrefix(key, "my:app{0}:") {
			t.Errorf("key %q is without the prefix", key)
		}
		ttl, err := admin.PTTL(t.Context(), key).Result()
		check(t, err)
		if ttl <= 0 && key != "my:app{0}:head" {
			t.Errorf("key %q does not expire", key)
		}
	}
	if len(keys) < 8 {
		t.Errorf("only these keys: %q", keys)
	}

	channels := func() []string {
		all, err := admin.PubSubChannels(t.Context(), "*").Result()
		check(t, err)
		slices.Sort(all)
		return all
	}
	if got, want := channels(), []string{"my:app{0}:control", "my:app{0}:t:*", "my:app{0}:t:@user/ann", "my:app{0}:t:a"}; !slices.Equal(got, want) {
		t.Errorf("channels %q, want %q", got, want)
	}
	st.close()
	eventually(t, "the topic to be unsubscribed", func() bool { return len(channels()) == 2 })
	eventually(t, "the topic to be forgotten", func() bool { return s.p.Stats().Topics == 0 })
}

// TestRedisLimits: a stream keeps what history allows, more or less.
func TestRedisLimits(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	s := instances(t, 1, client,
		pushlet.WithHistory(200, 1<<20, time.Hour),
		pushlet.WithTopicHistory("few/", 3, 1<<20, time.Hour),
		pushlet.WithTopicHistory("large/", 200, 50_000, time.Hour),
		pushlet.WithTopicHistory("off/", 0, 0, 0),
		pushlet.WithTopicHistory("brief/", 200, 1<<20, 100*time.Millisecond))[0]
	admin := server.Client()
	length := func(topic string) int64 {
		n, err := admin.XLen(t.Context(), "pushlet{0}:t:"+topic).Result()
		check(t, err)
		return n
	}
	var all sync.WaitGroup
	for range 20 { // at once, so that they go as batches
		all.Go(func() {
			for range 100 {
				for _, topic := range []string{"many", "few/a", "off/a"} {
					check(t, s.p.Publish(topic, "", "x"))
				}
			}
		})
	}
	all.Wait()
	for range 100 {
		s.publish(t, "large/a", strings.Repeat("x", 5000))
	}
	for topic, most := range map[string]int64{"many": 500, "few/a": 3, "off/a": 1, "large/a": 12} {
		if n := length(topic); n > most || n < most/4 {
			t.Errorf("%q has %d messages, want about %d", topic, n, most)
		}
	}
	s.publish(t, "brief/a", numbered(1, 20)...)
	eventually(t, "old messages to leave", func() bool {
		time.Sleep(150 * time.Millisecond) // for them to be old
		s.publish(t, "brief/a", "x")
		return length("brief/a") < 10
	})
}

// TestPublishErrors: the error says whether the message may have been published.
func TestPublishErrors(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	s := instances(t, 1, client, pushlet.WithPublishTimeout(300*time.Millisecond), pushlet.WithPublishQueue(10, 250_000))[0]
	s.publish(t, "a", "0")
	if err := server.Client().Set(t.Context(), "pushlet{0}:t:wrong", "not a stream", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.p.Publish("wrong", "", "x"); !errors.Is(err, pushlet.ErrUnavailable) || !strings.Contains(err.Error(), "WRONGTYPE") {
		t.Errorf("to a key of another kind: %v", err)
	}
	s.publish(t, "a", "1") // the next is not held up by it

	server.Pause()
	canceled := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(canceled) })
	if err := s.p.PublishContext(ctx, "a", "", "2"); !errors.Is(err, pushlet.ErrUncertain) || !errors.Is(err, canceled) {
		t.Errorf("given to Redis: %v, want %v and %v", err, pushlet.ErrUncertain, canceled)
	}
	counts := make(map[error]int)
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 300 {
		all.Go(func() {
			err := s.p.Publish("a", "", strings.Repeat("x", 1000+i))
			for _, kind := range []error{pushlet.ErrUncertain, pushlet.ErrUnavailable, pushlet.ErrOverloaded} {
				if errors.Is(err, kind) {
					mu.Lock()
					counts[kind]++
					mu.Unlock()
					return
				}
			}
			t.Errorf("Publish = %v", err)
		})
	}
	all.Wait()
	if counts[pushlet.ErrOverloaded] == 0 || counts[pushlet.ErrUncertain] == 0 {
		t.Errorf("errors: %v", counts)
	}
	// Nothing is given to Redis any more while what was given to it is not answered.
	eventually(t, "a message to wait in vain", func() bool {
		err := s.p.Publish("a", "", "x")
		if err == nil || errors.Is(err, pushlet.ErrUncertain) {
			t.Errorf("waiting: %v", err)
		}
		return err == nil || errors.Is(err, pushlet.ErrUnavailable)
	})
	server.Continue()
	s.ready(t)
	eventually(t, "publishing to go on", func() bool { return s.p.Publish("a", "", "3") == nil })
}

// TestRedisFull: a Redis that takes no messages makes the instance say so, until it does.
func TestRedisFull(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	s := instances(t, 1, client)[0]
	s.publish(t, "a", "0")
	admin := server.Client()
	check(t, admin.ConfigSet(t.Context(), "maxmemory", "1").Err())
	if err := s.p.Publish("a", "", "1"); !errors.Is(err, pushlet.ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("Publish = %v", err)
	}
	if err := s.p.Ready(); !errors.Is(err, pushlet.ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("Ready = %v", err)
	}
	check(t, admin.ConfigSet(t.Context(), "maxmemory", "0").Err())
	s.ready(t)
}

// TestRedisDatabases: another database is another application.
func TestRedisDatabases(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	a := instances(t, 1, client)[0]
	b := instances(t, 1, func() redis.UniversalClient {
		return server.Client(func(o *redis.Options) { o.DB = 1 })
	})[0]
	in0, _, _ := a.connect(t, "topic=a", "")
	in1, _, _ := b.connect(t, "topic=a", "")
	a.publish(t, "a", "0")
	b.publish(t, "a", "1")
	in0.expectMessages("0")
	in1.expectMessages("1")
}

func TestRedisOptions(t *testing.T) {
	ring := redis.NewRing(&redis.RingOptions{})
	defer ring.Close()
	for name, option := range map[string]pushlet.Option{
		"ring":       pushlet.WithRedis(ring),
		"nil":        pushlet.WithRedis(nil),
		"prefix":     pushlet.WithRedisPrefix("a{b}"),
		"no prefix":  pushlet.WithRedisPrefix(""),
		"partitions": pushlet.WithRedisPartitions(1025),
		"acks":       pushlet.WithReplicaAcks(0, time.Second),
		"no time":    pushlet.WithReplicaAcks(1, 0),
		"timeout":    pushlet.WithPublishTimeout(0),
		"queue":      pushlet.WithPublishQueue(0, 1),
		"grace":      pushlet.WithPresence(-1),
	} {
		if err := newPushlet(t, option).Start(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

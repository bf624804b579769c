package pushlet_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/internal/redistest"
)

func add(t testing.TB, rdb *redis.Client, stream string, fields ...any) {
	t.Helper()
	check(t, rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: fields}).Err())
}

// expectNumbers reads messages that are these numbers, in order within each topic, whose
// number is the remainder by topics.
func (s *stream) expectNumbers(from, to, topics int) {
	s.t.Helper()
	next := make([]int, topics)
	for i := range next {
		next[i] = from + i
	}
	for range to - from {
		e := s.next()
		n, err := strconv.Atoi(e.data)
		if err != nil || n != next[n%topics] {
			s.t.Fatalf("event %v, want one of %d", e, next)
		}
		next[n%topics] += topics
	}
}

func TestIngest(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	rdb := server.Client()
	add(t, rdb, "events", "topic", "a", "data", "before any instance came")
	sites := instances(t, 2, client, pushlet.WithIdentity(userOf), pushlet.WithIngest("events"), pushlet.WithMaxMessageSize(100))
	eventually(t, "what was there before", func() bool { return sites[0].p.Stats().Ingested+sites[1].p.Stats().Ingested == 1 })
	st, _, _ := sites[1].connect(t, "topic=a&topic=b&user=ann", "")
	for i := range 600 {
		add(t, rdb, "events", "topic", string(rune('a'+i%2)), "data", i)
	}
	st.expectNumbers(0, 600, 2)
	add(t, rdb, "events", "user", "ann", "event", "note", "data", "for ann")
	st.expect("note", "for ann")
	add(t, rdb, "events", "user", "bob", "topic", "a", "data", "for bob and a")
	st.expectMessages("for bob and a")
	for _, bad := range [][]any{
		{"topic", "a", "text", "x"}, {"data", "x"}, {"topic", "", "data", "x"}, {"topic", "@user/ann", "data", "x"}, {"user", "a\nb"},
		{"topic", "a", "event", "pushlet.x"}, {"topic", "a", "data", strings.Repeat("x", 101)},
	} {
		add(t, rdb, "events", bad...)
	}
	add(t, rdb, "events", "topic", "*", "data", "the end")
	st.expectMessages("the end")
	eventually(t, "the stream to be empty", func() bool { return rdb.XLen(t.Context(), "events").Val() == 0 })
	rejected, err := rdb.XRange(t.Context(), "events:rejected", "-", "+").Result()
	check(t, err)
	var why []string
	for _, e := range rejected {
		why = append(why, e.Values["reason"].(string))
	}
	if len(why) != 7 || why[0] != `pushlet: invalid push: unknown field "text"` || why[1] != "pushlet: invalid push: neither topic nor user" || rejected[0].Values["field text"] != "x" {
		t.Errorf("rejected %q, %v", why, rejected[0].Values)
	}
	a, b := sites[0].p.Stats(), sites[1].p.Stats()
	if n := a.Ingested + b.Ingested; n != 605 {
		t.Errorf("%d ingested, want 605", n)
	}
	if n := a.Rejected + b.Rejected; n != 7 {
		t.Errorf("%d rejected, want 7", n)
	}
}

// deadly cuts an instance off Redis for good, as if it had died, at a certain command.
type deadly struct {
	command string
	after   bool // it is executed, but there is no answer
	at      atomic.Int64
	dead    atomic.Bool
}

var errDead = errors.New("the instance is dead")

func (d *deadly) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.dead.Load() {
		return nil, errDead
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	return &deadlyConn{conn, d}, err
}

type deadlyConn struct {
	net.Conn
	d *deadly
}

func (c *deadlyConn) Write(b []byte) (n int, err error) {
	dies := bytes.Contains(bytes.ToLower(b), []byte("\r\n"+c.d.command+"\r\n")) && c.d.at.Add(-1) == 0
	if dies && c.d.after {
		n, err = c.Conn.Write(b)
		time.Sleep(100 * time.Millisecond) // it is on its way, and no answer may come
	}
	if dies {
		c.d.dead.Store(true)
	}
	if c.d.dead.Load() {
		_ = c.Close()
		return n, cmp.Or(err, errDead)
	}
	return c.Conn.Write(b)
}

func (c *deadlyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.d.dead.Load() {
		_ = c.Close()
		return 0, errDead
	}
	return n, err
}

// TestIngestDeath: each entry is published once, wherever the instance dies that took it.
func TestIngestDeath(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]*deadly{
		"having read":              {command: "xreadgroup", after: true},
		"publishing":               {command: "evalsha"},
		"having published":         {command: "evalsha", after: true},
		"removing":                 {command: "xack"},
		"having removed":           {command: "xack", after: true},
		"having removed the other": {command: "pexpire"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, client := standalone(t)
			rdb := server.Client()
			d.at.Store(1 << 40)
			mortal := server.Client(func(o *redis.Options) { o.Dialer, o.DialerRetries = d.dial, 1 })
			dies := newSite(t, withOptions(pushlet.WithRedis(mortal), pushlet.WithIngest("events")))
			dies.ready(t)
			add(t, rdb, "events", "topic", "a", "data", "first")
			eventually(t, "it leads", func() bool { return dies.p.Stats().Ingested == 1 })
			lives := instances(t, 1, client, pushlet.WithIngest("events"))[0]
			st, _, _ := lives.connect(t, "topic=a&topic=b&topic=c", "")
			const entries = 500
			d.at.Store(3)
			for i := range entries {
				add(t, rdb, "events", "topic", string(rune('a'+i%3)), "data", i)
			}
			st.expectNumbers(0, entries, 3)
			if !d.dead.Load() {
				t.Error("it did not die")
			}
			eventually(t, "the stream to be empty", func() bool { return rdb.XLen(t.Context(), "events").Val() == 0 })
			check(t, lives.p.PublishToAll("", "the end"))
			st.expectMessages("the end")
		})
	}
}

// TestIngestFlush: a stream that is gone begins anew.
func TestIngestFlush(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	rdb := server.Client()
	s := instances(t, 1, client, pushlet.WithIngest("events"))[0]
	add(t, rdb, "events", "topic", "a", "data", "1")
	eventually(t, "the first", func() bool { return s.p.Stats().Ingested == 1 })
	check(t, rdb.FlushAll(t.Context()).Err())
	add(t, rdb, "events", "topic", "a", "data", "2")
	eventually(t, "the second", func() bool { return s.p.Stats().Ingested == 2 })
}

func note(payload string) (pushlet.Push, error) {
	var n struct{ Topic, Data string }
	if err := json.Unmarshal([]byte(payload), &n); err != nil {
		return pushlet.Push{}, err
	}
	if n.Data == "panic" {
		panic("no")
	}
	return pushlet.Push{Topics: []string{n.Topic}, Events: []pushlet.Event{{Data: n.Data}}}, nil
}

// TestBridge: what comes on a channel is published once, by one of the instances, and by the
// next when that one stops.
func TestBridge(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	rdb := server.Client()
	sites := instances(t, 3, client, pushlet.WithBridge("notes", note))
	st, _, _ := sites[2].connect(t, "topic=a&topic=b", "")
	send := func(from, to int) {
		for i := from; i < to; i++ {
			check(t, rdb.Publish(t.Context(), "notes", fmt.Sprintf(`{"topic":%q,"data":"%d"}`, string(rune('a'+i%2)), i)).Err())
		}
	}
	heard := func(n int64) {
		t.Helper()
		eventually(t, "they all listen", func() bool { return rdb.PubSubNumSub(t.Context(), "notes").Val()["notes"] == n })
		eventually(t, "one leads", func() bool { return rdb.Exists(t.Context(), "pushlet{0}:lead").Val() == 1 })
	}
	// Until one has said that it leads and heard so, what is sent may be left out.
	begin := func(word string) {
		t.Helper()
		seen := make(chan struct{})
		go func() {
			for {
				if rdb.Publish(context.Background(), "notes", fmt.Sprintf(`{"topic":"a","data":%q}`, word)).Err() != nil {
					return
				}
				select {
				case <-seen:
					rdb.Publish(context.Background(), "notes", fmt.Sprintf(`{"topic":"a","data":"%s over"}`, word))
					return
				default:
				}
			}
		}()
		e := st.next()
		close(seen)
		for ; e.data == word; e = st.next() {
		}
		if e.data != word+" over" {
			t.Fatalf("%v", e)
		}
	}
	heard(3)
	begin("one")
	send(0, 300)
	st.expectNumbers(0, 300, 2)
	check(t, rdb.Publish(t.Context(), "notes", `{`).Err())
	check(t, rdb.Publish(t.Context(), "notes", `{"topic":"a","data":"panic"}`).Err())
	check(t, rdb.Publish(t.Context(), "notes", `{"data":"no topic"}`).Err())
	rejected := func() (n uint64) {
		for _, s := range sites {
			n += s.p.Stats().Rejected
		}
		return n
	}
	eventually(t, "three rejected", func() bool { return rejected() == 3 })

	// The one that leads stops: another goes on, and nothing comes twice.
	leader := slices.IndexFunc(sites, func(s *site) bool { return s.p.Stats().Bridged > 0 })
	if leader == 2 {
		st.close()
		st, _, _ = sites[0].connect(t, "topic=a&topic=b", "")
	}
	check(t, sites[leader].p.Stop())
	heard(2)
	begin("two")
	send(300, 600)
	st.expectNumbers(300, 600, 2)
}

// TestBridgeFirst: nothing is left out from when the instances are ready.
func TestBridgeFirst(t *testing.T) {
	t.Parallel()
	for range 10 {
		server, client := standalone(t)
		sites := instances(t, 2, client, pushlet.WithBridge("notes", note))
		check(t, server.Client().Publish(t.Context(), "notes", `{"topic":"a","data":"1"}`).Err())
		published := func() bool { return sites[0].p.Stats().Bridged+sites[1].p.Stats().Bridged == 1 }
		eventually(t, "the first", published)
	}
}

// late lets what comes over the connections that listen to a channel wait.
type late struct {
	channel string
	wait    atomic.Pointer[chan struct{}] // until it is closed
}

func (l *late) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	return &lateConn{Conn: conn, l: l}, err
}

type lateConn struct {
	net.Conn
	l       *late
	listens atomic.Bool
}

func (c *lateConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("\r\nsubscribe\r\n")) && bytes.Contains(b, []byte("\r\n"+c.l.channel+"\r\n")) {
		c.listens.Store(true)
	}
	return c.Conn.Write(b)
}

func (c *lateConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if wait := c.l.wait.Load(); wait != nil && c.listens.Load() {
		<-*wait
	}
	return n, err
}

// TestBridgeTakeOver: who takes the lease does not publish what comes late, and was published
// by the one before.
func TestBridgeTakeOver(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	rdb := server.Client()
	first := instances(t, 1, client, pushlet.WithBridge("notes", note))[0]
	l := &late{channel: "notes"}
	second := instances(t, 1, func() redis.UniversalClient {
		return server.Client(func(o *redis.Options) { o.Dialer = l.dial })
	}, pushlet.WithBridge("notes", note))[0]
	st, _, _ := second.connect(t, "topic=a", "")
	held := make(chan struct{})
	l.wait.Store(&held)
	for i := range 10 {
		check(t, rdb.Publish(t.Context(), "notes", fmt.Sprintf(`{"topic":"a","data":"%d"}`, i)).Err())
	}
	st.expectNumbers(0, 10, 1)
	leader := rdb.Get(t.Context(), "pushlet{0}:lead").Val()
	check(t, first.p.Stop())
	eventually(t, "the other leads", func() bool {
		now := rdb.Get(t.Context(), "pushlet{0}:lead").Val()
		return now != "" && now != leader
	})
	l.wait.Store(nil)
	close(held)
	eventually(t, "the other publishes", func() bool {
		check(t, rdb.Publish(t.Context(), "notes", `{"topic":"a","data":"new"}`).Err())
		return second.p.Stats().Bridged > 0
	})
	if e := st.next(); e.data != "new" {
		t.Errorf("%v comes again", e)
	}
}

// TestBridgeDeaf: an instance that may not listen to the channel is not ready.
func TestBridgeDeaf(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.ACLUser("app", "secret", "~* &pushlet* +@all"))
	client := server.Client(func(o *redis.Options) { o.Username, o.Password = "app", "secret" })
	s := newSite(t, withOptions(pushlet.WithRedis(client), pushlet.WithBridge("notes", note)))
	eventually(t, "it says so", func() bool {
		err := s.p.Ready()
		return errors.Is(err, pushlet.ErrUnavailable) && strings.Contains(err.Error(), `channel "notes"`) && strings.Contains(err.Error(), "NOPERM")
	})
	check(t, server.Client().Do(t.Context(), "ACL", "SETUSER", "app", "&notes").Err())
	s.ready(t)
}

func TestIngestNeedsRedis(t *testing.T) {
	for _, o := range []pushlet.Option{pushlet.WithIngest("x"), pushlet.WithBridge("x", note), pushlet.WithIngest(""), pushlet.WithBridge("x", nil)} {
		p := pushlet.New(pushlet.WithLogger(discard), o)
		if err := p.Start(); err == nil {
			t.Error("was started")
			check(t, p.Stop())
		}
	}
}

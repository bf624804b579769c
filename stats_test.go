package pushlet

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestReasonsAreCounted finds every reason of errors.go in one of the lists.
func TestReasonsAreCounted(t *testing.T) {
	t.Parallel()
	f, err := parser.ParseFile(token.NewFileSet(), "errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		name := spec.Names[0].Name
		value, ok := spec.Values[0].(*ast.BasicLit)
		if !ok {
			return true
		}
		why, err := strconv.Unquote(value.Value)
		if err != nil {
			t.Fatal(err)
		}
		known := gapReasons[:]
		if strings.HasPrefix(name, "Reason") {
			known = endReasons[:]
		}
		if !slices.Contains(known, Reason(why)) {
			t.Errorf("%s is not counted by itself", name)
		}
		found++
		return true
	})
	if want := len(endReasons) + len(gapReasons); found != want {
		t.Errorf("found %d reasons, want %d", found, want)
	}
}

// TestUnknownReasons: whatever reasons there are, the maps do not grow.
func TestUnknownReasons(t *testing.T) {
	t.Parallel()
	p := New()
	for i := range 1000 {
		p.counters.ended.add(Reason(fmt.Sprint("reason ", i)), 1)
		p.counters.gaps.add(Reason(fmt.Sprint("reason ", i)), 2)
	}
	p.counters.ended.add(ReasonIdle, 3)
	s := p.Stats()
	if len(s.Ended) != len(endReasons)+1 || s.Ended["other"] != 1000 || s.Ended[ReasonIdle] != 3 {
		t.Errorf("ended: %v", s.Ended)
	}
	if len(s.GapReasons) != len(gapReasons)+1 || s.GapReasons["other"] != 2000 || s.Gaps != 2000 {
		t.Errorf("gaps: %v, sum %d", s.GapReasons, s.Gaps)
	}
}

// TestStatsString: one line, the same each time.
func TestStatsString(t *testing.T) {
	t.Parallel()
	s := Stats{Clients: 3, Undelivered: 7, Gaps: 2, RedisDown: 1500 * time.Millisecond, Ended: map[Reason]uint64{ReasonSlow: 2, ReasonIdle: 1, ReasonShutdown: 0},
		UndeliveredReasons: map[Reason]uint64{ReasonSlow: 7}, GapReasons: map[Reason]uint64{gapTrimmed: 1, gapExpired: 1}}
	const want = "clients=3 sse=0 websocket=0 users=0 topics=0 behind=0 queued=0 queued_bytes=0 inbox=0 connected=0 refused=0 " +
		"ended=3(idle:1 slow_consumer:2) published=0 delivered=0 undelivered=7(slow_consumer:7) bytes=0 resumes=0 " +
		"gaps=2(expired:1 trimmed:1) fell_behind=0 slow=0 write_timeouts=0 reports_dropped=0 " +
		"distributed=false redis_down=1.5s publish_queue=0 publish_queue_bytes=0 redis_reads=0 rollbacks=0 " +
		"ingested=0 bridged=0 rejected=0 stored=false store_down=0s store_reads=0"
	for range 20 {
		if got := fmt.Sprint(s); got != want {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
	}
}

// TestStatsQueued: what waits for clients is counted, also where the broker lists them in
// several steps.
func TestStatsQueued(t *testing.T) {
	t.Parallel()
	const clients, messages = censusClients + 1000, 3
	p := New()
	if s := p.Stats(); s.Queued != 0 || s.Topics != 0 {
		t.Errorf("before Start: %v", s)
	}
	p.broker.verify = false // it takes too long with so many
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	var all []*client
	for range clients {
		c := newClient(Client{ID: newClientID()}, formBinary, nullTransport{}, p.env, time.Now())
		c.wake = make(chan struct{}, 1) // which nobody listens to
		p.broker.send(&attach{client: c, first: []*subscribe{{client: c, topic: "a"}}})
		all = append(all, c)
	}
	before := p.Stats()
	for range messages {
		if err := p.Publish("a", "message", "hello"); err != nil {
			t.Fatal(err)
		}
	}
	s := p.Stats()
	if s.Queued != clients*messages || s.QueuedBytes <= before.QueuedBytes || s.Topics != 1 {
		t.Errorf("queued: %v, want %d", s, clients*messages)
	}
	for _, c := range all {
		p.broker.send(&detach{c, time.Now()})
	}
	if s := p.Stats(); s.Queued != 0 {
		t.Errorf("without clients: %v", s)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if s := p.Stats(); s.Queued != 0 || s.Published != messages {
		t.Errorf("after Stop: %v", s)
	}
}

// TestReportsAreBounded: what hooks that do not keep up miss is counted, and what they did
// not miss they are told before Shutdown returns, also after one has panicked.
func TestReportsAreBounded(t *testing.T) {
	t.Parallel()
	const more, each = 10, 3
	calls := 0
	p := New(WithLogger(func() Logger { return silent{} }), WithHooks(Hooks{OnUndelivered: func(Undelivered) {
		if calls++; calls == 1 {
			panic("the first")
		}
	}}))
	for range maxReports + more { // nobody takes them before Start
		p.report(&undeliveredReport{frames: []*frame{{}, {}, {}}})
	}
	if got := p.Stats().ReportsDropped; got != more*each {
		t.Errorf("%d calls left out, want %d", got, more*each)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if calls != maxReports*each {
		t.Errorf("%d calls, want %d", calls, maxReports*each)
	}
}

type silent struct{}

func (silent) Println(...any)               {}
func (silent) WithField(string, any) Logger { return silent{} }

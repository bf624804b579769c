package chaostest

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet"
)

const (
	// patience is how long anything may take that should happen soon. A run that passes
	// never waits that long.
	patience = 45 * time.Second
	// silent is after how long without a heartbeat, of which there is one a second, a
	// client complains. It is more than an instance lets clients wait for Redis.
	silent = 20 * time.Second
	// late is by how much a Publish may return after its context is done.
	late = 2 * time.Second

	everybody = "*" // the topic of broadcasts
)

// ----- a run

// settings are what one run does differently from others. The zero value of a field that
// has a default stands for it.
type settings struct {
	redis      func(i int) redis.UniversalClient // of instance i; called by the test's goroutine
	start      func(w *world, i int) instance    // nil: in this process, with that client
	options    []pushlet.Option                  // of instances in this process
	instances  int                               // 3
	topics     int                               // 4
	clients    int                               // 9: SSE with one topic, SSE with several and WebSocket in turn
	publishers int                               // 16
	pause      time.Duration                     // 60 ms, of a publisher between messages, on average
	size       int                               // 100 bytes, at most, of padding
	cuts       time.Duration                     // 300 ms between cut connections, on average; negative: none are cut
	whole      bool                              // the fault loses nothing: no client may be told of a gap
	reasons    []string                          // of gaps that may be told; nil: any
	unacked    bool                              // nothing is acknowledged, since no replica does it
	private    int                               // so many instances only publish: no client goes there
}

// A world is one run: instances that share a Redis, publishers and clients. The fault is
// up to the test.
type world struct {
	settings
	t         *testing.T
	seed      uint64
	begin     time.Time
	names     []string // of topics
	instances []instance
	clients   []*client

	ctx    context.Context //nolint:containedctx // of everything that runs; ends with the test
	cancel context.CancelFunc
	work   sync.WaitGroup
	calm   chan struct{} // closed: no more cuts
	quiet  atomic.Bool   // nothing is published
	stop   func()

	mu         sync.Mutex
	faultBegun time.Duration // and faultEnded: set by the test's goroutine
	faultEnded time.Duration
	messages   []message // by number
	broken     []violation
	logged     []string
	unready    map[string]time.Duration // how long each instance was not, while the fault lasted
	ticked     time.Duration            // when watch last did something
	stalls     []pastStall
	cut        int
}

// newWorld starts the instances and waits until they are ready. All ends with the test.
func newWorld(t *testing.T, s settings) *world {
	t.Helper()
	w := &world{settings: s, t: t, seed: rand.Uint64(), begin: time.Now(), calm: make(chan struct{}), unready: map[string]time.Duration{}}
	if fixed := os.Getenv("PUSHLET_CHAOS_SEED"); fixed != "" {
		var err error
		if w.seed, err = strconv.ParseUint(fixed, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	orElse(&w.settings.instances, 3)
	orElse(&w.topics, 4)
	orElse(&w.settings.clients, 9)
	orElse(&w.publishers, 16)
	orElse(&w.pause, 60*time.Millisecond)
	orElse(&w.size, 100)
	orElse(&w.cuts, 300*time.Millisecond)
	if w.start == nil {
		w.start = func(w *world, i int) instance { return newLocal(w, i) }
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.stop = sync.OnceFunc(w.end)
	t.Cleanup(w.stop)
	for i := range w.topics {
		w.names = append(w.names, fmt.Sprintf("topic/%d", i))
	}
	for i := range w.settings.instances {
		w.instances = append(w.instances, w.start(w, i))
	}
	w.ticked = w.since()
	w.work.Go(w.watch)
	w.ready()
	return w
}

func orElse[T comparable](value *T, fallback T) {
	var zero T
	if *value == zero {
		*value = fallback
	}
}

// since is the time since the run began.
func (w *world) since() time.Duration { return time.Since(w.begin) }

// random returns a source of random numbers for one goroutine.
func (w *world) random(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, stream)) }

// lasts is how long a fault lasts: so long with -short, so long without.
func lasts(short, long time.Duration) time.Duration {
	if testing.Short() {
		return short
	}
	return long
}

// run lets publishers and clients do their work, calls fault, which injects one and ends
// it, and then checks that everything settles and what everybody got.
func (w *world) run(fault func()) {
	w.t.Helper()
	w.follow()
	var publishers sync.WaitGroup
	defer publishers.Wait()
	publishing, stopPublishing := context.WithCancel(w.ctx)
	defer stopPublishing()
	for i := range w.publishers {
		publishers.Go(func() { w.publishAll(publishing, w.random(uint64(1000+i))) })
	}
	w.allHave("a message", got, 0)
	if w.cuts > 0 {
		w.work.Go(w.cutAll)
	}
	time.Sleep(lasts(300*time.Millisecond, time.Second))

	w.mu.Lock()
	w.faultBegun = w.since()
	w.mu.Unlock()
	fault()
	w.mu.Lock()
	w.faultEnded = w.since()
	w.mu.Unlock()

	time.Sleep(lasts(500*time.Millisecond, 2*time.Second))
	stopPublishing()
	publishers.Wait()
	w.settle()
	w.stop()
	w.logFigures()
}

// follow starts the clients. The first WebSocket client follows all topics.
func (w *world) follow() {
	rng := w.random(1)
	for i := range w.settings.clients {
		c := &client{w: w, rng: w.random(uint64(2000 + i)), pos: map[string]string{}}
		topics := slices.Clone(w.names)
		rng.Shuffle(len(topics), func(i, j int) { topics[i], topics[j] = topics[j], topics[i] })
		session := c.followSSE
		switch i % 3 {
		case 0:
			c.name, c.topics = fmt.Sprintf("sse%d", i), topics[:1]
		case 1:
			c.name, c.topics = fmt.Sprintf("sse%d", i), topics[:2+rng.IntN(len(topics)-1)]
		case 2:
			c.name, session = fmt.Sprintf("ws%d", i), c.followWebSocket
			if c.topics = topics; i > 2 {
				c.topics = topics[:1+rng.IntN(len(topics))]
			}
		}
		w.clients = append(w.clients, c)
		w.work.Go(func() { c.run(session) })
	}
}

// watch notes which instances are ready while the fault lasts, and when the machine, a
// virtual one perhaps, has stood still: then nobody can be blamed for being late.
func (w *world) watch() {
	const step = 20 * time.Millisecond
	for w.ctx.Err() == nil {
		pause(w.ctx, step)
		w.mu.Lock()
		now := w.since()
		if d := now - w.ticked; d > stall {
			w.stalls = append(w.stalls, pastStall{now, d})
			w.logged = append(w.logged, fmt.Sprintf("%.3f the machine has stood still for %v", now.Seconds(), d))
		}
		w.ticked = now
		faulty := w.faultBegun > 0 && w.faultEnded == 0
		w.mu.Unlock()
		for _, in := range w.instances {
			if _, ok := in.(*local); ok && faulty && in.ready() != nil {
				w.mu.Lock()
				w.unready[in.name()] += step
				w.mu.Unlock()
			}
		}
	}
}

// stall is for how long nothing runs before the machine is said to have stood still.
const stall = 3 * time.Second

type pastStall struct{ until, lasted time.Duration }

// stoodStill is for how long the machine has stood still since a time. The caller holds mu.
func (w *world) stoodStill(from time.Duration) (sum time.Duration) {
	for _, s := range w.stalls {
		if s.until > from {
			sum += s.lasted
		}
	}
	if d := w.since() - w.ticked; d > stall {
		sum += d // watch has yet to see it
	}
	return sum
}

// cutAll cuts connections of clients at random.
func (w *world) cutAll() {
	rng := w.random(2)
	for {
		select {
		case <-w.calm:
			return
		case <-w.ctx.Done():
			return
		case <-time.After(time.Duration(rng.ExpFloat64() * float64(w.cuts))):
		}
		if w.clients[rng.IntN(len(w.clients))].cut(rng.IntN(2) == 0) {
			w.mu.Lock()
			w.cut++
			w.mu.Unlock()
		}
	}
}

// publishAll is one publisher: it publishes to random topics through random instances.
func (w *world) publishAll(ctx context.Context, rng *rand.Rand) {
	for ctx.Err() == nil {
		topic := w.names[rng.IntN(len(w.names))]
		if rng.IntN(10) == 0 {
			topic = everybody
		}
		if in := up(rng, w.instances); in != nil && !w.quiet.Load() {
			limit := 200*time.Millisecond + time.Duration(rng.Int64N(int64(3*time.Second)))
			w.publish(in, topic, rng.IntN(w.size), limit)
		}
		pause(ctx, time.Duration(rng.ExpFloat64()*float64(w.pause)))
	}
}

// up returns an instance that runs, nil if there is none.
func up(rng *rand.Rand, instances []instance) instance {
	first := rng.IntN(len(instances))
	for i := range instances {
		if in := instances[(first+i)%len(instances)]; in.url() != "" {
			return in
		}
	}
	return nil
}

// hush has the publishers pause, and waits until they do, or go on.
func (w *world) hush(quiet bool) {
	w.t.Helper()
	w.quiet.Store(quiet)
	w.eventually("all calls of Publish return", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return !quiet || !slices.ContainsFunc(w.messages, func(m message) bool { return m.outcome == pending })
	})
}

// publish publishes a message and keeps what became of it.
func (w *world) publish(in instance, topic string, size int, limit time.Duration) message {
	w.mu.Lock()
	n := len(w.messages)
	w.messages = append(w.messages, message{n: n, topic: topic, via: in.name(), begun: w.since()})
	w.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), limit)
	err := in.publish(ctx, topic, fmt.Sprint(n, " ", strings.Repeat("x", size)))
	cancel()

	w.mu.Lock()
	defer w.mu.Unlock()
	m := &w.messages[n]
	m.ended, m.outcome = w.since(), acked
	if err != nil {
		m.err = err.Error()
		refuse := slices.ContainsFunc([]error{pushlet.ErrUnavailable, pushlet.ErrOverloaded, pushlet.ErrClosed, pushlet.ErrNotStarted},
			func(kind error) bool { return errors.Is(err, kind) })
		m.outcome = uncertain
		if refuse {
			m.outcome = refused
		}
		if refuse == errors.Is(err, pushlet.ErrUncertain) {
			w.broken = append(w.broken, violation{text: fmt.Sprintf("Publish says neither that the message was published nor that it was not, or both: %v", m)})
		}
	}
	if took := m.ended - m.begun; took > limit+late+w.stoodStill(m.begun) {
		w.broken = append(w.broken, violation{text: fmt.Sprintf("Publish took %v with a context of %v: %v", took, limit, m)})
	}
	return *m
}

// settle waits until all is well again, publishes to each topic through each instance, and
// waits until every client has the last message of each, and has got, or been told of the
// loss of, all before.
func (w *world) settle() {
	w.t.Helper()
	close(w.calm)
	w.ready()
	// A client that comes back with a position from a log that is gone is told so, and need
	// not get what the new one has by then: all have to be there before the last messages.
	w.eventually("every client follows its topics", func() bool {
		return !slices.ContainsFunc(w.clients, func(c *client) bool { return !c.isThere() })
	})
	load := w.published(0, w.since()).published
	var last []message
	for _, topic := range append(slices.Clone(w.names), everybody) {
		var m message
		for _, in := range w.instances {
			w.eventually("a message to "+topic+" through "+in.name()+" is acknowledged", func() bool {
				m = w.publish(in, topic, 0, 5*time.Second)
				return m.outcome == acked || w.unacked && m.outcome == uncertain
			})
		}
		last = append(last, m)
	}
	// A little longer than it needs, for what comes late and should not.
	after := lasts(300*time.Millisecond, 3*time.Second)
	var found []violation
	var good time.Time
	for begin := time.Now(); ; time.Sleep(250 * time.Millisecond) {
		h := w.history()
		found = h.check()
		for _, m := range last {
			found = append(found, h.lacking(m)...)
		}
		if len(found) == 0 && good.IsZero() {
			good = time.Now()
		}
		limit := patience
		hopeless := slices.DeleteFunc(slices.Clone(found), func(v violation) bool { return v.curable })
		if len(hopeless) > 0 { // it has failed: the rest may take so long
			found = append(hopeless, slices.DeleteFunc(found, func(v violation) bool { return !v.curable })...)
			limit = patience / 10
		}
		if !good.IsZero() && time.Since(good) > after || time.Since(begin) > limit {
			break
		}
	}
	w.report(found)
	if w.received(w.faultBegun, load) == 0 {
		w.t.Error("nobody has got a message since the fault began: the run proves nothing")
	}
}

// report fails the test if there are violations.
func (w *world) report(found []violation) {
	w.t.Helper()
	w.mu.Lock()
	found = append(slices.Clone(w.broken), found...)
	logged := w.logged
	w.mu.Unlock()
	if len(found) == 0 {
		return
	}
	const most = 6
	var b strings.Builder
	fmt.Fprintf(&b, "%d violations; PUSHLET_CHAOS_SEED=%d; the fault was from %.3f to %.3f\n",
		len(found), w.seed, w.faultBegun.Seconds(), w.faultEnded.Seconds())
	for _, v := range found[:min(most, len(found))] {
		fmt.Fprintf(&b, "\n- %s\n", v.text)
	}
	if len(found) > most {
		fmt.Fprintf(&b, "\nand %d more, in short:\n", len(found)-most)
		for _, v := range found[most:min(len(found), 40)] {
			first, _, _ := strings.Cut(v.text, "\n")
			fmt.Fprintf(&b, "- %s\n", first)
		}
	}
	fmt.Fprintf(&b, "\nthe instances:\n")
	for _, in := range w.instances {
		fmt.Fprintf(&b, "  %s: ready: %v; %s\n", in.name(), in.ready(), in.stats())
	}
	for _, line := range logged[max(0, len(logged)-60):] {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	if dir := os.Getenv("PUSHLET_CHAOS_DUMP"); dir != "" {
		name := filepath.Join(dir, strings.NewReplacer("/", "_", " ", "_").Replace(w.t.Name())+".txt")
		if err := os.WriteFile(name, []byte(w.history().dump()), 0o600); err != nil {
			w.t.Error(err)
		}
		fmt.Fprintf(&b, "  all of it is in %s\n", name)
	}
	w.t.Error(b.String())
}

// received counts what clients have got since a time, of the messages with lower numbers.
func (w *world) received(from time.Duration, below int) (n int) {
	for _, c := range w.clients {
		c.mu.Lock()
		for _, r := range c.log {
			if r.kind == got && r.at >= from && r.n < below {
				n++
			}
		}
		c.mu.Unlock()
	}
	return n
}

// A tally counts what became of messages.
type tally struct {
	published, acked, refused, uncertain int
	slowest                              time.Duration
}

func (s tally) String() string {
	return fmt.Sprintf("published=%d acknowledged=%d unavailable=%d uncertain=%d slowest=%v",
		s.published, s.acked, s.refused, s.uncertain, s.slowest.Round(time.Millisecond))
}

// published counts the messages whose publishing began in that time.
func (w *world) published(from, to time.Duration) (s tally) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.messages {
		if m.begun < from || m.begun > to {
			continue
		}
		s.published++
		switch m.outcome {
		case acked:
			s.acked++
		case refused:
			s.refused++
		case uncertain:
			s.uncertain++
		}
		s.slowest = max(s.slowest, m.ended-m.begun)
	}
	return s
}

// during counts the messages that were published while the fault lasted.
func (w *world) during() tally { return w.published(w.faultBegun, w.faultEnded) }

// expectGap fails the test if no client was told of a gap of that reason.
func (w *world) expectGap(reason string) {
	w.t.Helper()
	for _, c := range w.clients {
		if slices.ContainsFunc(c.log, func(r record) bool { return r.kind == gap && r.note == reason }) {
			return
		}
	}
	w.t.Errorf("no client was told of a gap of reason %q", reason)
}

// counted reports whether an instance has counted a gap of that reason.
func (w *world) counted(reason string) bool {
	return slices.ContainsFunc(w.instances, func(in instance) bool {
		return regexp.MustCompile(`gaps=[0-9]+\([^)]*\b` + reason + ":").MatchString(in.stats())
	})
}

// noticed reports whether an instance in this process has lost its connection to Redis.
func (w *world) noticed() bool { return w.logs("connection lost") > 0 }

// delay is how long the slowest, one in twenty, of the messages took to a client that were
// published while the fault lasted.
func (w *world) delay() time.Duration {
	var all []time.Duration
	for _, c := range w.clients {
		for _, r := range c.log {
			if r.kind != got {
				continue
			}
			if m := w.messages[r.n]; m.begun > w.faultBegun && m.begun < w.faultEnded {
				all = append(all, r.at-m.begun)
			}
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)*19/20]
}

// missed counts what clients have missed for good, of what was acknowledged after they
// had come: they were told of a gap each time.
func (h *history) missed() (n int) {
	for i := range h.clients {
		v := &h.clients[i]
		for _, topic := range append([]string{everybody}, v.topics...) {
			th := h.thread(v, topic)
			for _, m := range h.messages {
				if !th.has[m.n] && m.topic == topic && m.outcome == acked && th.joined >= 0 && m.begun > th.joined {
					n++
				}
			}
		}
	}
	return n
}

func (w *world) logFigures() {
	gaps := make(map[string]int)
	reconnects := 0
	for _, c := range w.clients {
		for _, r := range c.log {
			switch r.kind {
			case gap:
				gaps[r.note]++
			case opened:
				reconnects++
			}
		}
	}
	w.t.Logf("%.1fs, fault %.1fs: %v received=%d missed=%d gaps=%v connects=%d cut=%d; during the fault: %v, not ready %v",
		w.since().Seconds(), (w.faultEnded - w.faultBegun).Seconds(), w.published(0, w.since()), w.received(0, len(w.messages)), w.history().missed(),
		gaps, reconnects, w.cut, w.during(), w.unready)
}

// ready waits until all instances are.
func (w *world) ready() {
	w.t.Helper()
	w.eventually("all instances are ready", func() bool {
		return !slices.ContainsFunc(w.instances, func(in instance) bool { return in.ready() != nil })
	})
}

// eventually waits until ok returns true.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for begin := w.since(); !ok(); time.Sleep(10 * time.Millisecond) {
		w.mu.Lock()
		took := w.since() - begin - w.stoodStill(begin)
		w.mu.Unlock()
		if took > patience {
			w.report([]violation{{text: fmt.Sprintf("not within %v: %s\n%s", patience, what, w.history().tails())}})
			w.t.FailNow()
		}
	}
}

// allHave waits until all clients have got something of a kind in each topic.
func (w *world) allHave(what string, kind kind, since time.Duration) {
	w.t.Helper()
	w.eventually("every client has "+what+" of each topic", func() bool {
		return !slices.ContainsFunc(w.clients, func(c *client) bool { return !c.hasAll(kind, since) })
	})
}

// end ends everything, the clients first.
func (w *world) end() {
	w.cancel()
	for _, c := range w.clients {
		c.cut(false)
	}
	w.work.Wait()
	for _, in := range w.instances {
		in.end()
	}
}

// complain notes what is wrong before the end.
func (w *world) complain(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.broken) < 50 {
		w.broken = append(w.broken, violation{text: fmt.Sprintf("at %.3f: ", w.since().Seconds()) + fmt.Sprintf(format, args...)})
	}
}

// history returns what has happened so far.
func (w *world) history() *history {
	h := &history{whole: w.whole, reasons: w.reasons}
	for _, c := range w.clients {
		c.mu.Lock()
		h.clients = append(h.clients, view{c.name, c.topics, slices.Clone(c.log)})
		c.mu.Unlock()
	}
	w.mu.Lock()
	h.messages = slices.Clone(w.messages) // after what was got of them
	w.mu.Unlock()
	return h
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// ----- an instance

// An instance is a Pushlet behind a web server. Its methods may be called by several at once.
type instance interface {
	name() string
	url() string // "" while it is down
	publish(ctx context.Context, topic, data string) error
	ready() error
	stats() string
	end()
}

// A local is an instance in this process.
type local struct {
	w      *world
	called string
	client redis.UniversalClient

	mu  sync.Mutex
	p   *pushlet.Pushlet
	srv *httptest.Server
	up  bool
}

func newLocal(w *world, i int) *local {
	l := &local{w: w, called: string(rune('a' + i)), client: w.redis(i)}
	l.begin()
	return l
}

// begin starts the instance, on a new port.
func (l *local) begin() {
	l.w.t.Helper()
	options := append([]pushlet.Option{
		pushlet.WithRedis(l.client),
		pushlet.WithLogger(func() pushlet.Logger { return &logger{l: l} }),
		pushlet.WithHistory(1<<20, 1<<28, time.Hour), // nothing is pushed out
		pushlet.WithRetry(50 * time.Millisecond),
	}, l.w.options...)
	p := pushlet.New(options...)
	if err := errors.Join(p.SetHeartbeatInterval(time.Second), p.Start()); err != nil {
		l.w.t.Fatal(err)
	}
	srv := httptest.NewServer(routes(p))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.p, l.srv, l.up = p, srv, true
}

func routes(p *pushlet.Pushlet) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/events", p.HandleSSE)
	mux.HandleFunc("/ws", p.HandleWebSocket)
	mux.HandleFunc("/ready", p.HandleReady)
	return mux
}

func (l *local) name() string { return l.called }

func (l *local) current() *pushlet.Pushlet {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.p
}

func (l *local) url() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up {
		return ""
	}
	return l.srv.URL
}

func (l *local) publish(ctx context.Context, topic, data string) error {
	return publishTo(ctx, l.current(), topic, data)
}

func publishTo(ctx context.Context, p *pushlet.Pushlet, topic, data string) error {
	if topic == everybody {
		return p.PublishToAllContext(ctx, "", data)
	}
	return p.PublishContext(ctx, topic, "", data)
}

func (l *local) ready() error { return l.current().Ready() }

func (l *local) stats() string { return l.current().Stats().String() }

// end stops the instance in good order.
func (l *local) end() {
	l.mu.Lock()
	was := l.up
	l.up = false
	l.mu.Unlock()
	if !was {
		return
	}
	if err := l.p.Stop(); err != nil {
		l.w.t.Errorf("instance %s: Stop: %v", l.called, err)
	}
	l.srv.Close()
}

// A logger keeps what an instance logs.
type logger struct {
	l      *local
	fields string
}

func (g *logger) Println(v ...any) {
	w := g.l.w
	line := fmt.Sprintf("%.3f %s: %s%s", w.since().Seconds(), g.l.called, strings.TrimSuffix(fmt.Sprintln(v...), "\n"), g.fields)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logged = append(w.logged, line)
}

func (g *logger) WithField(key string, value any) pushlet.Logger {
	return &logger{g.l, fmt.Sprintf("%s %s=%v", g.fields, key, value)}
}

// logs counts the lines in which the instances have logged a text.
func (w *world) logs(text string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, line := range w.logged {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// ----- a client

// A client follows topics, and comes back to a random instance, with its cursor, when its
// connection has ended. It keeps what it got.
type client struct {
	w      *world
	name   string
	topics []string // without everybody, which all follow

	// Of its goroutine.
	rng    *rand.Rand
	cursor string            // SSE: the last event ID
	pos    map[string]string // WebSocket: the last ID in each topic
	inGap  bool              // SSE: it was told that something is missing, but not yet what

	mu    sync.Mutex
	log   []record
	conn  net.Conn
	here  map[string]bool // topics that it follows on this connection
	beats int             // heartbeats so far
}

func (c *client) run(session func(url string) (why string)) {
	for c.w.ctx.Err() == nil {
		in := up(c.rng, c.w.instances[c.w.private:])
		if in == nil {
			pause(c.w.ctx, 20*time.Millisecond)
			continue
		}
		before := c.size()
		why := session(in.url())
		c.leave()
		if c.size() > before {
			c.note(record{kind: ended, note: why})
			c.rest(0, 100*time.Millisecond)
			if c.rng.IntN(8) == 0 { // for so long that instances may forget its topics
				c.rest(0, lasts(1500*time.Millisecond, 15*time.Second))
			}
		} else { // refused, or it has hardly begun
			c.rest(50*time.Millisecond, 250*time.Millisecond)
		}
	}
}

// rest waits for a time from least to most, but not longer than the faults last.
func (c *client) rest(least, most time.Duration) {
	select {
	case <-time.After(least + time.Duration(c.rng.Int64N(int64(most-least)))):
	case <-c.w.calm:
		pause(c.w.ctx, least)
	case <-c.w.ctx.Done():
	}
}

func (c *client) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.log)
}

func (c *client) note(r record) {
	r.at = c.w.since()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log = append(c.log, r)
}

func (c *client) complain(format string, args ...any) {
	c.w.complain(c.name+": "+format, args...)
}

// enter notes that the client follows a topic on this connection.
func (c *client) enter(topic string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.here == nil {
		c.here = make(map[string]bool)
	}
	c.here[topic] = true
}

// leave notes that it does not follow topics any more, all if none are given.
func (c *client) leave(topics ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(topics) == 0 {
		clear(c.here)
	}
	for _, topic := range topics {
		delete(c.here, topic)
	}
}

func (c *client) isHere(topic string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.here[topic]
}

// isThere reports whether the client follows all its topics on this connection.
func (c *client) isThere() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.here) == 1+len(c.topics)
}

// hasAll reports whether something of a kind has happened in each topic since a time.
func (c *client) hasAll(what kind, since time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := make(map[string]bool)
	for _, r := range c.log {
		if r.kind == what && r.at > since {
			seen[r.topic] = true
		}
	}
	return len(seen) == 1+len(c.topics)
}

// follows reports whether the client gets messages of a topic.
func (c *client) follows(topic string) bool {
	return topic == everybody || slices.Contains(c.topics, topic)
}

// dial connects to a server, so that cut can end it.
func (c *client) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
	if c.w.ctx.Err() != nil { // cut may have come too soon
		conn.Close()
	}
	return patientConn{conn}, nil
}

// A patientConn gives up when nothing comes for too long.
type patientConn struct{ net.Conn }

func (c patientConn) Read(b []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(silent))
	return c.Conn.Read(b)
}

// cut breaks the connection, if there is one; a hard cut is a reset.
func (c *client) cut(hard bool) bool {
	c.mu.Lock()
	conn := c.conn
	c.conn = nil
	c.mu.Unlock()
	if conn == nil {
		return false
	}
	if hard {
		_ = conn.(*net.TCPConn).SetLinger(0) // then it is a soft one
	}
	conn.Close()
	return true
}

// hangUp ends a session.
func (c *client) hangUp(conn net.Conn) {
	conn.Close()
	c.mu.Lock()
	c.conn = nil
	c.mu.Unlock()
}

// failed says why a connection has ended, and complains if it was silent.
func (c *client) failed(err error) string {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() && !c.w.excused(silent) {
		c.complain("nothing came for %v, not even a heartbeat", silent)
	}
	return err.Error()
}

// excused reports whether the machine has stood still of late.
func (w *world) excused(of time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stoodStill(w.since()-of-stall) > 0
}

func (c *client) beat() {
	c.mu.Lock()
	c.beats++
	c.mu.Unlock()
}

// got notes a message. Its topic is known by its number. The ID is that of a WebSocket
// message, or the cursor of an SSE message.
func (c *client) got(topic, data, id string) {
	cursor := id
	number, _, _ := strings.Cut(data, " ")
	n, err := strconv.Atoi(number)
	c.w.mu.Lock()
	known := err == nil && n >= 0 && n < len(c.w.messages)
	var want string
	if known {
		want = c.w.messages[n].topic
	}
	c.w.mu.Unlock()
	switch {
	case !known:
		c.complain("got a message that nobody has published: %.80q", data)
	case topic != "" && topic != want:
		c.complain("got message %d of topic %s as one of %s", n, want, topic)
	case !c.follows(want):
		c.complain("got message %d of topic %s, which it does not follow", n, want)
	default:
		if topic == "" {
			if id, err = positionIn(id, want); err != nil {
				c.complain("the cursor of message %d to %s, %q: %v", n, want, cursor, err)
			}
		}
		c.note(record{kind: got, topic: want, n: n, id: id})
	}
}

// positionIn reads a cursor, as cursor.go describes it, which is not meant to be read, but
// tells where a message is that has been published twice.
func positionIn(cursor, topic string) (id string, err error) {
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err == nil && (len(raw) == 0 || raw[0] != 1) {
		err = errors.New("it has another form")
	}
	if err != nil {
		return "", err
	}
	r := bytes.NewReader(raw[1:])
	number := func() (n uint64) {
		if err == nil {
			n, err = binary.ReadUvarint(r)
		}
		return n
	}
	topics, ms, seq := number(), number(), number()
	if id = fmt.Sprint(ms-number(), "-", seq^number()); topic == everybody {
		return id, err
	}
	h := fnv.New64a()
	io.WriteString(h, topic)
	const bits = 40
	want := (h.Sum64() ^ h.Sum64()>>bits) & (1<<bits - 1)
	for range topics {
		var hash [8]byte
		if err == nil {
			_, err = io.ReadFull(r, hash[8-bits/8:])
		}
		if id = fmt.Sprint(ms-number(), "-", seq^number()); binary.BigEndian.Uint64(hash[:]) == want {
			return id, err
		}
	}
	return "", cmp.Or(err, errors.New("it has not this topic"))
}

// gap notes that messages of a topic are missing.
func (c *client) gap(topic, reason, id string) {
	if !c.follows(topic) {
		c.complain("was told of a gap in %q, which it does not follow", topic)
	}
	c.note(record{kind: gap, topic: topic, id: id, note: reason})
}

// An event is one of an event stream.
type event struct{ name, data, id string }

// followSSE is one connection to an event stream, until it ends.
func (c *client) followSSE(base string) (why string) {
	req, err := http.NewRequestWithContext(c.w.ctx, http.MethodGet, base+"/events?"+url.Values{"topic": c.topics}.Encode(), nil)
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Accept", "text/event-stream")
	if c.cursor != "" {
		req.Header.Set("Last-Event-ID", c.cursor)
	}
	conn, err := c.dial(c.w.ctx, "tcp", req.URL.Host)
	if err != nil {
		return err.Error()
	}
	defer c.hangUp(conn)
	if err := req.Write(conn); err != nil {
		return err.Error()
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return c.failed(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		c.complain("an event stream was refused with status %d", resp.StatusCode)
		return resp.Status
	}
	lines := bufio.NewReaderSize(resp.Body, 64<<10)
	e := event{id: c.cursor}
	data := 0 // lines of data
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return c.failed(err)
		}
		line = strings.TrimSuffix(line, "\n")
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			c.cursor = e.id
			if data > 0 {
				c.onEvent(e)
			}
			e, data = event{id: e.id}, 0
		case field == "":
			c.beat()
		case field == "id":
			e.id = value
		case field == "event":
			e.name = value
		case field == "data":
			if data++; data > 1 {
				e.data += "\n"
			}
			e.data += value
		}
	}
}

func (c *client) onEvent(e event) {
	if e.id == "" {
		c.complain("event %q has no id", e.name)
	}
	switch e.name {
	case "pushlet.connected":
		var hello struct {
			Topics  []string
			Resumed bool
		}
		if err := json.Unmarshal([]byte(e.data), &hello); err != nil || !slices.Equal(hello.Topics, c.topics) {
			c.complain("pushlet.connected is %q: %v", e.data, err)
		}
		c.inGap = false
		for _, topic := range append([]string{everybody}, c.topics...) {
			c.enter(topic)
		}
		if c.size() == 0 {
			c.note(record{kind: opened})
			for _, topic := range append([]string{everybody}, c.topics...) {
				c.note(record{kind: joined, topic: topic})
			}
			break
		}
		c.note(record{kind: opened, note: fmt.Sprint("resumed=", hello.Resumed)})
		c.inGap = !hello.Resumed
	case "pushlet.gap":
		var g struct {
			Topics []string
			Reason string
		}
		if err := json.Unmarshal([]byte(e.data), &g); err != nil || len(g.Topics) == 0 || g.Reason == "" {
			c.complain("pushlet.gap is %q: %v", e.data, err)
		}
		c.inGap = false
		for _, topic := range g.Topics {
			c.gap(topic, g.Reason, "")
		}
	default:
		if c.inGap {
			c.complain("was not resumed, but gets %.80q and not pushlet.gap", e.data)
			c.inGap = false
		}
		c.got("", e.data, e.id)
	}
}

// A frame is what a WebSocket client is sent.
type frame struct{ Topic, Event, Data, ID string }

// followWebSocket is one WebSocket connection, until it ends. It follows the broadcasts by
// name, before all else, so that it can resume them. Now and then it leaves a topic and
// comes back to it.
func (c *client) followWebSocket(base string) (why string) {
	d := websocket.Dialer{NetDialContext: c.dial, HandshakeTimeout: silent}
	ws, resp, err := d.DialContext(c.w.ctx, "ws"+strings.TrimPrefix(base, "http")+"/ws", nil)
	if err != nil {
		if resp != nil {
			return resp.Status
		}
		return err.Error()
	}
	defer c.hangUp(ws.NetConn())
	pong := ws.PingHandler()
	ws.SetPingHandler(func(data string) error { c.beat(); return pong(data) })
	subscribe := func(topic string) error {
		cmd := map[string]string{"action": "subscribe", "topic": topic}
		if pos, ok := c.pos[topic]; ok {
			cmd["since"] = pos
		}
		return ws.WriteJSON(cmd)
	}
	for _, topic := range append([]string{everybody}, c.topics...) {
		if err := subscribe(topic); err != nil {
			return err.Error()
		}
	}
	begun := false
	for {
		_, b, err := ws.ReadMessage()
		if err != nil {
			return c.failed(err)
		}
		var f frame
		if err := json.Unmarshal(b, &f); err != nil {
			c.complain("a frame is no JSON: %.80q", b)
			continue
		}
		if !begun {
			begun = true
			c.note(record{kind: opened})
		}
		switch f.Event {
		case "pushlet.subscribed":
			c.enter(f.Topic)
			was, resumed := c.pos[f.Topic]
			if resumed && f.ID != was {
				c.complain("subscribed to %s from %s, asked for %s", f.Topic, f.ID, was)
			}
			if !resumed {
				c.note(record{kind: joined, topic: f.Topic, id: f.ID})
			}
			c.pos[f.Topic] = f.ID
		case "pushlet.unsubscribed":
			err = subscribe(f.Topic)
		case "pushlet.gap":
			c.pos[f.Topic] = f.ID
			c.gap(f.Topic, f.Data, f.ID)
		case "pushlet.error":
			return "pushlet.error: " + f.Data
		default:
			c.pos[f.Topic] = f.ID
			c.got(f.Topic, f.Data, f.ID)
			if topic := c.topics[c.rng.IntN(len(c.topics))]; c.rng.IntN(100) == 0 && c.isHere(topic) {
				err = ws.WriteJSON(map[string]string{"action": "unsubscribe", "topic": topic})
				c.leave(topic)
			}
		}
		if err != nil {
			return err.Error()
		}
	}
}

// ----- what happened, and whether it may

// A history is what was published and what the clients got, for check to compare.
type history struct {
	messages []message // by number
	clients  []view
	whole    bool     // there may be no gap
	reasons  []string // of gaps; nil: any
}

// A message is one call of Publish.
type message struct {
	n          int
	topic, via string
	begun      time.Duration
	ended      time.Duration
	outcome    outcome
	err        string
}

type outcome uint8

const (
	pending outcome = iota
	acked
	refused   // surely not published
	uncertain // perhaps published
)

func (m message) String() string {
	result := [...]string{"no answer yet", "acknowledged", "refused", "uncertain"}[m.outcome]
	return strings.TrimSpace(fmt.Sprintf("message %d to %s through %s, begun %.3f, %s %.3f %s",
		m.n, m.topic, m.via, m.begun.Seconds(), result, m.ended.Seconds(), m.err))
}

// A view is what one client got.
type view struct {
	name   string
	topics []string
	log    []record
}

// A record is one thing that happened to a client.
type record struct {
	at    time.Duration
	kind  kind
	topic string // of joined, got and gap
	n     int    // of got: the message
	id    string // where it is known
	note  string // of gap: the reason; else more about it
}

type kind uint8

const (
	opened kind = iota // a connection
	ended              // a connection
	joined             // from now on it gets all messages of a topic
	got
	gap
)

func (r record) String() string {
	what := [...]string{"connected", "connection ended:", "follows", "got", "GAP"}[r.kind]
	s := fmt.Sprintf("%.3f %s", r.at.Seconds(), what)
	if r.topic != "" {
		s += " " + r.topic
	}
	if r.kind == got {
		s += fmt.Sprintf(" #%d", r.n)
	}
	return strings.TrimSpace(s + " " + r.id + " " + r.note)
}

// A violation is something that must not be.
type violation struct {
	text    string
	curable bool // by what may yet come
}

// around shows what happened to a client about the time of a record, and before and after
// in its topic.
func (v *view) around(at int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  what %s got:", v.name)
	topic := v.log[at].topic
	show := map[int]bool{}
	for i := max(0, at-4); i <= min(len(v.log)-1, at+4); i++ {
		show[i] = true
	}
	for i, left := at, 4; i >= 0 && left > 0; i-- {
		if v.log[i].topic == topic {
			show[i] = true
			left--
		}
	}
	for i, left := at, 4; i < len(v.log) && left > 0; i++ {
		if v.log[i].topic == topic {
			show[i] = true
			left--
		}
	}
	last := -1
	for _, i := range slices.Sorted(maps.Keys(show)) {
		if i != last+1 {
			b.WriteString("\n      ...")
		}
		mark := "     "
		if i == at {
			mark = "  >>>"
		}
		fmt.Fprintf(&b, "\n%s %v", mark, v.log[i])
		last = i
	}
	if last < len(v.log)-1 {
		b.WriteString("\n      ...")
	}
	return b.String()
}

// tails shows what every client got last.
func (h *history) tails() string {
	var b strings.Builder
	for _, v := range h.clients {
		if len(v.log) > 0 {
			fmt.Fprintln(&b, v.around(len(v.log)-1))
		} else {
			fmt.Fprintf(&b, "  %s got nothing\n", v.name)
		}
	}
	return b.String()
}

// dump shows everything.
func (h *history) dump() string {
	var b strings.Builder
	for _, m := range h.messages {
		fmt.Fprintln(&b, m)
	}
	for _, v := range h.clients {
		for _, r := range v.log {
			fmt.Fprintln(&b, v.name, r)
		}
	}
	return b.String()
}

// An entry is a message at its place in the log of a topic. One that was lost and then
// published again has two.
type entry struct {
	n  int
	id string
}

// A thread is what one client got of one topic.
type thread struct {
	view   *view
	joined time.Duration
	items  []int         // places in the log of messages and gaps
	has    map[int]bool  // messages
	first  map[entry]int // of each entry the place in items
	last   map[entry]int
	gaps   []int             // places in items
	runs   [][]entry         // between gaps
	places map[entry][]place // where an entry is in runs
}

// A place is one in a run of a thread.
type place struct{ run, at int }

func (h *history) thread(v *view, topic string) *thread {
	th := &thread{view: v, joined: -1, has: map[int]bool{}, first: map[entry]int{}, last: map[entry]int{}, places: map[entry][]place{}}
	var run []entry
	for i, r := range v.log {
		if r.topic != topic {
			continue
		}
		switch r.kind {
		case joined:
			th.joined = r.at
		case gap:
			th.gaps = append(th.gaps, len(th.items))
			th.items = append(th.items, i)
			th.runs, run = append(th.runs, run), nil
		case got:
			e := entry{r.n, r.id}
			if _, seen := th.first[e]; !seen {
				th.first[e] = len(th.items)
			}
			th.last[e] = len(th.items)
			th.has[r.n] = true
			th.places[e] = append(th.places[e], place{len(th.runs), len(run)})
			th.items = append(th.items, i)
			run = append(run, e)
		}
	}
	th.runs = append(th.runs, run)
	return th
}

// at is the place in the client's log.
func (th *thread) at(place int) int { return th.items[place] }

func (th *thread) record(place int) record { return th.view.log[th.items[place]] }

// gapBetween reports whether there is a gap after one place and before another.
func (th *thread) gapBetween(a, b int) bool {
	return slices.ContainsFunc(th.gaps, func(g int) bool { return a < g && g < b })
}

// check returns all that must not be.
func (h *history) check() (found []violation) {
	topics := map[string]bool{everybody: true}
	for _, v := range h.clients {
		for _, topic := range v.topics {
			topics[topic] = true
		}
	}
	for _, topic := range slices.Sorted(maps.Keys(topics)) {
		var threads []*thread
		for i := range h.clients {
			if v := &h.clients[i]; topic == everybody || slices.Contains(v.topics, topic) {
				threads = append(threads, h.thread(v, topic))
			}
		}
		ids := h.ids(topic)
		for n, all := range ids {
			if h.whole && len(all) > 1 {
				found = append(found, violation{text: fmt.Sprintf("a message was published more than once, as %s: %v", all, h.messages[n])})
			}
		}
		for i, th := range threads {
			found = append(found, h.checkGaps(th)...)
			found = append(found, h.checkOnce(th)...)
			found = append(found, h.checkRuns(th)...)
			for _, other := range threads[:i] {
				found = append(found, checkPair(th, other)...)
			}
		}
		spans := make(commons)
		for _, m := range h.messages {
			if m.topic == topic {
				for _, th := range threads {
					found = append(found, h.checkLoss(m, th, threads, ids[m.n], spans)...)
				}
			}
		}
	}
	return found
}

// checkGaps complains of gaps that nothing explains.
func (h *history) checkGaps(th *thread) (found []violation) {
	for _, g := range th.gaps {
		r := th.record(g)
		if h.whole {
			found = append(found, violation{text: fmt.Sprintf("%s was told of a gap in %s (%s), though nothing was lost\n%s",
				th.view.name, r.topic, r.note, th.view.around(th.at(g)))})
		} else if h.reasons != nil && !slices.Contains(h.reasons, r.note) {
			found = append(found, violation{text: fmt.Sprintf("%s was told of a gap in %s because of %q, not of %q\n%s",
				th.view.name, r.topic, r.note, h.reasons, th.view.around(th.at(g)))})
		}
	}
	return found
}

// checkOnce complains of messages that came twice without a gap between, that came before
// the topic was followed, or that were not published.
func (h *history) checkOnce(th *thread) (found []violation) {
	seen := make(map[int]int) // message: its last place
	for place := range th.items {
		r := th.record(place)
		if r.kind != got {
			continue
		}
		if before, again := seen[r.n]; again && !th.gapBetween(before, place) {
			found = append(found, violation{text: fmt.Sprintf("%s got a message twice, at %.3f and %.3f: %v\n%s",
				th.view.name, th.record(before).at.Seconds(), r.at.Seconds(), h.messages[r.n], th.view.around(th.at(place)))})
		}
		seen[r.n] = place
		if h.messages[r.n].outcome == refused {
			found = append(found, violation{text: fmt.Sprintf("%s got a message that was surely not published: %v\n%s",
				th.view.name, h.messages[r.n], th.view.around(th.at(place)))})
		}
		if th.joined < 0 || r.at < th.joined {
			found = append(found, violation{text: fmt.Sprintf("%s got a message before it followed the topic: %v\n%s",
				th.view.name, h.messages[r.n], th.view.around(th.at(place)))})
		}
	}
	return found
}

// ids returns the IDs of the messages of a topic.
func (h *history) ids(topic string) map[int][]string {
	ids := make(map[int][]string)
	for _, v := range h.clients {
		for _, r := range v.log {
			if r.kind == got && r.topic == topic && !slices.Contains(ids[r.n], r.id) {
				ids[r.n] = append(ids[r.n], r.id)
			}
		}
	}
	return ids
}

// before compares two IDs.
func before(a, b string) bool {
	ams, aseq, _ := strings.Cut(a, "-")
	bms, bseq, _ := strings.Cut(b, "-")
	number := func(s string) uint64 { n, _ := strconv.ParseUint(s, 10, 64); return n }
	return number(ams) < number(bms) || number(ams) == number(bms) && number(aseq) < number(bseq)
}

// checkRuns complains of messages, between two gaps, that come in another order than that
// of their IDs, or after one whose publishing only began when they had been acknowledged.
func (h *history) checkRuns(th *thread) (found []violation) {
	for _, run := range th.runs {
		last, latest := "", message{begun: -1}
		for _, e := range run {
			m := h.messages[e.n]
			if m.outcome == acked && m.ended < latest.begun {
				found = append(found, violation{text: fmt.Sprintf("%s got a message that was acknowledged before another began, and came after it: %v; %v\n%s",
					th.view.name, m, latest, th.view.around(th.at(th.last[e])))})
			}
			if m.begun > latest.begun {
				latest = m
			}
			if before(e.id, last) {
				found = append(found, violation{text: fmt.Sprintf("%s got messages in another order than that of their IDs: %s after %s: %v\n%s",
					th.view.name, e.id, last, m, th.view.around(th.at(th.last[e])))})
			}
			last = e.id
		}
	}
	return found
}

// checkPair complains if two clients got two messages in opposite orders, and neither was
// told of a gap between.
func checkPair(a, b *thread) (found []violation) {
	for _, run := range a.runs {
		newest := make(map[int]place) // by run of b: what came last there, and its place in run
		for i, e := range run {
			for _, p := range b.places[e] {
				last, ok := newest[p.run]
				if ok && p.at < last.at {
					found = append(found, violation{text: fmt.Sprintf("%s got #%d before #%d, %s the other way round\n%s\n%s", a.view.name, run[last.run].n, e.n, b.view.name,
						a.view.around(a.at(a.last[e])), b.view.around(b.at(b.last[e])))})
				}
				newest[p.run] = place{i, p.at}
			}
		}
	}
	return found
}

// A span is between which places of one run another run has something of it, too.
type span struct{ from, to int }

// common returns the spans of the runs of b, for each run of a. Where there is nothing in
// common from is more than to.
func common(a, b *thread) [][]span {
	spans := make([][]span, len(a.runs))
	for i, run := range a.runs {
		spans[i] = make([]span, len(b.runs))
		for r := range spans[i] {
			spans[i][r] = span{math.MaxInt, -1}
		}
		for _, e := range run {
			for _, p := range b.places[e] {
				s := &spans[i][p.run]
				s.from, s.to = min(s.from, p.at), max(s.to, p.at)
			}
		}
	}
	return spans
}

// commons is common, and remembers it.
type commons map[[2]*thread][][]span

func (c commons) of(a, b *thread) [][]span {
	spans, ok := c[[2]*thread{a, b}]
	if !ok {
		spans = common(a, b)
		c[[2]*thread{a, b}] = spans
	}
	return spans
}

// checkLoss complains if a client lacks a message that it should have got, and passed the
// place of it without being told of a gap there.
func (h *history) checkLoss(m message, th *thread, threads []*thread, ids []string, spans commons) (found []violation) {
	switch {
	case th.has[m.n] || th.joined < 0 || m.begun <= th.joined:
		return nil
	case m.outcome != acked && !(h.whole && len(ids) > 0): // where nothing is lost, all get what one gets
		return nil
	case len(ids) == 0:
		return checkEntryLoss(m, entry{n: -1}, th, threads, spans)
	}
	for _, id := range ids {
		found = append(found, checkEntryLoss(m, entry{m.n, id}, th, threads, spans)...)
	}
	return found
}

// checkEntryLoss is checkLoss for a message at its place in the log, e, if anybody has got it.
func checkEntryLoss(m message, e entry, th *thread, threads []*thread, spans commons) []violation {
	// A run begins before the message, or not, and ends after it, or not.
	begins, ends := make([]bool, len(th.runs)), make([]bool, len(th.runs))
	first := 0 // the run in which the client was when the message was not yet published
	for _, g := range th.gaps {
		if th.record(g).at < m.begun {
			first++
		}
	}
	begins[first], ends[len(ends)-1] = true, true
	var witness *thread
	for _, other := range threads {
		for _, p := range other.places[e] {
			witness = other
			for i, of := range spans.of(th, other) {
				begins[i] = begins[i] || of[p.run].from < p.at
				ends[i] = ends[i] || of[p.run].to > p.at
			}
		}
	}
	for i := first; i < len(th.runs); i++ {
		if begins[i] && ends[i] {
			return []violation{{text: describeLoss(m, e, th, i, witness), curable: true}}
		}
	}
	return nil
}

func describeLoss(m message, e entry, th *thread, run int, witness *thread) string {
	text := fmt.Sprintf("%s lacks %v", th.view.name, m)
	start, end := 0, len(th.items) // of the run
	if run > 0 {
		start = th.gaps[run-1] + 1
	}
	if run < len(th.gaps) {
		end = th.gaps[run]
	}
	if witness == nil {
		text += "\n  which nobody got; it was not told of a gap since"
		if end > start {
			text += "\n" + th.view.around(th.at(end-1))
		}
		return text
	}
	text += fmt.Sprintf("\n  which %s and perhaps others got at %.3f as %s; it was not told of a gap in its place",
		witness.view.name, witness.record(witness.first[e]).at.Seconds(), e.id)
	place := witness.places[e][0]
	passed := start - 1
	for i := start; i < end; i++ {
		r := th.record(i)
		for _, p := range witness.places[entry{r.n, r.id}] {
			if p.run == place.run && p.at < place.at {
				passed = i
			}
		}
	}
	if passed = max(passed, 0); passed < len(th.items) {
		text += "\n" + th.view.around(th.at(passed))
	}
	return text + "\n" + witness.view.around(witness.at(witness.first[e]))
}

// lacking complains of clients that have not got a message, whatever they were told.
func (h *history) lacking(m message) (found []violation) {
	for i := range h.clients {
		v := &h.clients[i]
		if m.topic != everybody && !slices.Contains(v.topics, m.topic) {
			continue
		}
		if !slices.ContainsFunc(v.log, func(r record) bool { return r.kind == got && r.n == m.n }) {
			text := fmt.Sprintf("%s has not got the last message of the run: %v", v.name, m)
			last := len(v.log) - 1
			for i, r := range v.log {
				if r.topic == m.topic {
					last = i
				}
			}
			if last >= 0 {
				text += "\n" + v.around(last)
			}
			found = append(found, violation{text: text, curable: true})
		}
	}
	return found
}

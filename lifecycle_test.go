package pushlet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
)

// ----- one call after the other

func TestLifecycle(t *testing.T) {
	p := newPushlet(t)
	expect := func(when string, want error) {
		t.Helper()
		if got := p.Publish("a", "message", "x"); !errors.Is(got, want) {
			t.Errorf("%s: Publish = %v, want %v", when, got, want)
		}
		if got := p.PublishToAll("message", "x"); !errors.Is(got, want) {
			t.Errorf("%s: PublishToAll = %v, want %v", when, got, want)
		}
		if got := p.SetHeartbeatInterval(time.Minute); got != nil && !errors.Is(got, want) {
			t.Errorf("%s: SetHeartbeatInterval = %v", when, got)
		}
		if got := p.Stats().Clients; got != 0 {
			t.Errorf("%s: %d clients", when, got)
		}
	}
	expect("before Start", pushlet.ErrNotStarted)
	for range 2 {
		check(t, p.Start())
		expect("after Start", nil)
	}
	for range 2 {
		check(t, p.Stop())
		expect("after Stop", pushlet.ErrClosed)
	}
	if got := p.Start(); !errors.Is(got, pushlet.ErrClosed) {
		t.Errorf("Start after Stop = %v, want %v", got, pushlet.ErrClosed)
	}
	check(t, p.Shutdown(t.Context()))
	if got, want := p.Stats().Published, uint64(4); got != want {
		t.Errorf("%d published, want %d", got, want)
	}
}

func TestStopBeforeStart(t *testing.T) {
	p := newPushlet(t)
	for range 2 {
		check(t, p.Stop())
	}
	if got := p.Start(); !errors.Is(got, pushlet.ErrClosed) {
		t.Errorf("Start after Stop = %v, want %v", got, pushlet.ErrClosed)
	}
	if got := p.Publish("a", "message", "x"); !errors.Is(got, pushlet.ErrClosed) {
		t.Errorf("Publish after Stop = %v, want %v", got, pushlet.ErrClosed)
	}
}

// TestShutdownWhenStopped: nothing is left to wait for, so the context does not matter.
func TestShutdownWhenStopped(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for _, started := range []bool{false, true} {
		p := newPushlet(t)
		if started {
			check(t, p.Start())
		}
		check(t, p.Stop())
		for range 50 {
			if err := p.Shutdown(over); err != nil {
				t.Errorf("started %t: Shutdown of what has stopped = %v, want nil", started, err)
				break
			}
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	for name, option := range map[string]pushlet.Option{
		"WithLogger":           pushlet.WithLogger(nil),
		"WithQueue":            pushlet.WithQueue(0, 1),
		"WithQueue bytes":      pushlet.WithQueue(1, 0),
		"WithWriteTimeout":     pushlet.WithWriteTimeout(0),
		"WithRetry":            pushlet.WithRetry(-time.Second),
		"WithMaxClients":       pushlet.WithMaxClients(0),
		"WithMaxTopics":        pushlet.WithMaxTopics(-1),
		"WithMaxMessageSize":   pushlet.WithMaxMessageSize(0),
		"WithMaxMessageSize 2": pushlet.WithMaxMessageSize(1<<30 + 1),
		"WithMaxCommandSize":   pushlet.WithMaxCommandSize(0),
		"WithCommandRate":      pushlet.WithCommandRate(0, 1),
		"WithCommandRate 2":    pushlet.WithCommandRate(1, 0),
		"WithReadBufferSize":   pushlet.WithReadBufferSize(0),
		"WithLastMessageAge":   pushlet.WithLastMessageAge(-1),
	} {
		p := newPushlet(t, option)
		name, _, _ = strings.Cut(name, " ")
		for range 2 {
			if err := p.Start(); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: Start = %v, want an error that names the option", name, err)
			}
		}
		if err := p.Publish("a", "message", "x"); !errors.Is(err, pushlet.ErrNotStarted) {
			t.Errorf("%s: Publish = %v, want %v", name, err, pushlet.ErrNotStarted)
		}
	}
	p := newPushlet(t, pushlet.WithQueue(0, 0), pushlet.WithMaxTopics(0))
	if err := p.Start(); err == nil || !strings.Contains(err.Error(), "WithQueue") || !strings.Contains(err.Error(), "WithMaxTopics") {
		t.Errorf("Start = %v, want an error that names both options", err)
	}
}

// ----- clients that cannot be served now

// TestComeBack: an EventSource gives up for good on any status but 200.
func TestComeBack(t *testing.T) {
	expect := func(s *site, when string) {
		t.Helper()
		resp := s.answer(t, http.MethodGet, "topic=a", "Accept", "text/event-stream", "Last-Event-ID", "x")
		if resp.status != http.StatusOK || resp.header.Get("Content-Type") != "text/event-stream" {
			t.Errorf("%s: an EventSource gets status %d and %q, want 200 and an event stream", when, resp.status, resp.header.Get("Content-Type"))
		}
		var p eventParser
		if events := p.feed([]byte(resp.body)); len(events) > 0 || p.lastID != "" || p.retry < 2*time.Second || p.retry > 6*time.Second {
			t.Errorf("%s: an EventSource gets %q, want retry: between 2 and 6 seconds, and nothing else", when, resp.body)
		}
		for _, accept := range []string{"", "*/*", "application/json"} {
			resp = s.answer(t, http.MethodGet, "topic=a", "Accept", accept)
			seconds, err := strconv.Atoi(resp.header.Get("Retry-After"))
			if resp.status != http.StatusServiceUnavailable || err != nil || seconds < 2 || seconds > 7 {
				t.Errorf("%s: others get status %d and Retry-After %q", when, resp.status, resp.header.Get("Retry-After"))
			}
		}
	}
	for _, tr := range transports[:4] {
		s := tr.site(t, notStarted(), withOptions(pushlet.WithRetry(2*time.Second), pushlet.WithMaxClients(2)))
		expect(s, tr.name+" before Start")
		check(t, s.p.Start())
		first, _, _ := s.connect(t, "topic=a", "")
		second, _, _ := s.connect(t, "topic=b", "")
		expect(s, tr.name+" with too many clients")
		first.close()
		eventually(t, "the client has left", func() bool { return s.p.Stats().Clients == 1 })
		eventually(t, "there is room again", func() bool {
			st, err := s.tryFollow(t, "topic=a")
			check(t, err)
			defer st.close()
			e, err := st.read()
			return err == nil && e.name == "pushlet.connected"
		})
		s.srv.Client().CloseIdleConnections()
		join := s.stop(t)
		s.closed(t)
		expect(s, tr.name+" while it stops")
		second.close()
		join()
		expect(s, tr.name+" after Stop")
	}
}

// ----- Shutdown

// closed waits until a Shutdown that goes on elsewhere has begun.
func (s *site) closed(t testing.TB) {
	t.Helper()
	eventually(t, "closed", func() bool { return errors.Is(s.p.Publish("elsewhere", "", ""), pushlet.ErrClosed) })
}

// TestShutdownDelivers: what was published before reaches everybody who reads.
func TestShutdownDelivers(t *testing.T) {
	var messages []string
	for _, n := range numbered(1, 200) { // more than the system's buffers hold
		messages = append(messages, n+strings.Repeat("x", 32<<10))
	}
	history := pushlet.WithHistory(1000, 16<<20, time.Hour)
	for _, tr := range transports[:4] {
		for _, queue := range []int{1000, 10} { // all in the queue; most of it in history
			t.Run(fmt.Sprint(tr.name, " queue ", queue), func(t *testing.T) {
				t.Parallel()
				s := tr.site(t, withOptions(pushlet.WithQueue(queue, 16<<20), history))
				st, _, _ := s.connect(t, "topic=a", "")
				s.publish(t, "a", messages...)
				join := s.stop(t)
				s.closed(t)
				st.expectMessages(messages...)
				st.expectEnd()
				join()
			})
		}
	}
}

func TestShutdownSpreadsRetry(t *testing.T) {
	s := newSite(t, withOptions(pushlet.WithRetry(time.Second)))
	var streams []*stream
	for range 40 {
		st, _, _ := s.connect(t, "", "")
		streams = append(streams, st)
	}
	join := s.stop(t)
	shortest, longest := time.Hour, time.Duration(0)
	for _, st := range streams {
		st.expectEnd()
		shortest, longest = min(shortest, st.parser.retry), max(longest, st.parser.retry)
	}
	join()
	if shortest < time.Second || longest > 3*time.Second || longest-shortest < time.Second/2 {
		t.Errorf("retry is from %v to %v, want it spread between one and three seconds", shortest, longest)
	}
}

// TestShutdownCuts: a client that does not read delays Shutdown until its context ends.
func TestShutdownCuts(t *testing.T) {
	errImpatient := errors.New("no time left")
	together(t, transports[:4], func(t *testing.T, tr transport) {
		s := tr.site(t, withOptions(pushlet.WithQueue(8192, 64<<20)))
		st, _, _ := s.connect(t, "topic=a", "")
		large := strings.Repeat("x", 1<<20)
		for range 20 { // more than the system's buffers hold
			s.publish(t, "a", large)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		stopped := make(chan error, 1)
		go func() { stopped <- s.p.Shutdown(ctx) }()
		s.closed(t)
		select {
		case err := <-stopped:
			t.Fatalf("Shutdown = %v, though a client has not got all", err)
		case <-time.After(50 * time.Millisecond): // it goes on waiting
		}
		cancel(errImpatient)
		soon(t, "Shutdown returns", func() {
			if err := <-stopped; !errors.Is(err, errImpatient) {
				t.Errorf("Shutdown = %v, want %v", err, errImpatient)
			}
		})
		if got := s.p.Stats().Clients; got != 0 {
			t.Errorf("%d clients after Shutdown", got)
		}
		got := 0
		for {
			if _, err := st.read(); err != nil {
				if errors.Is(err, io.EOF) && got == 20 {
					t.Errorf("the client got everything, though it did not read")
				}
				break
			}
			got++
		}
	})
}

// TestShutdownOfClientThatStays: a client that reads to the end but never closes its
// connection gets a moment, no more.
func TestShutdownOfClientThatStays(t *testing.T) {
	t.Parallel()
	together(t, transports[:2], func(t *testing.T, tr transport) {
		s := tr.site(t)
		st := s.rawFollow(t, "topic=a")
		st.expectHello()
		join := s.stop(t)
		if e, err := st.read(); !errors.Is(err, io.EOF) {
			t.Errorf("%v, %v, want the end", e, err)
		}
		join() // with a connection that is still open
	})
}

// TestServerShutdown: http.Server.Shutdown returns, with streams of every kind.
func TestServerShutdown(t *testing.T) {
	together(t, transports, func(t *testing.T, tr transport) {
		s := tr.site(t)
		var streams []*stream
		for range 3 {
			st, _, _ := tr.connect(t, s, "topic=a", "")
			streams = append(streams, st)
		}
		s.publish(t, "a", "1")
		join := s.stop(t)
		down := make(chan error, 1)
		go func() { down <- s.srv.Config.Shutdown(t.Context()) }()
		for _, st := range streams {
			st.expectMessages("1")
			st.expectEnd()
		}
		join()
		s.srv.Client().CloseIdleConnections()
		soon(t, "http.Server.Shutdown returns", func() { check(t, <-down) })
	})
}

// TestStopWaitsForHooks: when Stop has returned, none of the application's code runs.
func TestStopWaitsForHooks(t *testing.T) {
	for _, tr := range transports[:4] {
		t.Run(tr.name, func(t *testing.T) {
			called, release := make(chan struct{}), make(chan struct{})
			var returned atomic.Bool
			s := tr.site(t, withOptions(pushlet.WithHooks(pushlet.Hooks{
				OnDisconnect: func(pushlet.Client, pushlet.Reason) {
					close(called)
					<-release
					returned.Store(true)
				},
			})))
			st, _, _ := s.connect(t, "", "")
			st.close()
			<-called
			join := s.stop(t)
			s.closed(t)
			close(release)
			join()
			if !returned.Load() {
				t.Error("Stop has returned before the hook")
			}
		})
	}
}

// TestHooksMayCall: a hook may call what does not wait for it.
func TestHooksMayCall(t *testing.T) {
	var s *site
	var calls atomic.Int64
	call := func() {
		for _, err := range []error{
			s.p.Publish("a", "message", "x"), s.p.PublishToAll("message", "x"), s.p.SetHeartbeatInterval(time.Minute), s.p.Start(),
		} {
			if err != nil && !errors.Is(err, pushlet.ErrClosed) {
				t.Error(err)
			}
		}
		s.p.Stats()
		calls.Add(1)
	}
	s = newSite(t, notStarted(), withSmallBuffers(), withOptions(
		pushlet.WithQueue(10, 1<<20), pushlet.WithHistory(10, 1<<20, time.Hour),
		pushlet.WithHooks(pushlet.Hooks{
			OnConnect:    func(pushlet.Client) { call() },
			OnDisconnect: func(pushlet.Client, pushlet.Reason) { call() },
			OnSlow:       func(pushlet.SlowConsumer) { call() },
		}),
	))
	check(t, s.p.Start())
	loseMessages(t, s, "a", strings.Repeat("x", 1<<10))
	st, _, _ := s.connect(t, "topic=b", "")
	over, cancel := context.WithCancel(t.Context())
	cancel()
	s.p.Shutdown(over) // the slow client would keep it waiting
	st.close()
	if got := calls.Load(); got < 5 {
		t.Errorf("%d calls of hooks, want two for each client and one for the slow", got)
	}
}

// TestOneGoroutineForEachConnection: an idle client costs no more, and that one ends with
// the connection.
func TestOneGoroutineForEachConnection(t *testing.T) {
	const clients = 100
	s := newSite(t)
	before := runtime.NumGoroutine()
	var conns []net.Conn
	for range clients {
		conn := s.dial(t) // the client has none
		request(t, conn, "", "HTTP/1.1")
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		receive(t, conn).expectHello()
	}
	eventually(t, "one goroutine a connection", func() bool { return runtime.NumGoroutine() <= before+clients })
	for _, conn := range conns {
		conn.Close()
	}
	eventually(t, "no goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

// TestHandlerLeavesWriterAlone: a ResponseWriter may not be used any more once the
// handler has returned.
func TestHandlerLeavesWriterAlone(t *testing.T) {
	p := newPushlet(t)
	check(t, p.Start())
	w := &guardedWriter{header: make(http.Header), cut: make(chan struct{}), release: make(chan struct{})}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/events", nil)
	check(t, err)
	returned := make(chan struct{})
	go func() { defer close(returned); p.HandleSSE(w, r) }()
	eventually(t, "the client is there", func() bool { return p.Stats().Delivered == 0 && p.Stats().BytesSent > 0 })

	w.stuck.Store(true) // so that the farewell cannot be written
	over, cancel := context.WithCancel(t.Context())
	cancel()
	stopped := make(chan struct{})
	go func() { defer close(stopped); p.Shutdown(over) }()
	<-w.cut // Shutdown uses the writer, and the handler's Write fails
	select {
	case <-returned:
		t.Error("the handler has returned while its ResponseWriter was in use")
	case <-time.After(100 * time.Millisecond): // it waits, as it should
	}
	close(w.release)
	soon(t, "the handler returns", func() { <-returned })
	<-stopped
}

// guardedWriter is a ResponseWriter that holds up whoever sets a deadline to cut the
// connection.
type guardedWriter struct {
	header       http.Header
	stuck        atomic.Bool
	once         sync.Once
	cut, release chan struct{}
}

func (w *guardedWriter) Header() http.Header { return w.header }
func (w *guardedWriter) WriteHeader(int)     {}
func (w *guardedWriter) Flush()              {}

func (w *guardedWriter) Write(b []byte) (int, error) {
	if w.stuck.Load() {
		<-w.cut
		return 0, os.ErrDeadlineExceeded
	}
	return len(b), nil
}

func (w *guardedWriter) SetWriteDeadline(at time.Time) error {
	if w.stuck.Load() && !at.IsZero() && time.Until(at) < time.Second {
		w.once.Do(func() { close(w.cut) })
		<-w.release
	}
	return nil
}

// ----- everything at once

// TestConcurrentLifecycle calls everything from many goroutines around a Start and a
// Stop that come at any time.
func TestConcurrentLifecycle(t *testing.T) {
	for round := range 12 {
		tr := transports[round%4]
		s := tr.site(t, notStarted(), withOptions(pushlet.WithQueue(50, 1<<20), pushlet.WithRetry(time.Millisecond)))
		var busy sync.WaitGroup
		over := make(chan struct{})
		repeat := func(what func() error) {
			busy.Go(func() {
				for {
					switch err := what(); {
					case err == nil, errors.Is(err, pushlet.ErrNotStarted), errors.Is(err, pushlet.ErrClosed):
					default:
						t.Errorf("round %d: %v", round, err)
						return
					}
					select {
					case <-over:
						return
					default:
					}
				}
			})
		}
		repeat(func() error { return s.p.Publish("a", "message", "x") })
		repeat(func() error { return s.p.PublishToAll("message", "x") })
		repeat(func() error { return s.p.Publish(fmt.Sprint(rand.N(100)), "message", "x") })
		repeat(func() error { _ = s.p.Stats().String(); return nil })
		repeat(func() error { return s.p.SetHeartbeatInterval(time.Duration(1 + rand.N(int64(time.Second)))) })
		for range 3 {
			repeat(func() error {
				st, err := s.tryFollow(t, "topic=a&topic=b")
				if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
					return nil // cut before there was an answer
				} else if err != nil {
					return err
				}
				defer st.close()
				for range rand.N(20) {
					if _, err := st.read(); err != nil {
						return nil // it has been ended
					}
				}
				return nil
			})
		}
		var stops sync.WaitGroup
		begin := make(chan struct{})
		pause := func(d time.Duration) { <-begin; <-time.After(rand.N(d)) }
		for range 2 {
			stops.Go(func() {
				pause(30 * time.Millisecond)
				if err := s.p.Start(); err != nil && !errors.Is(err, pushlet.ErrClosed) {
					t.Errorf("round %d: Start: %v", round, err)
				}
			})
			stops.Go(func() {
				pause(150 * time.Millisecond)
				if err := s.p.Stop(); err != nil {
					t.Errorf("round %d: Stop: %v", round, err)
				}
			})
			stops.Go(func() {
				pause(150 * time.Millisecond)
				ctx, cancel := context.WithTimeout(context.Background(), rand.N(50*time.Millisecond))
				defer cancel()
				if err := s.p.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("round %d: Shutdown: %v", round, err)
				}
			})
		}
		close(begin)
		soon(t, "Start, Stop and Shutdown return", stops.Wait)
		close(over)
		soon(t, "everybody returns", busy.Wait)
		if got := s.p.Stats(); got.Clients != 0 {
			t.Errorf("round %d: after Stop: %v", round, got)
		}
	}
}

// TestAbandoned: a Pushlet that is never started leaves nothing behind, nor does one
// whose Start fails.
func TestAbandoned(t *testing.T) {
	for range 100 {
		pushlet.New(pushlet.WithLogger(discard))
	}
	if err := pushlet.New(pushlet.WithLogger(discard), pushlet.WithQueue(0, 0)).Start(); err == nil {
		t.Error("Start with bad options = nil")
	}
}

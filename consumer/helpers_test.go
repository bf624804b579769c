package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/consumer"
)

// patience is how long a test waits for what must come. Only a failure uses it up.
const patience = 30 * time.Second

// quickly makes a client come back at once.
var quickly = consumer.WithReconnectInterval(time.Millisecond, 5*time.Millisecond)

// A listener is a subscription in a goroutine of its own. Its methods belong to the test's.
type listener struct {
	t      testing.TB
	stop   context.CancelFunc
	items  chan consumer.Message
	errs   chan error  // what OnError was told
	ready  chan string // what OnSubscribed was told
	opened chan struct{}
	ended  chan struct{}
	final  error // set before ended is closed
}

func listen(t testing.TB, url string, options ...consumer.Option) *listener {
	t.Helper()
	return listenTo(t, consumer.NewClient(url, options...))
}

func listenTo(t testing.TB, c *consumer.Client) *listener {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &listener{
		t: t, stop: cancel,
		items:  make(chan consumer.Message, 100_000),
		errs:   make(chan error, 10_000),
		ready:  make(chan string, 10_000),
		opened: make(chan struct{}, 10_000),
		ended:  make(chan struct{}),
	}
	c.OnError(func(err error) { l.errs <- err })
	c.OnSubscribed(func(topic string) { l.ready <- topic })
	c.OnConnection(func() { l.opened <- struct{}{} })
	go func() {
		defer close(l.ended)
		for m, err := range c.Messages(ctx) {
			if err != nil {
				if l.final != nil || m != (consumer.Message{}) {
					t.Errorf("error %v with %+v, after %v", err, m, l.final)
				}
				l.final = err
				continue // a loop that does not break ends all the same
			}
			l.items <- m
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-l.ended
	})
	return l
}

// take waits for the next value of a channel.
func take[T any](l *listener, what string, c <-chan T) (v T) {
	l.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v = <-c:
	case <-l.ended:
		select {
		case v = <-c:
		default:
			l.t.Fatalf("waiting for %s: the subscription has ended: %v", what, l.final)
		}
	case <-timer.C:
		l.t.Fatalf("waiting for %s: not within %v", what, patience)
	}
	return v
}

func (l *listener) next() consumer.Message {
	l.t.Helper()
	return take(l, "a message", l.items)
}

// expect takes messages with these data.
func (l *listener) expect(data ...string) (last consumer.Message) {
	l.t.Helper()
	for _, want := range data {
		if last = l.next(); last.Data != want || last.Gap != nil {
			l.t.Fatalf("message %+v, want data %q", last, want)
		}
	}
	return last
}

// expectGap takes a gap.
func (l *listener) expectGap(reason string, topics ...string) consumer.Message {
	l.t.Helper()
	m := l.next()
	if m.Gap == nil || m.Gap.Reason != reason || fmt.Sprint(m.Gap.Topics) != fmt.Sprint(topics) || m.Event != consumer.GapEvent {
		l.t.Fatalf("message %+v, gap %v, want %s of %q", m, m.Gap, reason, topics)
	}
	return m
}

// subscribed waits until the server has confirmed topics, in any order.
func (l *listener) subscribed(topics ...string) {
	l.t.Helper()
	missing := map[string]bool{}
	for _, topic := range topics {
		missing[topic] = true
	}
	for len(missing) > 0 { // a topic is confirmed again on each connection
		delete(missing, take(l, fmt.Sprintf("the confirmation of %q", topics), l.ready))
	}
}

// end waits for the final error.
func (l *listener) end() error {
	l.t.Helper()
	select {
	case <-l.ended:
	case <-time.After(patience):
		l.t.Fatalf("it has not ended within %v", patience)
	}
	if len(l.items) > 0 {
		l.t.Errorf("message %+v was not expected", <-l.items)
	}
	return l.final
}

// nothing fails the test if something has come that it did not take.
func (l *listener) nothing() {
	l.t.Helper()
	if len(l.items) > 0 {
		l.t.Errorf("message %+v was not expected", <-l.items)
	}
}

// retry takes an error that must be a RetryError.
func (l *listener) retry() *consumer.RetryError {
	l.t.Helper()
	err := take(l, "an error", l.errs)
	var again *consumer.RetryError
	if !errors.As(err, &again) {
		l.t.Fatalf("error %v, want a RetryError", err)
	}
	return again
}

// start starts a Pushlet until the test is over.
func start(t testing.TB, options ...pushlet.Option) *pushlet.Pushlet {
	t.Helper()
	p := pushlet.New(append([]pushlet.Option{pushlet.WithLogger(silent), pushlet.WithRetry(5 * time.Millisecond)}, options...)...)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	return p
}

type noLogger struct{}

func silent() pushlet.Logger                            { return noLogger{} }
func (noLogger) Println(...any)                         {}
func (l noLogger) WithField(string, any) pushlet.Logger { return l }
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve serves p on loopback until the test is over.
func serve(t testing.TB, p *pushlet.Pushlet) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/events", p.HandleSSE)
	mux.HandleFunc("/ws", p.HandleWebSocket)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// both runs a test over SSE and over WebSocket. The path is where the protocol is.
func both(t *testing.T, test func(t *testing.T, path func(base string) string)) {
	t.Run("sse", func(t *testing.T) { test(t, func(base string) string { return base + "/events" }) })
	t.Run("websocket", func(t *testing.T) {
		test(t, func(base string) string { return "ws" + strings.TrimPrefix(base, "http") + "/ws" })
	})
}

// A cutter stands before a server and cuts connections.
type cutter struct {
	url   string
	after func() int // how many bytes of the server a connection lets through; negative: all

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	cuts  int
}

func cut(t testing.TB, target string, after func() int) *cutter {
	t.Helper()
	u, err := url.Parse(target)
	must(t, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c := &cutter{url: "http://" + ln.Addr().String(), after: after, conns: map[net.Conn]struct{}{}}
	var all sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		c.cutAll()
		all.Wait()
	})
	all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { c.serve(conn, u.Host) })
		}
	})
	return c
}

func (c *cutter) serve(client net.Conn, target string) {
	defer client.Close()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	c.mu.Lock()
	c.conns[client] = struct{}{}
	left := c.after()
	c.mu.Unlock()
	var up sync.WaitGroup
	up.Go(func() {
		pipe(server, client, -1)
		server.Close() // ends the other direction
	})
	if pipe(client, server, left) {
		c.mu.Lock()
		c.cuts++
		c.mu.Unlock()
	}
	client.Close()
	server.Close()
	up.Wait()
	c.mu.Lock()
	delete(c.conns, client)
	c.mu.Unlock()
}

// pipe copies so many bytes, and reports whether it stopped for that.
func pipe(to, from net.Conn, left int) bool {
	b := make([]byte, 4<<10)
	for {
		n, err := from.Read(b)
		if left >= 0 && n >= left {
			to.Write(b[:left])
			return true
		}
		if left >= 0 {
			left -= n
		}
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return false
		}
	}
}

// cutAll cuts all connections now.
func (c *cutter) cutAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.conns {
		conn.Close()
	}
}

package pushlet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usual2970/pushlet"
)

// ----- who may follow what

func TestAuthorize(t *testing.T) {
	type question struct{ user, topic string }
	var mu sync.Mutex
	var asked []question
	s := newSite(t, withOptions(pushlet.WithAuthorize(func(r *http.Request, topic string) error {
		user := r.Header.Get("X-User")
		mu.Lock()
		asked = append(asked, question{user, topic})
		mu.Unlock()
		if topic == "public" || strings.HasPrefix(topic, "users/"+user+"/") {
			return nil
		}
		return fmt.Errorf("%s may not read <%s>", user, topic)
	})))
	st := s.follow(t, "topic=users/1/inbox&topic=public", "X-User", "1")
	_, e := st.expectHello()
	s.publish(t, "users/1/inbox", "secret")

	for _, test := range []struct{ name, method, query, user string }{
		{"another user's", http.MethodGet, "topic=users/1/inbox", "2"},
		{"one of several", http.MethodGet, "topic=public&topic=users/2/inbox&topic=users/1/inbox", "2"},
		{"with a cursor", http.MethodGet, "topic=users/1/inbox&lastEventId=" + e.id, "2"},
		{"the default topic", http.MethodGet, "", "1"},
		{"HEAD", http.MethodHead, "topic=users/1/inbox", "2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			resp := s.answer(t, test.method, test.query, "X-User", test.user, "Accept", "text/event-stream", "Last-Event-ID", e.id)
			if resp.status != http.StatusForbidden || strings.Contains(resp.body, "secret") {
				t.Errorf("status %d, body %q, want 403 and nothing of the stream", resp.status, resp.body)
			}
			if test.method != http.MethodHead && !strings.Contains(resp.body, "may not read") {
				t.Errorf("body %q, want the reason", resp.body)
			}
			// What a client sent is text, not a page.
			if got := resp.header.Get("Content-Type"); !strings.HasPrefix(got, "text/plain") || resp.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("content type %q, want text that nobody sniffs", got)
			}
		})
	}
	mu.Lock()
	for _, want := range []question{{"1", "users/1/inbox"}, {"1", "public"}, {"2", "users/1/inbox"}, {"1", "default"}} {
		if !slices.Contains(asked, want) {
			t.Errorf("asked %v, want %v among them", asked, want)
		}
	}
	mu.Unlock()
	st.expectMessages("secret")
	if got := s.p.Stats(); got.Clients != 1 || got.Connected != 1 || got.Refused != 5 {
		t.Errorf("%v, want one connected and 5 refused", got)
	}
}

// TestAuthorizePanics: a panic of the application's is net/http's to handle, and costs
// no place among the clients.
func TestAuthorizePanics(t *testing.T) {
	s := newSite(t,
		withOptions(pushlet.WithMaxClients(1), pushlet.WithAuthorize(func(_ *http.Request, topic string) error {
			if topic == "panic" {
				panic(http.ErrAbortHandler)
			}
			return nil
		})))
	for range 3 {
		if st, err := s.tryFollow(t, "topic=panic"); err == nil {
			st.close()
			t.Error("a stream, though authorize has panicked")
		}
	}
	s.connect(t, "topic=a", "")
}

// ----- limits

func TestTopicLimit(t *testing.T) {
	for _, limit := range []int{3, 0} { // 0: the default
		want, options := 100, []pushlet.Option(nil)
		if limit > 0 {
			want, options = limit, []pushlet.Option{pushlet.WithMaxTopics(limit)}
		}
		s := newSite(t, withOptions(options...))
		query := make(url.Values)
		for i := range want {
			query.Add("topic", strconv.Itoa(i))
		}
		query["topic"] = append(query["topic"], "0", "/", "") // are no more
		st, h, _ := s.connect(t, query.Encode(), "")
		if len(h.Topics) != want {
			t.Errorf("%d topics, want %d", len(h.Topics), want)
		}
		st.close()
		query.Add("topic", "one more")
		resp := s.answer(t, http.MethodGet, query.Encode(), "Accept", "text/event-stream")
		if resp.status != http.StatusBadRequest || !strings.Contains(resp.body, strconv.Itoa(want)) {
			t.Errorf("status %d, body %q, want 400 that tells the limit of %d", resp.status, resp.body, want)
		}
	}
}

// TestClientLimit: the place of a client that has left is free again, however it left.
func TestClientLimit(t *testing.T) {
	for _, tr := range transports[:4] {
		t.Run(tr.name, func(t *testing.T) {
			s := tr.site(t, withOptions(pushlet.WithMaxClients(3)))
			for range 5 {
				var streams []*stream
				for range 3 {
					st, _, _ := s.connect(t, "", "")
					streams = append(streams, st)
				}
				resp := s.answer(t, http.MethodGet, "")
				if resp.status != http.StatusServiceUnavailable {
					t.Errorf("status %d for one client too many, want 503", resp.status)
				}
				for _, st := range streams {
					st.close()
				}
				s.clientsGone(t)
			}
			if got := s.p.Stats(); got.Refused != 5 || got.Connected != 15 {
				t.Errorf("%v, want 15 connected and 5 refused", got)
			}
		})
	}
}

// ----- what is logged

// lockedBuffer is a buffer for the standard logger.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// loseMessages makes a client of topic fall out of history, and waits until that has
// been reported.
func loseMessages(t *testing.T, s *site, topic, data string) {
	t.Helper()
	conn := s.dialBuffer(t, 4<<10)
	before := s.p.Stats()
	request(t, conn, "topic="+url.QueryEscape(topic), "HTTP/1.1")
	eventually(t, "the client is there", func() bool { return s.p.Stats().Topics > before.Topics })
	eventually(t, "the slow client has lost messages", func() bool {
		for range 20 {
			s.publish(t, topic, data)
		}
		return s.p.Stats().Slow > before.Slow
	})
}

// TestDefaultLog: the log of a Pushlet without WithLogger goes to the standard logger,
// what a client has sent is quoted in it, and no message is.
func TestDefaultLog(t *testing.T) {
	var out lockedBuffer
	log.SetOutput(&out)
	t.Cleanup(func() { log.SetOutput(os.Stderr) })

	std := func() pushlet.Option { // undoes newSite's silence
		return pushlet.WithLogger(func() pushlet.Logger { return pushlet.NewStdLogger() })
	}
	s := newSite(t, withOptions(std(), pushlet.WithQueue(1, 1), pushlet.WithHistory(1, 1, time.Hour)))

	topic := `a" client="forged\n` + "\u2028\u200b"
	loseMessages(t, s, topic, "secret "+strings.Repeat("x", 1<<10))
	origin := `https://evil.example.org" client="forged`
	rec := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/ws", nil)
	for name, value := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Origin": origin} {
		r.Header.Set(name, value)
	}
	s.p.HandleWebSocket(rec, r)
	if rec.Code != http.StatusForbidden {
		t.Errorf("status %d for a foreign origin, want 403", rec.Code)
	}
	if err := s.p.SetHeartbeatInterval(-1); err == nil {
		t.Error("SetHeartbeatInterval(-1) = nil")
	}

	for _, want := range []string{fmt.Sprintf("topic=%q", topic), fmt.Sprintf("origin=%q", origin), "heartbeat interval", "pushlet: "} {
		eventually(t, "logged: "+want, func() bool { return strings.Contains(out.String(), want) })
	}
	if strings.Contains(out.String(), "secret") {
		t.Errorf("a message is in the log: %q", out.String())
	}
	for line := range strings.Lines(out.String()) {
		for _, r := range line {
			if r != '\n' && !strconv.IsPrint(r) {
				t.Errorf("%U in the log line %q", r, line)
			}
		}
	}
}

// TestCustomLog: a logger gets what a client has sent as the value of a field, never in
// the line itself.
func TestCustomLog(t *testing.T) {
	var book logBook
	s := newSite(t, withOptions(pushlet.WithLogger(book.logger), pushlet.WithQueue(1, 1), pushlet.WithHistory(1, 1, time.Hour)))
	loseMessages(t, s, "forged", strings.Repeat("x", 1<<10))
	eventually(t, "logged", func() bool {
		return slices.ContainsFunc(book.all(), func(l logLine) bool { return l.fields["topic"] == "forged" && l.fields["client"] != "" })
	})
	for _, line := range book.all() {
		if strings.Contains(line.text, "forged") {
			t.Errorf("the topic is in the line %q", line.text)
		}
	}
}

// ----- heartbeat, age, idleness

func TestHeartbeat(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pushlet.Pushlet) {
		x := startExchange(t, p, "", "")
		beats := func(interval, during time.Duration, want int) {
			t.Helper()
			check(t, p.SetHeartbeatInterval(interval))
			before := x.comments()
			time.Sleep(during)
			if got := x.comments() - before; got < want-1 || got > want+1 {
				t.Errorf("%d heartbeats in %v with an interval of %v, want %d", got, during, interval, want)
			}
		}
		beats(20*time.Second, 10*time.Minute, 30)
		beats(100*time.Millisecond, 10*time.Second, 100)
		beats(2*time.Minute, time.Hour, 30)
		for _, wrong := range []time.Duration{0, -time.Second} {
			if err := p.SetHeartbeatInterval(wrong); err == nil {
				t.Errorf("SetHeartbeatInterval(%v) = nil", wrong)
			}
		}
		before := x.comments()
		time.Sleep(time.Hour)
		if got, want := x.comments()-before, 30; got < want-1 || got > want+1 {
			t.Errorf("after a refused interval %d heartbeats in an hour, want %d as before", got, want)
		}
		expectArrivals(t, x, "resumed false") // heartbeats are no events
	})
}

// TestHeartbeatDefault is about the interval of a Pushlet that was not told any, also
// where it is set before Start.
func TestHeartbeatDefault(t *testing.T) {
	for _, interval := range []time.Duration{0, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			p := newPushlet(t)
			want := 20
			if interval > 0 {
				check(t, p.SetHeartbeatInterval(interval))
				want = 10
			}
			check(t, p.Start())
			x := startExchange(t, p, "", "")
			time.Sleep(10 * time.Minute)
			if got := x.comments(); got < want-1 || got > want+1 {
				t.Errorf("%d heartbeats in 10 minutes, want %d", got, want)
			}
		})
	}
}

// TestHeartbeatOnTheWire: a heartbeat is a comment line, which no parser takes for an
// event.
func TestHeartbeatOnTheWire(t *testing.T) {
	for _, tr := range transports[:4] {
		s := tr.site(t)
		check(t, s.p.SetHeartbeatInterval(20*time.Millisecond))
		st, _, e := s.connect(t, "", "")
		var raw bytes.Buffer
		st.body = io.TeeReader(st.body, &raw)
		for st.parser.comments < 3 {
			lift := st.limit(patience)
			n, err := st.body.Read(st.buf)
			lift()
			check(t, err)
			if events := st.parser.feed(st.buf[:n]); len(events) > 0 {
				t.Errorf("%s: events %v", tr.name, events)
			}
		}
		if got := strings.ReplaceAll(raw.String(), ":\n\n", ""); got != "" || st.parser.lastID != e.id {
			t.Errorf("%s: %q besides comments, last event ID %q, want %q", tr.name, got, st.parser.lastID, e.id)
		}
		st.close()
	}
}

func TestMaxConnectionAge(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pushlet.Pushlet) {
		check(t, p.SetHeartbeatInterval(10*time.Second))
		x := startExchange(t, p, "topic=a", "")
		for i := range 10 {
			time.Sleep(time.Minute - time.Second)
			check(t, p.Publish("a", "message", strconv.Itoa(i)))
		}
		if x.ended() {
			t.Error("the connection has ended too early")
		}
		time.Sleep(21 * time.Second)
		if !x.ended() {
			t.Error("the connection has not ended")
		}
		if got := x.parser.retry; got < 3*time.Second || got > 9*time.Second {
			t.Errorf("retry = %v, want 3 to 9 seconds", got)
		}
		expectArrivals(t, x, append([]string{"resumed false"}, numbered(0, 9)...)...)
	}, pushlet.WithMaxConnectionAge(10*time.Minute))

	// With real connections: whoever comes back has lost nothing.
	reasons := make(chan pushlet.Reason, 1000)
	s := newSite(t, withOptions(
		pushlet.WithMaxConnectionAge(20*time.Millisecond),
		pushlet.WithHooks(pushlet.Hooks{OnDisconnect: func(_ pushlet.Client, why pushlet.Reason) { reasons <- why }}),
	))
	check(t, s.p.SetHeartbeatInterval(10*time.Millisecond))
	f := &follower{site: s, t: t, query: "topic=a", cursor: cursorFrom(t, s, "topic=a")}
	<-reasons
	next := 0
	publishNext := func() { check(t, s.p.Publish("a", "message", strconv.Itoa(next))) }
	publishNext()
	check(t, f.follow(func(e event) verdict {
		if e.data != strconv.Itoa(next) {
			t.Errorf("message %s, want %d", e.data, next)
			return enough
		}
		next++
		publishNext()
		if f.visits > 5 {
			return enough
		}
		return stay
	}))
	if why := <-reasons; why != pushlet.ReasonMaxAge {
		t.Errorf("reason %q, want %q", why, pushlet.ReasonMaxAge)
	}
}

// cursorFrom opens a stream, leaves it at once, and returns its cursor.
func cursorFrom(t *testing.T, s *site, query string) string {
	t.Helper()
	st, _, e := s.connect(t, query, "")
	st.close()
	return e.id
}

func TestIdleTimeout(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pushlet.Pushlet) {
		check(t, p.SetHeartbeatInterval(10*time.Second))
		idle := startExchange(t, p, "topic=idle", "")
		busy := startExchange(t, p, "topic=busy", "")
		for range 15 {
			time.Sleep(time.Minute)
			check(t, p.Publish("busy", "message", "x"))
		}
		if !idle.ended() {
			t.Error("the idle connection has not ended")
		}
		if busy.ended() {
			t.Error("the busy connection has ended")
		}
		time.Sleep(9 * time.Minute)
		if busy.ended() {
			t.Error("the connection that was busy has ended too early")
		}
		time.Sleep(2 * time.Minute)
		if !busy.ended() {
			t.Error("the connection that was busy has not ended")
		}
	}, pushlet.WithIdleTimeout(10*time.Minute))
}

// ----- hostile requests

func TestHostileQueries(t *testing.T) {
	s := newSite(t)
	var hundreds strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&hundreds, "topic=%d&", i)
	}
	for name, query := range map[string]string{
		"escape":            "topic=%zz",
		"cut escape":        "topic=%e",
		"semicolon":         "topic=a;topic=b",
		"NUL":               "topic=a%00b",
		"LF":                "topic=a%0Ab",
		"CRLF":              "topic=a%0D%0AX-Injected:%201",
		"not UTF-8":         "topic=%FF",
		"overlong UTF-8":    "topic=%C0%AF",
		"surrogate":         "topic=%ED%A0%80",
		"C1":                "topic=%C2%85",
		"cut UTF-8":         "topic=%C2",
		"DEL":               "topic=%7F",
		"long":              "topic=" + strings.Repeat("x", 256),
		"very long":         "topic=" + strings.Repeat("x", 500_000),
		"the broadcast log": "topic=*",
		"thousands":         hundreds.String(),
		"the last is bad":   "topic=a&topic=b&topic=%0A",
	} {
		resp := s.answer(t, http.MethodGet, query, "Accept", "text/event-stream")
		if resp.status != http.StatusBadRequest || len(resp.body) > 1000 {
			t.Errorf("%s: status %d with %d bytes, want 400 and a word", name, resp.status, len(resp.body))
		}
		if resp.header.Get("X-Injected") != "" {
			t.Errorf("%s: injected a header", name)
		}
	}
	for name, query := range map[string]string{
		"many parameters":  strings.Repeat("x=1&", 9_000) + "topic=a",
		"the same topic":   strings.Repeat("topic=a&", 9_000),
		"empty topics":     strings.Repeat("topic=&topic=/&", 4_000) + "topic=a",
		"parameter's case": "topic=a&TOPIC=%00",
	} {
		st, h, _ := s.connect(t, query, "")
		if !slices.Equal(h.Topics, []string{"a"}) {
			t.Errorf("%s: topics %.100q, want a", name, h.Topics)
		}
		st.close()
	}
}

func TestHostileHeaders(t *testing.T) {
	s := newSite(t)
	for name, headers := range map[string][]string{
		"long cursor":    {"Last-Event-ID", strings.Repeat("A", 500_000)},
		"cursor with =":  {"Last-Event-ID", "===="},
		"cursor of text": {"Last-Event-ID", `"><script>`},
		"long origin":    {"Origin", strings.Repeat("x", 100_000)},
		"bad origin":     {"Origin", "https://%zz:port"},
		"long accept":    {"Accept", strings.Repeat("text/event-stream,", 10_000)},
	} {
		st := s.follow(t, "topic=a", headers...)
		h, e := st.expectHello()
		if h.Resumed || len(e.id) > maxSafeHeader {
			t.Errorf("%s: connected %+v with a cursor of %d bytes", name, h, len(e.id))
		}
		st.close()
	}
	if resp := s.answer(t, http.MethodGet, "topic=a", "Last-Event-ID", strings.Repeat("A", 2<<20)); resp.status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d for a header of 2 MiB, want net/http's 431", resp.status)
	}
}

// TestHostileUpstream: an event stream goes one way. What comes the other way changes
// nothing.
func TestHostileUpstream(t *testing.T) {
	for _, tr := range transports[:3] {
		t.Run(tr.name, func(t *testing.T) {
			s := tr.site(t)
			conn := s.dial(t)
			request(t, conn, "topic=a", "HTTP/1.1")
			st := receive(t, conn)
			st.expectHello()
			s.publish(t, "a", "1")
			check(t, conn.SetWriteDeadline(time.Now().Add(patience)))
			for _, junk := range []string{
				"x", "GET /events?topic=b HTTP/1.1\r\nHost: x\r\n\r\n", "\x00\xff\r\n\r\n", strings.Repeat("y", 1000),
			} {
				_, err := conn.Write([]byte(junk))
				check(t, err)
			}
			s.publish(t, "a", "2")
			st.expectMessages("1", "2")
			if tr.hijacked {
				_, err := conn.Write(make([]byte, 4<<20)) // is read and dropped
				check(t, err)
				s.publish(t, "a", "3")
				st.expectMessages("3")
			}
			if got := s.p.Stats(); got.Connected != 1 || got.Clients != 1 {
				t.Errorf("%v, want one connection", got)
			}
		})
	}
}

// TestRequestWithBody: a GET may have a body, of which nothing is a second request.
func TestRequestWithBody(t *testing.T) {
	for _, tr := range transports[:3] {
		t.Run(tr.name, func(t *testing.T) {
			s := tr.site(t)
			conn := s.dial(t)
			_, err := fmt.Fprintf(conn, "GET /events?topic=a HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n%s", strings.Repeat("z", 100_000))
			check(t, err)
			st := receive(t, conn)
			st.expectHello()
			s.publish(t, "a", "1")
			st.expectMessages("1")
		})
	}
}

// TestHalfClosed: a client that says that it will send nothing more is taken for gone,
// as net/http does it too, and leaves nothing behind.
func TestHalfClosed(t *testing.T) {
	for _, tr := range transports[:3] {
		t.Run(tr.name, func(t *testing.T) {
			s := tr.site(t)
			conn := s.dial(t)
			request(t, conn, "topic=a", "HTTP/1.1")
			st := receive(t, conn)
			st.expectHello()
			check(t, conn.(interface{ CloseWrite() error }).CloseWrite())
			s.clientsGone(t)
			if _, err := st.read(); err == nil {
				t.Error("an event after the client was gone")
			}
		})
	}
}

// TestConnectionsThatVanish: connections that end at any point of their beginning leave
// nothing behind.
func TestConnectionsThatVanish(t *testing.T) {
	for _, tr := range transports[:3] {
		s := tr.site(t, withOptions(pushlet.WithMaxClients(100)))
		var all sync.WaitGroup
		for i := range 60 {
			conn := s.dial(t)
			all.Go(func() {
				defer conn.Close()
				const head = "GET /events?topic=a HTTP/1.1\r\nHost: x\r\n\r\n"
				io.WriteString(conn, head[:min(i, len(head))])
				if i > len(head) {
					conn.SetReadDeadline(time.Now().Add(patience))
					_, _ = conn.Read(make([]byte, i))
				}
				if tcp, ok := conn.(*net.TCPConn); ok && i%2 == 0 {
					_ = tcp.SetLinger(0) // RST
				}
			})
		}
		s.publish(t, "a", numbered(1, 100)...)
		all.Wait()
		s.clientsGone(t)
	}
}

// TestFailingWriter: a ResponseWriter that fails in every way costs its own client
// only.
func TestFailingWriter(t *testing.T) {
	s := newSite(t)
	healthy, _, _ := s.connect(t, "topic=a", "")
	broken := errors.New("broken")
	for name, w := range map[string]*failingWriter{
		"flush":          {flush: broken},
		"write":          {write: broken},
		"deadline":       {deadline: broken},
		"not even flush": {flush: http.ErrNotSupported},
	} {
		w.header = make(http.Header)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/events?topic=a", nil)
		soon(t, name, func() { s.p.HandleSSE(w, r) })
		cancel()
		s.publish(t, "a", name)
		healthy.expectMessages(name)
	}
	if got := s.p.Stats().Clients; got != 1 {
		t.Errorf("%d clients, want 1", got)
	}
}

// failingWriter is a ResponseWriter whose methods fail.
type failingWriter struct {
	header                 http.Header
	flush, write, deadline error
}

func (w *failingWriter) Header() http.Header               { return w.header }
func (w *failingWriter) WriteHeader(int)                   {}
func (w *failingWriter) FlushError() error                 { return w.flush }
func (w *failingWriter) SetWriteDeadline(time.Time) error  { return w.deadline }
func (w *failingWriter) Write(b []byte) (n int, err error) { return len(b), w.write }

package pushlettest_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/pushlettest"
)

// modes runs a test in real time and in a bubble, for each protocol.
func modes(t *testing.T, test func(*testing.T, protocol)) {
	for _, p := range []protocol{{"sse", "/events", (*pushlettest.Server).SSE, (*pushlettest.Server).TrySSE},
		{"websocket", "/ws", (*pushlettest.Server).WebSocket, (*pushlettest.Server).TryWebSocket}} {
		t.Run(p.name, func(t *testing.T) { test(t, p) })
		t.Run(p.name+" in a bubble", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, p) })
		})
	}
}

type protocol struct {
	name, path string
	connect    func(*pushlettest.Server, string, ...pushlettest.Option) *pushlettest.Client
	try        func(*pushlettest.Server, string, ...pushlettest.Option) (*pushlettest.Client, pushlettest.Answer)
}

func (p protocol) sse() bool { return p.name == "sse" }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// quiet is a logger for tests that provoke errors.
func quiet() pushlet.Logger { return silence{} }

type silence struct{}

func (silence) Println(...any)                         {}
func (l silence) WithField(string, any) pushlet.Logger { return l }

func newPushlet(options ...pushlet.Option) *pushlet.Pushlet {
	return pushlet.New(append([]pushlet.Option{pushlet.WithLogger(quiet)}, options...)...)
}

func publish(t testing.TB, p *pushlet.Pushlet, topic string, data ...string) {
	t.Helper()
	for _, d := range data {
		check(t, p.Publish(topic, "", d))
	}
}

func numbers(from, to int) (list []string) {
	for i := from; i <= to; i++ {
		list = append(list, strconv.Itoa(i))
	}
	return list
}

func dataOf(events []pushlettest.Event) (data []string) {
	for _, e := range events {
		data = append(data, e.Data)
	}
	return data
}

func TestMessages(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		p := newPushlet()
		c := pr.connect(pushlettest.Serve(t, p), pr.path+"?topic=a&topic=b")
		check(t, p.Publish("a", "", "one\ntwo"))
		check(t, p.Publish("b", "quote", "三"))
		check(t, p.PublishToAll("message", "to all"))
		first := c.Expect("message", "one\ntwo")
		second := c.Next()
		third := c.WaitFor(func(e pushlettest.Event) bool { return e.Data == "to all" })
		if second.Name != "quote" || second.Data != "三" {
			t.Errorf("second message %v", second)
		}
		if got := c.Events(); !slices.Equal(got, []pushlettest.Event{first, second, third}) {
			t.Errorf("events %v", got)
		}
		topics := []string{"a", "b", "*"}
		for i, e := range c.Events() {
			if pr.sse() {
				topics[i] = ""
			}
			if e.Topic != topics[i] || e.ID == "" || e.Time.IsZero() != pr.sse() {
				t.Errorf("event %v with topic %q, ID %q, time %v", e, e.Topic, e.ID, e.Time)
			}
		}
		if gaps := c.Gaps(); len(gaps) > 0 {
			t.Errorf("gaps %v", gaps)
		}
	})
}

func TestOwnEvents(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		c := pr.connect(pushlettest.Serve(t, newPushlet()), pr.path+"?topic=a")
		want := "pushlet.subscribed"
		if pr.sse() {
			want = "pushlet.connected"
		}
		if e := c.NextAny(); e.Name != want {
			t.Errorf("first event %v, want %s", e, want)
		}
		if got := c.Events(); len(got) > 0 {
			t.Errorf("events %v", got)
		}
	})
}

// TestDropInTheMiddle cuts connections again and again while others publish: everything
// arrives exactly once.
func TestDropInTheMiddle(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		const n = 300
		p := newPushlet()
		c := pr.connect(pushlettest.Serve(t, p, pushlettest.WithBuffer(100)), pr.path+"?topic=a")
		var publisher sync.WaitGroup
		defer publisher.Wait()
		publisher.Go(func() {
			for _, d := range numbers(1, n) {
				if err := p.Publish("a", "", d); err != nil {
					t.Error(err)
				}
			}
		})
		for i, d := range numbers(1, n) {
			if i%29 == 0 {
				c.Drop()
				c.Reconnect()
			}
			c.Expect("message", d)
		}
		if got := dataOf(c.Events()); !slices.Equal(got, numbers(1, n)) {
			t.Errorf("received %v", got)
		}
		if gaps := c.Gaps(); len(gaps) > 0 {
			t.Errorf("gaps %v", gaps)
		}
	})
}

// TestBroadcasts has a client come back that got broadcasts: they go on where they stopped,
// if it may follow "*" by name.
func TestBroadcasts(t *testing.T) {
	for _, allowed := range []bool{true, false} {
		t.Run(fmt.Sprint("allowed ", allowed), func(t *testing.T) {
			modes(t, func(t *testing.T, pr protocol) {
				p := newPushlet(pushlet.WithAuthorize(func(_ *http.Request, topic string) error {
					if topic == "*" && !allowed {
						return errors.New("not by name")
					}
					return nil
				}))
				c := pr.connect(pushlettest.Serve(t, p), pr.path+"?topic=a&topic=b")
				check(t, p.PublishToAll("message", "all 1"))
				c.Expect("message", "all 1")
				publish(t, p, "a", "a 1")
				c.Drop()
				check(t, p.PublishToAll("message", "all 2"))
				publish(t, p, "b", "b 1")
				c.Reconnect()
				check(t, p.PublishToAll("message", "all 3"))
				want := []string{"a 1", "all 2", "all 3", "b 1"}
				if !allowed && !pr.sse() {
					want = []string{"a 1", "all 3", "b 1"}
				}
				var got []string
				for range want {
					got = append(got, c.Next().Data)
				}
				slices.Sort(got) // one topic may overtake another
				if !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		})
	}
}

// TestReconnectURL looks at what the server is asked when a client comes back.
func TestReconnectURL(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		p := newPushlet()
		check(t, p.Start())
		defer p.Stop()
		asked := make(chan *http.Request, 10)
		mux := http.NewServeMux()
		mux.HandleFunc("/events", p.HandleSSE)
		mux.HandleFunc("/ws", p.HandleWebSocket)
		c := pr.connect(pushlettest.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked <- r
			mux.ServeHTTP(w, r)
		})), pr.path+"?topic=a&token=t", pushlettest.WithHeader("Cookie", "x=y"))
		publish(t, p, "a", "one")
		last := c.Next()
		old := c.Closed()
		c.Reconnect()
		mustBeClosed(t, old)
		first, second := <-asked, <-asked
		query, id := "token=t", ""
		if pr.sse() {
			query, id = "topic=a&token=t", last.ID
		}
		if got := first.Header.Get("Last-Event-ID"); first.URL.RawQuery != "topic=a&token=t" || got != "" {
			t.Errorf("first %v with position %q", first.URL, got)
		}
		if got := second.Header.Get("Last-Event-ID"); second.URL.RawQuery != query || got != id {
			t.Errorf("second %v with position %q, want query %q and %q", second.URL, got, query, id)
		}
		if second.Header.Get("Cookie") != "x=y" || second.Host != "pushlet.test" {
			t.Errorf("host %q, header %v", second.Host, second.Header)
		}
		if first.RemoteAddr == second.RemoteAddr || !strings.HasPrefix(first.RemoteAddr, "192.0.2.1:") {
			t.Errorf("from %q and %q", first.RemoteAddr, second.RemoteAddr)
		}
	})
}

// TestDropLosesWhatIsOnItsWay has a client that gets something only when it comes back.
func TestDropLosesWhatIsOnItsWay(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		p := newPushlet()
		c := pr.connect(pushlettest.Serve(t, p), pr.path+"?topic=a")
		publish(t, p, "a", "one")
		c.Expect("message", "one")
		c.Stall()
		publish(t, p, "a", "two", "three")
		c.Drop()
		mustBeClosed(t, c.Closed())
		if end := c.WaitClosed(); !end.Cut {
			t.Errorf("end %v, want cut", end)
		}
		if got := dataOf(c.Events()); !slices.Equal(got, []string{"one"}) {
			t.Errorf("received %v before it came back", got)
		}
		c.Reconnect()
		c.Expect("message", "two")
		c.Expect("message", "three")
	})
}

func TestGap(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		p := newPushlet(pushlet.WithHistory(2, 1<<20, time.Hour))
		c := pr.connect(pushlettest.Serve(t, p), pr.path+"?topic=a")
		c.Drop()
		publish(t, p, "a", numbers(1, 5)...)
		c.Reconnect()
		c.Expect("message", "4")
		c.Expect("message", "5")
		want := pushlettest.Gap{Topics: []string{"a"}, Reason: "trimmed"}
		if gaps := c.Gaps(); len(gaps) != 1 || fmt.Sprint(gaps[0]) != fmt.Sprint(want) {
			t.Errorf("gaps %v, want %v", gaps, want)
		}
	})
}

// mustBeClosed fails the test if a connection has not ended.
func mustBeClosed(t *testing.T, closed <-chan struct{}) {
	t.Helper()
	select {
	case <-closed:
	default:
		t.Error("the connection has not ended")
	}
}

func TestDropAll(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		p := newPushlet()
		srv := pushlettest.Serve(t, p)
		var clients []*pushlettest.Client
		for range 5 {
			clients = append(clients, pr.connect(srv, pr.path+"?topic=a"))
		}
		srv.DropAll()
		publish(t, p, "a", "one")
		for _, c := range clients {
			mustBeClosed(t, c.Closed())
			c.Reconnect()
			c.Expect("message", "one")
		}
	})
}

// TestServerSeesDrop has the server notice faults and goodbyes.
func TestServerSeesDrop(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		left := make(chan pushlet.Reason, 2)
		p := newPushlet(pushlet.WithHooks(pushlet.Hooks{
			OnDisconnect: func(_ pushlet.Client, why pushlet.Reason) { left <- why },
		}))
		srv := pushlettest.Serve(t, p)
		c := pr.connect(srv, pr.path+"?topic=a")
		c.Drop()
		if why := <-left; why != pushlet.ReasonClientClosed {
			t.Errorf("reason %q", why)
		}
		c.Reconnect()
		c.Close()
		<-left
		end := c.WaitClosed()
		if pr.sse() && end != (pushlettest.End{Retry: 3 * time.Second}) || !pr.sse() && end.Code != 1000 || end.Cut {
			t.Errorf("end %v", end)
		}
		c.Close() // again: nothing
	})
}

func TestServerEnds(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		p := newPushlet()
		c := pr.connect(pushlettest.Serve(t, p), pr.path+"?topic=a")
		publish(t, p, "a", "one")
		check(t, p.Stop())
		end := c.WaitClosed()
		if pr.sse() && (end.Cut || end.Retry == 0) || !pr.sse() && (end.Code != 1001 || end.Text == "") {
			t.Errorf("end %v", end)
		}
		c.Expect("message", "one") // though the connection has ended
		if answer := c.TryReconnect(); pr.sse() && (answer.Status != 200 || answer.Body == "") ||
			!pr.sse() && answer.Status != 503 {
			t.Errorf("answer %v after Stop", answer)
		}
	})
}

func TestRefused(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		p := newPushlet(pushlet.WithAuthorize(func(r *http.Request, topic string) error {
			if r.Header.Get("Authorization") != "Bearer "+topic {
				return errors.New("not yours")
			}
			return nil
		}))
		srv := pushlettest.Serve(t, p, pushlettest.WithHeader("Authorization", "Bearer ann"))
		pr.connect(srv, pr.path+"?topic=ann")
		c, answer := pr.try(srv, pr.path+"?topic=ben")
		if c != nil || answer.Status != http.StatusForbidden || !strings.Contains(answer.Body, "not yours") {
			t.Errorf("%v, %v", c, answer)
		}
		pr.connect(srv, pr.path+"?topic=ben", pushlettest.WithHeader("authorization", "Bearer ben"))
		if c, answer := pr.try(srv, "/nowhere"); c != nil || answer.Status != http.StatusNotFound {
			t.Errorf("%v, %v", c, answer)
		}
	})
}

// TestSentAway has a client come back when there is no room for it, and later again.
func TestSentAway(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		left := make(chan bool, 10)
		p := newPushlet(pushlet.WithMaxClients(1), pushlet.WithHooks(pushlet.Hooks{
			OnDisconnect: func(pushlet.Client, pushlet.Reason) { left <- true },
		}))
		srv := pushlettest.Serve(t, p)
		c := pr.connect(srv, pr.path+"?topic=a")
		publish(t, p, "a", "one")
		c.Expect("message", "one")
		c.Drop()
		<-left
		var other *pushlettest.Client
		for { // OnDisconnect is called just before the place is free
			var answer pushlettest.Answer
			if other, answer = pr.try(srv, pr.path+"?topic=a"); other != nil {
				break
			}
			if !strings.Contains(answer.Body, "too many clients") && !strings.Contains(answer.Body, "come back later") {
				t.Fatalf("answer %v", answer)
			}
		}
		publish(t, p, "a", "two")
		if answer := c.TryReconnect(); pr.sse() && !strings.Contains(answer.Body, "come back later") ||
			!pr.sse() && answer.Status != http.StatusServiceUnavailable {
			t.Errorf("answer %v", answer)
		}
		mustBeClosed(t, c.Closed())
		other.Close()
		<-left
		for answer := c.TryReconnect(); answer.Body != ""; answer = c.TryReconnect() {
		}
		c.Expect("message", "two")
		if gaps := c.Gaps(); len(gaps) > 0 {
			t.Errorf("gaps %v", gaps)
		}
	})
}

// TestCleanup has the server wait for handlers when the test is over.
func TestCleanup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{TB: t}
		ended := false
		srv := pushlettest.NewServer(r, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			time.Sleep(time.Hour)
			ended = true
		}))
		go func() {
			resp, err := srv.HTTPClient().Get(pushlettest.URL)
			if err == nil {
				resp.Body.Close()
				t.Error("there was an answer")
			}
		}()
		synctest.Wait()
		for _, f := range slices.Backward(r.cleanups) {
			f()
		}
		if !ended {
			t.Error("the handler has not ended")
		}
	})
}

// TestThroughResponseWriter is SSE without taking over the connection: chunked.
func TestThroughResponseWriter(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		if !pr.sse() {
			return
		}
		p := newPushlet(pushlet.WithHijack(false))
		c := pushlettest.Serve(t, p).SSE("/events?topic=a")
		publish(t, p, "a", "one")
		c.Expect("message", "one")
		c.Drop()
		publish(t, p, "a", "two")
		c.Reconnect()
		c.Expect("message", "two")
		check(t, p.Stop())
		if end := c.WaitClosed(); end.Cut {
			t.Errorf("end %v", end)
		}
	})
}

func TestStalledClientFallsBehind(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		p := newPushlet(pushlet.WithQueue(4, 1<<20), pushlet.WithHistory(10, 1<<20, time.Hour))
		srv := pushlettest.Serve(t, p, pushlettest.WithBuffer(64))
		c := pr.connect(srv, pr.path+"?topic=a")
		c.Stall()
		publish(t, p, "a", numbers(1, 100)...)
		p.Stats() // by now the broker has taken them
		c.Unstall()
		last := c.WaitFor(func(e pushlettest.Event) bool { return e.Data == "100" })
		if gaps := c.Gaps(); len(gaps) == 0 || gaps[0].Reason != "trimmed" {
			t.Errorf("gaps %v before %v", gaps, last)
		}
		if stats := p.Stats(); stats.FellBehind == 0 {
			t.Errorf("it did not fall behind: %v", stats)
		}
	})
}

func TestApplicationHandlers(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		p := newPushlet()
		check(t, p.Start())
		defer p.Stop()
		mux := http.NewServeMux()
		mux.HandleFunc("/events", p.HandleSSE)
		mux.HandleFunc("/ws", p.HandleWebSocket)
		mux.HandleFunc("/send", func(w http.ResponseWriter, r *http.Request) {
			check(t, p.Publish("a", "", r.FormValue("text")))
			io.WriteString(w, "sent to "+r.RemoteAddr)
		})
		srv := pushlettest.NewServer(t, mux)
		c := pr.connect(srv, pr.path+"?topic=a")
		for i := range 3 {
			text := fmt.Sprint("hello ", i)
			resp, err := srv.HTTPClient().PostForm(pushlettest.URL+"/send", url.Values{"text": {text}})
			check(t, err)
			body, err := io.ReadAll(resp.Body)
			check(t, err)
			resp.Body.Close()
			if !strings.HasPrefix(string(body), "sent to 192.0.2.1:") {
				t.Errorf("answer %q", body)
			}
			c.Expect("message", text)
		}
	})
}

func TestCommands(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		if pr.sse() {
			return
		}
		p := newPushlet(pushlet.WithAuthorize(func(_ *http.Request, topic string) error {
			if topic == "secret" {
				return errors.New("not for you")
			}
			return nil
		}))
		srv := pushlettest.Serve(t, p)
		c := srv.WebSocket("/ws")
		c.Subscribe("*", "a", "b")
		publish(t, p, "a", "1", "2", "3")
		first := c.Expect("message", "1")
		c.Unsubscribe("b")
		publish(t, p, "b", "not any more")
		c.Ping()
		if got := dataOf(c.Events()); !slices.Equal(got, []string{"1", "2", "3"}) {
			t.Errorf("events %v", got)
		}
		if err := c.TrySubscribe("secret"); err == nil || err.Error() != "not for you" {
			t.Errorf("subscribed to a secret: %v", err)
		}
		if err := c.TrySubscribe("\n"); err == nil {
			t.Error("subscribed to an invalid topic")
		}
		c.Send(`{"action":"dance"}`)
		c.WaitFor(func(e pushlettest.Event) bool {
			return e.Name == "pushlet.error" && strings.Contains(e.Data, "dance")
		})

		other := srv.WebSocket("/ws")
		other.SubscribeSince("a", first.ID)
		other.Expect("message", "2")
		other.Expect("message", "3")

		// All that it follows goes on where it stopped, broadcasts too.
		c.Drop()
		check(t, p.PublishToAll("message", "to all"))
		publish(t, p, "a", "4")
		publish(t, p, "b", "still not")
		c.Reconnect()
		c.WaitFor(func(e pushlettest.Event) bool { return e.Data == "to all" })
		c.WaitFor(func(e pushlettest.Event) bool { return e.Data == "4" })
		c.Ping()
		if got := dataOf(c.Events()); !slices.Equal(got, []string{"1", "2", "3", "to all", "4"}) {
			t.Errorf("events %v", got)
		}
		c.ExpectNone()
	})
}

func TestSubprotocolAndCompression(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		if pr.sse() {
			return
		}
		p := newPushlet(pushlet.WithCompression())
		c, answer := pushlettest.Serve(t, p).TryWebSocket("/ws?topic=a",
			pushlettest.WithHeader("Sec-WebSocket-Protocol", "pushlet.text"),
			pushlettest.WithHeader("Sec-WebSocket-Extensions", "permessage-deflate"))
		if answer.Status != 101 || answer.Header.Get("Sec-WebSocket-Protocol") != "pushlet.text" ||
			answer.Header.Get("Sec-WebSocket-Extensions") == "" {
			t.Errorf("answer %v", answer)
		}
		text := strings.Repeat("long enough ", 100)
		publish(t, p, "a", text)
		c.Expect("message", text)
	})
}

// TestFakeTime has heartbeats, timeouts and expiry in a bubble.
func TestFakeTime(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		if !strings.HasSuffix(t.Name(), "bubble") {
			return
		}
		left := make(chan pushlet.Reason, 10)
		p := newPushlet(pushlet.WithWriteTimeout(20*time.Second), pushlet.WithHistory(10, 1<<20, time.Hour),
			pushlet.WithHooks(pushlet.Hooks{OnDisconnect: func(_ pushlet.Client, why pushlet.Reason) { left <- why }}))
		srv := pushlettest.Serve(t, p, pushlettest.WithTimeout(time.Hour))
		c := pr.connect(srv, pr.path+"?topic=a")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := c.Heartbeats(); n < 19 || n > 21 {
			t.Errorf("%d heartbeats in ten minutes", n)
		}
		c.ExpectNone()
		publish(t, p, "a", "one")
		c.Expect("message", "one")
		c.ExpectNone()

		c.Stall() // as one that has vanished
		publish(t, p, "a", strings.Repeat("x", 10_000))
		began := time.Now()
		if why := <-left; why != pushlet.ReasonWriteTimeout {
			t.Errorf("it was ended for %q", why)
		}
		if d := time.Since(began); d < 20*time.Second || d > 30*time.Second {
			t.Errorf("it was ended after %v", d)
		}
		c.Unstall()
		c.WaitClosed()
		time.Sleep(2 * time.Hour)
		c.Reconnect()
		if gaps := c.Gaps(); len(gaps) > 0 {
			t.Errorf("gaps %v, though the newest message stays for a day", gaps)
		}
		c.Next()

		c.Drop()
		publish(t, p, "a", "two", "three")
		time.Sleep(2 * time.Hour)
		c.Reconnect()
		c.Expect("message", "three")
		if gaps := c.Gaps(); len(gaps) != 1 || gaps[0].Reason != "expired" {
			t.Errorf("gaps %v", gaps)
		}
	})
}

// TestWaits has a client wait for a message that is still to be published.
func TestWaits(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		p := newPushlet()
		c := pr.connect(pushlettest.Serve(t, p), pr.path+"?topic=a")
		later := time.AfterFunc(10*time.Millisecond, func() {
			if err := p.Publish("a", "", "late"); err != nil {
				t.Error(err)
			}
		})
		defer later.Stop()
		c.Expect("message", "late")
	})
}

// A recorder is a test that may fail: what runs in it ends, and the failure is kept.
type recorder struct {
	testing.TB
	failure  string
	cleanups []func()
}

func (r *recorder) Helper() {}

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *recorder) Fatal(args ...any) { r.Fatalf("%s", fmt.Sprint(args...)) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.failure = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// failure runs f as a test of its own and returns how it fails.
func failure(t *testing.T, p *pushlet.Pushlet, pr protocol, f func(*pushlettest.Client)) string {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv := pushlettest.Serve(r, p, pushlettest.WithTimeout(50*time.Millisecond))
		f(pr.connect(srv, pr.path+"?topic=a"))
	}()
	<-done
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
	return r.failure
}

// TestFailures has a test fail where it must, and say why.
func TestFailures(t *testing.T) {
	type client = *pushlettest.Client
	for _, c := range []struct {
		name string
		test func(p *pushlet.Pushlet, c client)
		want []string
	}{
		{"nothing comes", func(_ *pushlet.Pushlet, c client) { c.Next() }, []string{"not within 50ms", "received instead:\n\tpushlet."}},
		{"another comes", func(p *pushlet.Pushlet, c client) {
			_ = p.Publish("a", "x", "1")
			c.Expect("x", "2")
		}, []string{`x "1"`, `want x "2"`}},
		{"another name", func(p *pushlet.Pushlet, c client) {
			_ = p.Publish("a", "x", "1")
			c.Expect("y", "1")
		}, []string{`x "1"`, `want y "1"`}},
		{"the right one never comes", func(p *pushlet.Pushlet, c client) {
			_ = p.Publish("a", "x", "1")
			c.WaitFor(func(e pushlettest.Event) bool { return e.Data == "2" })
		}, []string{"not within 50ms", `x "1"`}},
		{"the connection has ended", func(_ *pushlet.Pushlet, c client) {
			c.Drop()
			c.Next()
		}, []string{"the connection has ended: "}},
		{"it has not ended", func(_ *pushlet.Pushlet, c client) { c.WaitClosed() }, []string{"not within 50ms", "nothing was received"}},
		{"a command without an answer", func(_ *pushlet.Pushlet, c client) {
			c.Drop()
			if err := c.TrySubscribe("b"); err != nil {
				t.Error("the test goes on: ", err)
			}
		}, []string{`subscribe to "b": `}},
		{"it is refused", func(p *pushlet.Pushlet, c client) {
			_ = p.Stop()
			c.Reconnect()
		}, []string{"reconnect: status "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			modes(t, func(t *testing.T, pr protocol) {
				p := newPushlet()
				got := failure(t, p, pr, func(client *pushlettest.Client) { c.test(p, client) })
				for _, want := range c.want {
					if !strings.Contains(got, want) {
						t.Errorf("failure %q, want %q in it", got, want)
					}
				}
			})
		})
	}
}

// TestExpectNone fails where there is something, and where it cannot be known.
func TestExpectNone(t *testing.T) {
	modes(t, func(t *testing.T, pr protocol) {
		p := newPushlet()
		got := failure(t, p, pr, func(c *pushlettest.Client) {
			if !pr.sse() || strings.HasSuffix(t.Name(), "bubble") {
				c.ExpectNone()
			}
			_ = p.Publish("a", "", "something")
			c.ExpectNone()
		})
		want := `message "something"`
		if pr.sse() && !strings.HasSuffix(t.Name(), "bubble") {
			want = "in a synctest bubble only"
		}
		if !strings.Contains(got, want) {
			t.Errorf("failure %q, want %q", got, want)
		}
	})
}

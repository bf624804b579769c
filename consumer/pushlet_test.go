package consumer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/consumer"
	"github.com/usual2970/pushlet/pushlettest"
)

// Both protocols, from a Pushlet.

func TestMessages(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		p := start(t)
		l := listen(t, path(serve(t, p).URL)+"?topic=a", consumer.WithTopics("b c"))
		l.subscribed("a", "b c")
		before := time.Now().Add(-time.Second)
		must(t, p.Publish("a", "", "one"))
		must(t, p.Publish("b c", "custom", "two\nthree"))
		must(t, p.Publish("nobody", "custom", "four"))
		must(t, p.PublishToAll("notice", "five"))
		for _, want := range []consumer.Message{
			{Topic: "a", Event: "message", Data: "one"},
			{Topic: "b c", Event: "custom", Data: "two\nthree"},
			{Topic: "*", Event: "notice", Data: "five"},
		} {
			got := l.next()
			if got.ID == "" || got.Gap != nil {
				t.Errorf("message %+v", got)
			}
			if got.Topic == "" { // SSE does not say
				want.Topic = ""
			} else if got.Time.Before(before) || got.Time.After(time.Now().Add(time.Second)) {
				t.Errorf("time %v", got.Time)
			}
			if got.ID, got.Time = "", (time.Time{}); got != want {
				t.Errorf("message %+v, want %+v", got, want)
			}
		}
		l.stop()
		if err := l.end(); !errors.Is(err, context.Canceled) {
			t.Errorf("final error %v", err)
		}
		if len(l.errs) > 0 || len(l.opened) != 1 {
			t.Errorf("%d connections, error %v", len(l.opened), <-l.errs)
		}
	})
}

// Connections are cut in the midst of everything, and all comes once and in order.
func TestExactlyOnce(t *testing.T) {
	const messages = 3000
	both(t, func(t *testing.T, path func(string) string) {
		p := start(t, pushlet.WithHistory(100_000, 1<<30, time.Hour))
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		c := cut(t, serve(t, p).URL, func() int {
			if r.IntN(4) == 0 {
				return r.IntN(1000) // within the handshake, or the resume
			}
			return r.IntN(60_000)
		})
		l := listen(t, path(c.url)+"?topic=a&topic=b", quickly)
		l.subscribed("a", "b")
		go func() {
			for i := range messages {
				data := fmt.Sprintf("%d %s", i, strings.Repeat("x", i%300))
				var err error
				switch i % 3 {
				case 0:
					err = p.Publish("a", "message", data)
				case 1:
					err = p.Publish("b", "message", data)
				default:
					err = p.PublishToAll("message", data)
				}
				if err != nil {
					t.Error(err)
				}
				if i%100 == 0 {
					time.Sleep(time.Millisecond) // so that not all is there at once
				}
			}
		}()
		next := []int{0, 1, 2} // of each log, which has an order of its own when it is resumed
		for range messages {
			m := l.next()
			var i int
			if m.Gap != nil {
				t.Fatalf("seed %d: gap %v", seed, m.Gap)
			}
			if _, err := fmt.Sscan(m.Data, &i); err != nil || i != next[i%3] {
				t.Fatalf("seed %d: message %d, want %v", seed, i, next)
			}
			next[i%3] += 3
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.cuts < 5 {
			t.Errorf("only %d cuts", c.cuts)
		}
		t.Logf("%d cuts, %d connections", c.cuts, len(l.opened))
	})
}

// A server that was started again has no history: the client is told.
func TestRestart(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		var current atomic.Pointer[pushlet.Pushlet]
		current.Store(start(t))
		mux := http.NewServeMux()
		mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) { current.Load().HandleSSE(w, r) })
		mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) { current.Load().HandleWebSocket(w, r) })
		s := httptest.NewServer(mux)
		defer s.Close()
		l := listen(t, path(s.URL), consumer.WithTopics("a"), quickly)
		l.subscribed("a")
		must(t, current.Load().Publish("a", "message", "one"))
		l.expect("one")

		old := current.Load()
		current.Store(start(t))
		must(t, old.Stop())
		first := l.next()
		gaps := []string{}
		for m := first; len(gaps) < 2; m = l.next() { // one for both over SSE, one each over WebSocket
			if m.Gap == nil || m.Gap.Reason != "restarted" {
				t.Fatalf("message %+v, gap %v", m, m.Gap)
			}
			if gaps = append(gaps, m.Gap.Topics...); len(gaps) == 2 {
				break
			}
		}
		if slices.Sort(gaps); !slices.Equal(gaps, []string{"*", "a"}) {
			t.Errorf("gaps %q", gaps)
		}
		l.subscribed("a")
		must(t, current.Load().Publish("a", "message", "two"))
		must(t, current.Load().PublishToAll("message", "three"))
		l.expect("two", "three")
		if err := l.retry(); err.Attempt != 1 {
			t.Errorf("error %+v", err)
		}
	})
}

// A history that is too short: the gap, then what there is.
func TestGap(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		p := start(t, pushlet.WithHistory(2, 1<<20, time.Hour))
		url := path(serve(t, p).URL)
		c := consumer.NewClient(url, consumer.WithTopics("a"))
		l := listenTo(t, c)
		l.subscribed("a")
		must(t, p.Publish("a", "message", "0"))
		l.expect("0")
		l.stop()
		_ = l.end()
		for i := range 5 {
			must(t, p.Publish("a", "message", fmt.Sprint(i+1)))
		}
		l = listenTo(t, c) // goes on where it was
		l.expectGap("trimmed", "a")
		l.expect("4", "5")
		l.stop()
		_ = l.end()
		must(t, p.Publish("a", "message", "6"))
		l = listenTo(t, c) // the gap is not told again
		l.expect("6")
		if g := (&consumer.Gap{Topics: []string{"a"}, Reason: "trimmed"}).Error(); !strings.Contains(g, `"a"`) || !strings.Contains(g, "trimmed") {
			t.Error(g)
		}
	})
}

// Leaving the loop closes the connection, and a new loop goes on after the last message.
func TestBreak(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		p := start(t)
		c := consumer.NewClient(path(serve(t, p).URL)+"?topic=a", quickly)
		c.OnSubscribed(func(string) {
			if p.Stats().Published == 0 {
				for i := range 10 {
					must(t, p.Publish("a", "message", fmt.Sprint(i)))
				}
			}
		})
		var got []string
		for range 5 {
			for m, err := range c.Messages(t.Context()) {
				must(t, err)
				if got = append(got, m.Data); len(got)%2 == 0 {
					break
				}
			}
			select {
			case <-c.Wait():
			default:
				t.Error("it runs after the loop")
			}
		}
		if want := []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}; !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
		for p.Stats().SSE+p.Stats().WebSocket > 0 {
			time.Sleep(time.Millisecond) // until the server has seen it
		}
	})
}

// A panic of the body passes, and leaves nothing behind.
func TestPanic(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		p := start(t)
		url := path(serve(t, p).URL) + "?topic=a"
		publish := consumer.WithOnSubscribed(func(string) { must(t, p.Publish("a", "message", "x")) })
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		for m, err := range consumer.Subscribe(t.Context(), url, publish) {
			must(t, err)
			panic(m)
		}
	})
}

// A slow body loses nothing, and pings of a WebSocket are answered meanwhile.
func TestSlowBody(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		synctest.Test(t, func(t *testing.T) {
			p := pushlet.New(pushlet.WithLogger(silent))
			srv := pushlettest.Serve(t, p)
			c := consumer.NewClient(path(pushlettest.URL)+"?topic=a", consumer.WithHTTPClient(srv.HTTPClient()))
			c.OnError(func(err error) { t.Error(err) })
			c.OnSubscribed(func(string) {
				for i := range 20 {
					must(t, p.Publish("a", "message", fmt.Sprint(i)))
				}
			})
			n := 0
			for m, err := range c.Messages(t.Context()) {
				if err != nil || m.Data != fmt.Sprint(n) {
					t.Fatalf("%+v, %v", m, err)
				}
				if time.Sleep(10 * time.Minute); n == 19 {
					break
				}
				n++
			}
		})
	})
}

// A server that says nothing is dead, one with heartbeats is not.
func TestIdleTimeout(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		synctest.Test(t, func(t *testing.T) {
			p := pushlet.New(pushlet.WithLogger(silent))
			srv := pushlettest.Serve(t, p)
			l := listen(t, path(pushlettest.URL)+"?topic=a", consumer.WithHTTPClient(srv.HTTPClient()), consumer.WithIdleTimeout(time.Minute))
			l.subscribed("a")
			time.Sleep(time.Hour)
			if len(l.errs) > 0 {
				t.Fatalf("error %v", <-l.errs)
			}
			must(t, p.SetHeartbeatInterval(24*time.Hour))
			time.Sleep(time.Hour) // until the last heartbeat of before is over
			for len(l.errs) > 0 {
				if again := l.retry(); !errors.Is(again.Err, consumer.ErrIdle) {
					t.Errorf("error %v", again.Err)
				}
			}
			if len(l.opened) < 30 {
				t.Errorf("%d connections in an hour", len(l.opened))
			}
			must(t, p.Publish("a", "message", "x"))
			l.expect("x")
		})
	})
}

func TestSubscribeMakesNewOnes(t *testing.T) {
	p := start(t)
	connections := 0
	seq := consumer.Subscribe(t.Context(), serve(t, p).URL+"/events", consumer.WithTopics("a"),
		consumer.WithOnConnection(func() { connections++ }), consumer.WithMaxSize(0),
		consumer.WithOnSubscribed(func(string) { must(t, p.Publish("a", "message", "x")) }))
	for range 2 { // the second does not resume
		for m, err := range seq {
			if err != nil || m.Data != "x" {
				t.Errorf("%+v, %v", m, err)
			}
			break
		}
	}
	if n := p.Stats().Resumes; n != 0 || connections != 2 {
		t.Errorf("%d resumes, %d connections", n, connections)
	}
}

func TestStartingPosition(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		p := start(t)
		url := path(serve(t, p).URL)
		l := listen(t, url, consumer.WithTopics("a"))
		l.subscribed("a")
		for i := range 4 {
			must(t, p.Publish("a", "message", fmt.Sprint(i)))
		}
		id := l.expect("0", "1").ID
		l.expect("2", "3")
		option := consumer.WithSince("a", id)
		if strings.HasPrefix(url, "http") {
			option = consumer.WithLastEventID(id)
		}
		listen(t, url, consumer.WithTopics("a"), option).expect("2", "3")
	})
}

// Compressed or not, the same.
func TestCompression(t *testing.T) {
	p := start(t, pushlet.WithCompression())
	url := "ws" + strings.TrimPrefix(serve(t, p).URL, "http") + "/ws?topic=a"
	l := listen(t, url, consumer.WithCompression())
	l.subscribed("a")
	data := strings.Repeat("the same ", 10_000)
	must(t, p.Publish("a", "message", data))
	l.expect(data)
	small := listen(t, url, consumer.WithCompression(), consumer.WithMaxSize(10_000))
	small.subscribed("a")
	must(t, p.Publish("a", "message", data))
	if err := small.end(); !errors.Is(err, consumer.ErrTooLarge) {
		t.Errorf("final error %v", err)
	}
}

// What is too large ends it, since it would come again.
func TestTooLarge(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		p := start(t)
		l := listen(t, path(serve(t, p).URL)+"?topic=a", consumer.WithMaxSize(1000))
		l.subscribed("a")
		must(t, p.Publish("a", "message", strings.Repeat("x", 500)))
		must(t, p.Publish("a", "message", strings.Repeat("x", 2000)))
		l.expect(strings.Repeat("x", 500))
		if err := l.end(); !errors.Is(err, consumer.ErrTooLarge) || len(l.errs) > 0 {
			t.Errorf("final error %v", err)
		}
	})
}

// FuzzRoundTrip publishes anything, and has both protocols receive it.
func FuzzRoundTrip(f *testing.F) {
	for _, data := range []string{
		"", "\n", "\r", "\r\n", "a\nb\rc\r\nd", "\n\n\n", " a", ":a", "\x00", "\uFEFFa", "data: x\n\nevent: y",
		"id: 1\nretry: 1\n\n", "👩‍👩‍👧‍👦", "\u2028", "\xff", "\"\\\u007f<>&", "\xE2\x82", "\xED\xA0\x80",
	} {
		f.Add("message", data)
	}
	f.Add("custom-event", "x")
	f.Add(" x", "x")
	f.Add("*", "x")
	p := pushlet.New(pushlet.WithLogger(silent))
	srv := pushlettest.Serve(f, p)
	client := consumer.WithHTTPClient(srv.HTTPClient())
	sse := listen(f, pushlettest.URL+"/events?topic=a", client)
	ws := listen(f, "ws://pushlet.test/ws?topic=a", client)
	sse.subscribed("a")
	ws.subscribed("a")
	f.Fuzz(func(t *testing.T, name, data string) {
		if p.Publish("a", name, data) != nil {
			t.Skip()
		}
		if name == "" {
			name = consumer.DefaultEventType
		}
		sse.t, ws.t = t, t
		name, data = strings.ToValidUTF8(name, "\uFFFD"), strings.ToValidUTF8(data, "\uFFFD") // as Publish does
		if m := ws.next(); m.Event != name || m.Data != data || m.Topic != "a" {
			t.Errorf("WebSocket: %q %q, want %q %q", m.Event, m.Data, name, data)
		}
		want := received(name, data)[0]
		if m := sse.next(); m.Event != want.name || m.Data != want.data {
			t.Errorf("SSE: %q %q, want %q", m.Event, m.Data, want)
		}
	})
}

// A rawStream is the bytes of an event stream, and what the Decoder makes of them.
type rawStream struct {
	t   testing.TB
	raw bytes.Buffer
	d   *consumer.Decoder
	all []decoded
}

func openRaw(t testing.TB, web *http.Client, query, lastID string) *rawStream {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, pushlettest.URL+"/events?"+query, nil)
	must(t, err)
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := web.Do(req)
	must(t, err)
	t.Cleanup(func() { resp.Body.Close() })
	s := &rawStream{t: t}
	s.d = consumer.NewDecoder(io.TeeReader(resp.Body, &s.raw))
	return s
}

// take decodes the next events.
func (s *rawStream) take(n int) []decoded {
	s.t.Helper()
	for range n {
		m, err := s.d.Next()
		must(s.t, err)
		s.all = append(s.all, decoded{m.Event, m.Data, m.ID})
	}
	return s.all[len(s.all)-n:]
}

// FuzzServerStream publishes anything to the followers of several topics, and reads the server's
// own bytes: as they come, cut anyhow, resumed from each of their IDs, and with a gap. Whatever
// is in a message, it is one event, with an ID to go on from.
func FuzzServerStream(f *testing.F) {
	for _, data := range []string{"", "a\rb\nc\r\nd", "\r\n\r\n", "\xE2\x82|\xFF|\uFFFD", "id: 1\nretry: 1\n\nevent: x", "\uFEFF\x00: "} {
		f.Add("message", data, []byte{1})
		f.Add("custom event", data, []byte{3, 0, 20})
	}
	const history = 3
	p := pushlet.New(pushlet.WithLogger(silent), pushlet.WithRetry(1234*time.Millisecond), pushlet.WithHistory(history, 1<<20, time.Hour))
	web := pushlettest.Serve(f, p).HTTPClient()
	f.Fuzz(func(t *testing.T, name, data string, cuts []byte) {
		s := openRaw(t, web, "topic=a&topic=b", "")
		if first := s.take(1)[0]; first.name != "pushlet.connected" || first.id == "" {
			t.Fatalf("first %q", first)
		}
		if p.Publish("a", name, data) != nil {
			t.Skip()
		}
		must(t, p.PublishToAll(name, "\r"+data))
		must(t, p.Publish("b", name, data+"\n"))
		want := received(name, data, "\r"+data, data+"\n")
		if got := withoutIDs(s.take(3)); !slices.Equal(got, want) {
			t.Fatalf("%q, want %q", got, want)
		}
		if retry, ok := s.d.Retry(); !ok || retry != 1234*time.Millisecond {
			t.Errorf("retry %v", retry)
		}
		got, err := outcome(t, inChunks(s.raw.String(), sizesOf(cuts)...), 0)
		if !errors.Is(err, io.EOF) || !slices.Equal(got.events, s.all) || !got.equal(reference(s.raw.String())) {
			t.Errorf("cut %+v, %v; want %q", got, err, s.all)
		}
		for i, from := range s.all {
			again := openRaw(t, web, "topic=a&topic=b", from.id)
			got := again.take(1 + len(want[i:]))
			if !strings.Contains(got[0].data, `"resumed":true`) || !slices.Equal(withoutIDs(got[1:]), want[i:]) ||
				from.id == "" || got[len(got)-1].id != s.all[len(s.all)-1].id {
				t.Errorf("resumed after %d: %q, want %q", i, got, want[i:])
			}
		}

		last := s.all[len(s.all)-1].id
		for range history + 1 {
			must(t, p.Publish("a", name, data))
		}
		late := openRaw(t, web, "topic=a&topic=b", last)
		events := late.take(2 + history)
		if gap := events[1]; gap.name != consumer.GapEvent || !strings.Contains(gap.data, `"a"`) || strings.Contains(gap.data, `"b"`) || gap.id == "" {
			t.Errorf("gap %q", gap)
		}
		if got, want := withoutIDs(events[2:]), received(name, slices.Repeat([]string{data}, history)...); !slices.Equal(got, want) {
			t.Errorf("after the gap %q, want %q", got, want)
		}
	})
}

// received is how SSE delivers what was published.
func received(name string, data ...string) (events []decoded) {
	if name == "" {
		name = consumer.DefaultEventType
	}
	for _, d := range data {
		d = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(strings.ToValidUTF8(d, "\uFFFD"))
		events = append(events, decoded{strings.ToValidUTF8(name, "\uFFFD"), d, ""})
	}
	return events
}

func withoutIDs(events []decoded) (out []decoded) {
	for _, e := range events {
		out = append(out, decoded{e.name, e.data, ""})
	}
	return out
}

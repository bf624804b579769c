package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/consumer"
)

// What only a WebSocket can do.

func wsURL(base string) string { return "ws" + strings.TrimPrefix(base, "http") + "/ws" }

func TestSubscribeWhileRunning(t *testing.T) {
	p := start(t)
	c := cut(t, serve(t, p).URL, func() int { return -1 })
	client := consumer.NewClient(wsURL(c.url), quickly)
	must(t, client.Subscribe("before"))
	l := listenTo(t, client)
	l.subscribed("before")
	must(t, client.Subscribe("a", "b"))
	must(t, client.Subscribe("a")) // once more is nothing
	l.subscribed("a", "b")
	for _, topic := range []string{"a", "b", "before"} {
		must(t, p.Publish(topic, "message", topic))
	}
	l.expect("a", "b", "before")

	must(t, client.Unsubscribe("a", "never"))
	must(t, p.Publish("a", "message", "not any more"))
	must(t, p.Publish("b", "message", "b2"))
	l.expect("b2")

	c.cutAll() // what is followed then is what was followed before
	must(t, p.Publish("b", "message", "b3"))
	must(t, p.Publish("a", "message", "not any more"))
	must(t, p.PublishToAll("message", "all"))
	got := []string{l.next().Data, l.next().Data} // two logs, in any order
	if slices.Sort(got); !slices.Equal(got, []string{"all", "b3"}) {
		t.Errorf("got %q", got)
	}

	must(t, client.Subscribe("a")) // from now on
	l.subscribed("b", "before", "a")
	must(t, p.Publish("a", "message", "again"))
	l.expect("again")

	// Without a topic there are no broadcasts.
	must(t, client.Unsubscribe("a", "b", "before"))
	must(t, client.Subscribe("other"))
	l.subscribed("other")
	must(t, client.Unsubscribe("other"))
	must(t, p.PublishToAll("message", "nobody"))
	must(t, client.Subscribe("last"))
	l.subscribed("last")
	must(t, p.Publish("last", "message", "last"))
	l.expect("last")
	l.nothing()
}

// A body may change what it follows, and Unsubscribe is the end, also of what was received
// already.
func TestUnsubscribeInTheBody(t *testing.T) {
	p := start(t)
	client := consumer.NewClient(wsURL(serve(t, p).URL), consumer.WithTopics("a", "b"))
	ready := 0
	client.OnSubscribed(func(topic string) {
		if ready++; ready == 2 {
			for range 10 {
				must(t, p.Publish("a", "message", "a"))
			}
			must(t, p.Publish("b", "message", "b"))
		}
		if topic == "c" {
			must(t, p.Publish("c", "message", "c"))
		}
	})
	var got []string
	for m, err := range client.Messages(t.Context()) {
		must(t, err)
		switch got = append(got, m.Data); m.Data {
		case "a":
			must(t, client.Unsubscribe("a"))
		case "b":
			must(t, client.Subscribe("c"))
		}
		if m.Data == "c" {
			break
		}
	}
	if want := []string{"a", "b", "c"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Many goroutines change what is followed, while connections break; at the end it is right.
func TestSubscribeConcurrently(t *testing.T) {
	p := start(t, pushlet.WithCommandRate(1e6, 1e6))
	c := cut(t, serve(t, p).URL, func() int { return 20_000 })
	client := consumer.NewClient(wsURL(c.url), quickly)
	l := listenTo(t, client)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			topic := fmt.Sprint("topic", i)
			for range 100 {
				must(t, client.Subscribe(topic, "common"))
				_ = p.Publish(topic, "message", "noise")
				must(t, client.Unsubscribe(topic))
			}
			must(t, client.Subscribe(topic))
		})
	}
	all.Wait()
	c.cutAll()
	deadline := time.Now().Add(patience)
	for want := map[string]bool{"topic0": true, "topic1": true, "topic2": true, "topic3": true, "common": true}; len(want) > 0; {
		for topic := range want {
			must(t, p.Publish(topic, "message", "end"))
		}
		for len(l.items) > 0 {
			if m := l.next(); m.Data == "end" {
				delete(want, m.Topic)
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("not followed: %v", want)
		}
		time.Sleep(time.Millisecond)
	}
	for len(l.errs) > 0 {
		_ = l.retry() // no TopicError
	}
}

// One topic that the server refuses is told, the others go on; also when access is withdrawn
// while the client is away.
func TestRefusedTopic(t *testing.T) {
	var withdrawn atomic.Bool
	p := start(t, pushlet.WithAuthorize(func(_ *http.Request, topic string) error {
		if topic == "secret" || topic == "later" && withdrawn.Load() {
			return errors.New("not for you")
		}
		return nil
	}))
	c := cut(t, serve(t, p).URL, func() int { return -1 })
	l := listen(t, wsURL(c.url)+"?topic=later", quickly, consumer.WithTopics("a", "secret"))
	l.subscribed("later", "a")
	refused := func(topic string) {
		t.Helper()
		for {
			var no *consumer.TopicError
			err := take(l, "a TopicError", l.errs)
			if errors.As(err, &no) {
				if no.Topic != topic || no.Text != "not for you" || !strings.Contains(err.Error(), topic) {
					t.Errorf("error %v", err)
				}
				return
			}
		}
	}
	refused("secret")
	must(t, p.Publish("a", "message", "one"))
	l.expect("one")
	withdrawn.Store(true)
	c.cutAll()
	refused("later")
	l.subscribed("a")
	must(t, p.Publish("a", "message", "two"))
	l.expect("two")
	if l.nothing(); len(l.errs) > 0 {
		t.Errorf("error %v", <-l.errs)
	}
}

// Who may not resume broadcasts is told that some may be missing.
func TestBroadcastsThatCannotBeResumed(t *testing.T) {
	p := start(t, pushlet.WithAuthorize(func(_ *http.Request, topic string) error {
		if topic == "*" {
			return errors.New("no")
		}
		return nil
	}))
	c := cut(t, serve(t, p).URL, func() int { return -1 })
	l := listen(t, wsURL(c.url), quickly, consumer.WithTopics("a"))
	l.subscribed("a")
	must(t, p.PublishToAll("message", "one"))
	l.expect("one")
	c.cutAll()
	l.expectGap(consumer.NotResumable, "*")
	l.subscribed("a")
	must(t, p.PublishToAll("message", "two"))
	must(t, p.Publish("a", "message", "three"))
	l.expect("two", "three")
	_ = l.retry()
	if len(l.errs) > 0 {
		t.Errorf("error %v", <-l.errs)
	}
}

// Who may no longer resume broadcasts is told as well, and so is who comes with a position.
func TestBroadcastsWithdrawn(t *testing.T) {
	var withdrawn atomic.Bool
	p := start(t, pushlet.WithAuthorize(func(_ *http.Request, topic string) error {
		if topic == "*" && withdrawn.Load() {
			return errors.New("no")
		}
		return nil
	}))
	c := cut(t, serve(t, p).URL, func() int { return -1 })
	l := listen(t, wsURL(c.url), quickly, consumer.WithTopics("a"))
	l.subscribed("a")
	must(t, p.PublishToAll("message", "one"))
	id := l.expect("one").ID
	withdrawn.Store(true)
	for range 2 {
		c.cutAll()
		l.expectGap(consumer.NotResumable, "*")
		l.subscribed("a")
	}
	must(t, p.PublishToAll("message", "two"))
	l.expect("two")

	other := listen(t, wsURL(c.url), quickly, consumer.WithTopics("a"), consumer.WithSince("*", id))
	other.expectGap(consumer.NotResumable, "*")
	other.subscribed("a")
	must(t, p.PublishToAll("message", "three"))
	l.expect("three")
	other.expect("three")

	withdrawn.Store(false) // the next connection learns of it, and the one after that resumes
	c.cutAll()
	l.expectGap(consumer.NotResumable, "*")
	l.subscribed("a")
	c.cutAll()
	must(t, p.PublishToAll("message", "four"))
	l.expect("four")
	l.nothing()
}

// What changes while a connection is made counts.
func TestSubscribeDuringTheHandshake(t *testing.T) {
	p := start(t)
	c := cut(t, serve(t, p).URL, func() int { return -1 })
	var client *consumer.Client
	n := 0
	client = consumer.NewClient(wsURL(c.url), quickly, consumer.WithTopics("a", "b"), consumer.WithHeaderFunc(func(context.Context) (http.Header, error) {
		if n++; n == 2 {
			must(t, client.Unsubscribe("a", "b"))
			must(t, p.Publish("a", "message", "before"))
			must(t, client.Subscribe("a", "c"))
		}
		return nil, nil
	}))
	l := listenTo(t, client)
	l.subscribed("a", "b")
	c.cutAll()
	l.subscribed("a", "c")
	for _, topic := range []string{"b", "a", "c"} {
		must(t, p.Publish(topic, "message", topic))
	}
	l.expect("a", "c")
	c.cutAll()
	must(t, p.Publish("a", "message", "a2"))
	l.expect("a2")
	l.nothing()
}

// Positions in the URL, one for all topics or one for each.
func TestSinceInTheURL(t *testing.T) {
	p := start(t)
	url := wsURL(serve(t, p).URL)
	l := listen(t, url+"?topic=a&topic=b")
	l.subscribed("a", "b")
	ids := map[string]string{}
	for i := range 3 {
		for _, topic := range []string{"a", "b"} {
			must(t, p.Publish(topic, "message", fmt.Sprint(topic, i)))
			if m := l.next(); i == 1 {
				ids[topic] = m.ID
			}
		}
	}
	l = listen(t, url+"?topic=b&topic=/&topic=a&since="+ids["b"]+"&since=&since="+ids["a"])
	l.expect("a2", "b2")
	l = listen(t, url+"?topic=a&since="+ids["a"])
	l.expect("a2")
	if err := listen(t, url+"?topic=a&since=x&since=y").end(); err == nil || !strings.Contains(err.Error(), "since") {
		t.Errorf("final error %v", err)
	}
}

// A client with a user gets what is for it, without asking, once.
func TestUser(t *testing.T) {
	p := start(t, pushlet.WithIdentity(func(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil }))
	c := cut(t, serve(t, p).URL, func() int { return -1 })
	l := listen(t, wsURL(c.url), quickly, consumer.WithHeader("X-User", "ann"))
	l.subscribed("@user")
	for i := range 10 {
		must(t, p.PublishToUsers([]string{"ann", "ben"}, "message", fmt.Sprint(i)))
		if i%3 == 2 {
			c.cutAll()
		}
		must(t, p.PublishToAll("message", fmt.Sprint("all", i)))
	}
	own, all := 0, 0
	for range 20 {
		m := l.next()
		switch {
		case m.Topic == "@user" && m.Data == fmt.Sprint(own):
			own++
		case m.Topic == "*" && m.Data == fmt.Sprint("all", all):
			all++
		default:
			t.Fatalf("message %+v after %d and %d", m, own, all)
		}
	}
}

// More topics than fit into a URL or a command.
func TestManyTopics(t *testing.T) {
	p := start(t, pushlet.WithMaxTopics(500))
	c := cut(t, serve(t, p).URL, func() int { return -1 })
	topics := make([]string, 180)
	for i := range topics {
		topics[i] = fmt.Sprintf("topic %d %s", i, strings.Repeat("x", 100))
	}
	l := listen(t, wsURL(c.url), quickly, consumer.WithTopics(topics...))
	l.subscribed(topics...)
	c.cutAll()
	for i, topic := range topics {
		must(t, p.Publish(topic, "message", fmt.Sprint(i)))
	}
	got := map[string]bool{}
	for range topics {
		got[l.next().Data] = true
	}
	if len(got) != len(topics) {
		t.Errorf("%d topics", len(got))
	}
	// More than the server lets a client have.
	few := start(t, pushlet.WithMaxTopics(2))
	l = listen(t, wsURL(serve(t, few).URL), consumer.WithTopics("a", "b"))
	l.subscribed("a", "b")
	l = listen(t, wsURL(serve(t, few).URL), consumer.WithTopics("a", "b", "c"))
	var no *consumer.TopicError
	if err := take(l, "an error", l.errs); !errors.As(err, &no) || !strings.Contains(no.Text, "more than 2") {
		t.Errorf("error %v", err)
	}
}

// socket serves WebSockets that do something of their own.
func socket(t *testing.T, answers ...func(ws *websocket.Conn, r *http.Request)) *httptest.Server {
	t.Helper()
	var list []http.HandlerFunc
	for _, answer := range answers {
		list = append(list, func(w http.ResponseWriter, r *http.Request) {
			ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer ws.Close()
			answer(ws, r)
		})
	}
	return scripted(t, list...)
}

func send(ws *websocket.Conn, kind int, text []byte) {
	_ = ws.WriteMessage(kind, text) // it fails if the client has gone
}

func swallow(ws *websocket.Conn) {
	for {
		if _, _, err := ws.ReadMessage(); err != nil {
			return
		}
	}
}

func say(text string) func(*websocket.Conn, *http.Request) {
	return func(ws *websocket.Conn, _ *http.Request) {
		send(ws, websocket.BinaryMessage, []byte(text))
		swallow(ws)
	}
}

func TestNotPushlet(t *testing.T) {
	for _, text := range []string{"hello", "{}", "[]", `{"data":"x"}`, `{"event":1}`, `{"event":"a"} {}`} {
		srv := socket(t, say(text))
		l := listen(t, wsURL(srv.URL), quickly)
		if err := l.end(); !errors.Is(err, consumer.ErrNotPushlet) {
			t.Errorf("%q: %v", text, err)
		}
	}
	// The simplest messages are good.
	srv := socket(t, say(`{"event":"message","data":"x","timestamp":"2024-01-01T12:00:00Z"}`))
	if m := listen(t, wsURL(srv.URL)).expect("x"); !m.Time.Equal(time.Date(2024, 1, 1, 12, 0, 0, 0, time.UTC)) {
		t.Errorf("message %+v", m)
	}
}

// A topic that the server cannot give just now is tried again from where it was.
func TestUnavailableTopic(t *testing.T) {
	if !strings.HasPrefix(pushlet.ErrUnavailable.Error(), "pushlet: unavailable") {
		t.Errorf("the server says %q", pushlet.ErrUnavailable)
	}
	queries := make(chan string, 10)
	srv := socket(t,
		func(ws *websocket.Conn, r *http.Request) {
			send(ws, websocket.TextMessage, []byte(`{"topic":"a","event":"pushlet.subscribed","data":"","id":"1-0"}`))
			send(ws, websocket.TextMessage, []byte(`{"topic":"a","event":"message","data":"one","id":"2-0"}`))
			send(ws, websocket.CloseMessage, nil)
			swallow(ws) // closed with something unread, a socket takes back what was sent
		},
		func(ws *websocket.Conn, r *http.Request) {
			queries <- r.URL.RawQuery
			send(ws, websocket.TextMessage, []byte(`{"topic":"a","event":"pushlet.error","data":"pushlet: unavailable"}`))
			swallow(ws)
		},
		func(ws *websocket.Conn, r *http.Request) {
			queries <- r.URL.RawQuery
			say(`{"topic":"a","event":"message","data":"two","id":"3-0"}`)(ws, r)
		})
	l := listen(t, wsURL(srv.URL)+"?topic=a&x=y", quickly)
	l.expect("one", "two")
	for range 2 {
		if q := <-queries; q != "x=y&since=2-0&topic=a" {
			t.Errorf("query %q", q)
		}
	}
}

// How a WebSocket ends is in the error, and is no reason to give up.
func TestWebSocketEnds(t *testing.T) {
	srv := socket(t, func(ws *websocket.Conn, _ *http.Request) {
		send(ws, websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, "shutdown"))
		swallow(ws)
	}, func(ws *websocket.Conn, _ *http.Request) {
	}, say(`{"event":"message","data":"x"}`))
	l := listen(t, wsURL(srv.URL), quickly)
	l.expect("x")
	var bye *websocket.CloseError
	if err := l.retry(); !errors.As(err, &bye) || bye.Code != websocket.CloseGoingAway {
		t.Errorf("error %v", err)
	}
	_ = l.retry()
}

// A client that leaves says so, however it leaves.
func TestWebSocketGoodbye(t *testing.T) {
	ends := make(chan error, 2)
	srv := socket(t, func(ws *websocket.Conn, _ *http.Request) {
		send(ws, websocket.TextMessage, []byte(`{"event":"message","data":"x"}`))
		_, _, err := ws.ReadMessage()
		ends <- err
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for m, err := range consumer.Subscribe(ctx, wsURL(srv.URL)) {
		if err == nil && m.Data == "x" {
			cancel() // the loop ends by itself
		}
	}
	for _, err := range consumer.Subscribe(t.Context(), wsURL(srv.URL)) {
		must(t, err)
		break
	}
	for range 2 {
		if err := <-ends; !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
			t.Errorf("the server saw %v", err)
		}
	}
}

func TestWebSocketAnswers(t *testing.T) {
	for code, final := range map[int]bool{200: true, 302: true, 401: true, 403: true, 404: true, 426: true, 204: true} {
		l := listen(t, wsURL(scripted(t, status(code, "Location", "/x"), func(http.ResponseWriter, *http.Request) {
			t.Errorf("another attempt after %d", code)
		}).URL), quickly, consumer.WithTopics("a"))
		if err := l.end(); final == (err == nil) {
			t.Errorf("%d: %v", code, err)
		}
	}
	p := start(t)
	mux := inTurn(status(503, "Retry-After", "0"), status(500), p.HandleWebSocket)
	srv := httptest.NewServer(mux)
	defer srv.Close()
	l := listen(t, wsURL(srv.URL)+"?topic=a", quickly, consumer.WithHeader("Authorization", "x"))
	l.subscribed("a")
	for _, want := range []int{503, 500} {
		var answer *consumer.ResponseError
		if err := l.retry(); !errors.As(err, &answer) || answer.Status != want || answer.Body != "why\nand more\n" {
			t.Errorf("error %v", err)
		}
	}
	l.stop()
	_ = l.end()
}

// A dialer of the application's own, which is not changed.
func TestDialer(t *testing.T) {
	p := start(t)
	for _, d := range []*websocket.Dialer{{Subprotocols: []string{"pushlet.text"}}, {NetDial: net.Dial}} {
		l := listen(t, wsURL(serve(t, p).URL)+"?topic=a", consumer.WithDialer(d), consumer.WithHTTPClient(&http.Client{Transport: odd{}}))
		l.subscribed("a")
		must(t, p.Publish("a", "message", "x"))
		l.expect("x")
		if d.NetDialContext != nil {
			t.Error("it was changed")
		}
		l.stop()
		_ = l.end()
	}
}

// TLS, on both protocols, with the settings of the http.Client.
func TestTLS(t *testing.T) {
	p := start(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/events", p.HandleSSE)
	mux.HandleFunc("/ws", p.HandleWebSocket)
	srv := httptest.NewUnstartedServer(mux)
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of those who do not trust it
	srv.StartTLS()
	defer srv.Close()
	for _, url := range []string{srv.URL + "/events?topic=a", wsURL(srv.URL) + "?topic=a"} {
		l := listen(t, url, consumer.WithHTTPClient(srv.Client()))
		l.subscribed("a")
		must(t, p.Publish("a", "message", "x"))
		l.expect("x")
		l.stop()
		_ = l.end()
		stranger := listen(t, url, consumer.WithHTTPClient(&http.Client{Transport: &http.Transport{}}))
		if err := stranger.retry(); !strings.Contains(err.Error(), "certificate") {
			t.Errorf("error %v", err)
		}
	}
}

// Whoever follows hundreds of topics comes back within the limits that a server has by default:
// not with a command for each, nor with a URL that nobody takes.
func TestHundredsOfTopics(t *testing.T) {
	const n = 600
	p := start(t, pushlet.WithMaxTopics(n))
	c := cut(t, serve(t, p).URL, func() int { return -1 })
	var topics []string
	for i := range n {
		topics = append(topics, fmt.Sprintf("a topic whose name is not short/%d", i))
	}
	l := listen(t, wsURL(c.url), quickly, consumer.WithTopics(topics...))
	l.subscribed(topics...)
	for round := range 3 {
		c.cutAll()
		want := map[string]bool{}
		for i, topic := range topics {
			data := fmt.Sprint(round, " ", i)
			must(t, p.Publish(topic, "", data))
			want[data] = true
		}
		for range n {
			m := l.next()
			if !want[m.Data] {
				t.Fatalf("message %+v, gap %v", m, m.Gap)
			}
			delete(want, m.Data)
		}
	}
}

package pushlet_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/pushlettest"
)

// A server that pushes, and a client that reads the stream with nothing but net/http.
// A browser does the same with new EventSource("/events?topic=news").
func ExampleNew() {
	p := pushlet.New()
	if err := p.Start(); err != nil {
		log.Fatal(err)
	}
	defer p.Stop()

	mux := http.NewServeMux()
	mux.HandleFunc("/events", p.HandleSSE)
	server := httptest.NewServer(mux)
	defer server.Close()

	response, err := http.Get(server.URL + "/events?topic=news")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	nextEvent(lines) // pushlet.connected: what is published from here on will arrive

	if err := p.Publish("news", "message", "Hello, World!"); err != nil {
		log.Fatal(err)
	}
	if err := p.Publish("news", "user-login", "Ann\nBen"); err != nil {
		log.Fatal(err)
	}
	if err := p.PublishToAll("message", "to everybody"); err != nil {
		log.Fatal(err)
	}

	for range 3 {
		event, data, _ := nextEvent(lines)
		fmt.Printf("%s: %q\n", event, data)
	}
	// Output:
	// message: "Hello, World!"
	// user-login: "Ann\nBen"
	// message: "to everybody"
}

// A WebSocket client subscribes to topics while it is connected. Every frame is a JSON
// object; events that begin with "pushlet." come from the library itself.
func ExamplePushlet_HandleWebSocket() {
	p := pushlet.New()
	if err := p.Start(); err != nil {
		log.Fatal(err)
	}
	defer p.Stop()

	server := httptest.NewServer(http.HandlerFunc(p.HandleWebSocket))
	defer server.Close()

	url := "ws" + strings.TrimPrefix(server.URL, "http")
	conn, _, err := websocket.DefaultDialer.Dial(url, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	type message struct {
		Topic, Event, Data string
		ID                 string // where to resume: {"action":"subscribe","topic":…,"since":ID}
		Timestamp          time.Time
	}
	receive := func() {
		var m message
		if err := conn.ReadJSON(&m); err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s %s %q\n", m.Event, m.Topic, m.Data)
	}

	if err := conn.WriteJSON(map[string]any{"action": "subscribe", "topic": "prices"}); err != nil {
		log.Fatal(err)
	}
	receive()

	if err := p.Publish("prices", "quote", "ACME 12.50"); err != nil {
		log.Fatal(err)
	}
	receive()

	if err := conn.WriteJSON(map[string]any{"action": "unsubscribe", "topic": "prices"}); err != nil {
		log.Fatal(err)
	}
	receive()
	// Output:
	// pushlet.subscribed prices ""
	// quote prices "ACME 12.50"
	// pushlet.unsubscribed prices ""
}

// A client that comes back says where it stopped, and first gets what it missed. A
// browser's EventSource does this by itself.
func ExamplePushlet_HandleSSE_resume() {
	p := pushlet.New()
	if err := p.Start(); err != nil {
		log.Fatal(err)
	}
	defer p.Stop()

	server := httptest.NewServer(http.HandlerFunc(p.HandleSSE))
	defer server.Close()

	// visit connects, from a position if there is one, prints n events, and returns the
	// position after the last.
	visit := func(lastEventID string, n int) string {
		request, err := http.NewRequest(http.MethodGet, server.URL+"?topic=chat", nil)
		if err != nil {
			log.Fatal(err)
		}
		if lastEventID != "" {
			request.Header.Set("Last-Event-ID", lastEventID)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			log.Fatal(err)
		}
		defer response.Body.Close() // the connection breaks

		lines := bufio.NewScanner(response.Body)
		_, data, id := nextEvent(lines)
		var connected struct{ Resumed bool }
		if err := json.Unmarshal([]byte(data), &connected); err != nil {
			log.Fatal(err)
		}
		fmt.Println("connected, resumed:", connected.Resumed)
		for range n {
			_, data, id = nextEvent(lines)
			fmt.Println(data)
		}
		return id
	}

	id := visit("", 0)
	for _, text := range []string{"one", "two", "three"} { // nobody is there
		if err := p.Publish("chat", "message", text); err != nil {
			log.Fatal(err)
		}
	}
	id = visit(id, 2)
	visit(id, 1)

	visit("some other server's", 1)
	// Output:
	// connected, resumed: false
	// connected, resumed: true
	// one
	// two
	// connected, resumed: true
	// three
	// connected, resumed: false
	// {"topics":["chat","*"],"reason":"unknown_cursor"}
}

// The application decides who may follow what. Here the topics of a user are for that
// user, and the login is the application's own, in front of the handler.
func ExampleWithAuthorize() {
	type userKey struct{}

	p := pushlet.New(pushlet.WithAuthorize(func(r *http.Request, topic string) error {
		user := r.Context().Value(userKey{})
		if owner, ok := strings.CutPrefix(topic, "users/"); ok && owner != user {
			return errors.New("this topic is not yours")
		}
		return nil
	}))
	if err := p.Start(); err != nil {
		log.Fatal(err)
	}
	defer p.Stop()

	login := func(next http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			session, err := r.Cookie("session") // an application looks it up
			if err != nil {
				http.Error(w, "please log in", http.StatusUnauthorized)
				return
			}
			next(w, r.WithContext(context.WithValue(r.Context(), userKey{}, session.Value)))
		}
	}
	server := httptest.NewServer(login(p.HandleSSE))
	defer server.Close()

	try := func(user, topic string) {
		request, err := http.NewRequest(http.MethodGet, server.URL+"?topic="+topic, nil)
		if err != nil {
			log.Fatal(err)
		}
		if user != "" {
			request.AddCookie(&http.Cookie{Name: "session", Value: user})
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			log.Fatal(err)
		}
		defer response.Body.Close()
		line, err := bufio.NewReader(response.Body).ReadString('\n')
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(response.StatusCode, strings.TrimSpace(line))
	}
	try("", "users/ann")
	try("ben", "users/ann")
	try("ann", "users/ann")
	// Output:
	// 401 please log in
	// 403 this topic is not yours
	// 200 retry: 3000
}

// Pushlet ends first: it delivers what is queued and ends the connections, for which
// http.Server's Shutdown would wait, or which it would leave open.
func ExamplePushlet_Shutdown() {
	p := pushlet.New()
	if err := p.Start(); err != nil {
		log.Fatal(err)
	}

	mux := http.NewServeMux()
	mux.HandleFunc("/events", p.HandleSSE)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	listener, err := net.Listen("tcp", "127.0.0.1:0") // an application knows its port
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	// A client, which reads until the end.
	response, err := http.Get("http://" + listener.Addr().String() + "/events")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	everything := make(chan string, 1)
	go func(body io.Reader) {
		all, err := io.ReadAll(body)
		if err != nil {
			log.Print(err)
		}
		everything <- string(all)
	}(response.Body)

	if err := p.Publish("default", "message", "last words"); err != nil {
		log.Fatal(err)
	}

	// An application gets here by signal.NotifyContext.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	fmt.Println("pushlet:", p.Shutdown(ctx))
	fmt.Println("server:", server.Shutdown(ctx))
	fmt.Println("serve:", <-served)

	fmt.Println("delivered:", strings.Contains(<-everything, "data: last words\n"))
	fmt.Println("publish:", p.Publish("default", "message", "too late"))
	// Output:
	// pushlet: <nil>
	// server: <nil>
	// serve: http: Server closed
	// delivered: true
	// publish: pushlet: closed
}

// Hooks say who comes and goes, and why.
func ExampleWithHooks() {
	left := make(chan struct{})
	p := pushlet.New(pushlet.WithHooks(pushlet.Hooks{
		OnConnect: func(c pushlet.Client) { fmt.Println("came over", c.Protocol) },
		OnDisconnect: func(c pushlet.Client, why pushlet.Reason) {
			fmt.Println("left:", why)
			close(left)
		},
	}))
	if err := p.Start(); err != nil {
		log.Fatal(err)
	}
	defer p.Stop()

	server := httptest.NewServer(http.HandlerFunc(p.HandleSSE))
	defer server.Close()

	response, err := http.Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("clients:", p.Stats().Clients)
	response.Body.Close()
	<-left
	fmt.Println("clients:", p.Stats().Clients)
	// Output:
	// came over sse
	// clients: 1
	// left: client closed
	// clients: 0
}

// slogLogger is a Logger that writes to log/slog.
type slogLogger struct{ log *slog.Logger }

func (l slogLogger) Println(v ...any) {
	l.log.Info(strings.TrimSuffix(fmt.Sprintln(v...), "\n"))
}

func (l slogLogger) WithField(key string, value any) pushlet.Logger {
	return slogLogger{l.log.With(key, value)}
}

// The log goes wherever the application's does: a Logger has two methods.
func ExampleWithLogger() {
	withoutTime := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: withoutTime}))

	p := pushlet.New(pushlet.WithLogger(func() pushlet.Logger { return slogLogger{logger} }))
	if err := p.SetHeartbeatInterval(-time.Second); err != nil {
		fmt.Println(err)
	}
	// Output:
	// level=INFO msg="pushlet: heartbeat interval -1s is not positive"
	// pushlet: heartbeat interval -1s is not positive
}

// A store of the application's own: a client resumes though the server that it was
// connected to has ended. The store here is in memory, so both servers are of one process.
func ExampleWithHistoryStore() {
	history := pushlettest.NewMemoryHistory() // in place of yours; example/history has one on bbolt
	start := func() (*pushlet.Pushlet, *httptest.Server) {
		p := pushlet.New(pushlet.WithHistoryStore(history))
		if err := p.Start(); err != nil {
			log.Fatal(err)
		}
		return p, httptest.NewServer(http.HandlerFunc(p.HandleSSE))
	}
	publish := func(p *pushlet.Pushlet, texts ...string) {
		for _, text := range texts {
			if err := p.Publish("chat", "message", text); err != nil {
				log.Fatal(err)
			}
		}
	}

	p, server := start()
	publish(p, "before the client came")
	response, err := http.Get(server.URL + "?topic=chat")
	if err != nil {
		log.Fatal(err)
	}
	_, _, id := nextEvent(bufio.NewScanner(response.Body)) // pushlet.connected
	response.Body.Close()
	publish(p, "one", "two")
	server.Close()
	p.Stop()

	p, server = start() // another server
	defer server.Close()
	defer p.Stop()
	publish(p, "three")
	response, err = http.Get(server.URL + "?topic=chat&lastEventId=" + id)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for range 4 {
		event, data, _ := nextEvent(lines)
		if event == "message" {
			fmt.Println(data)
		}
	}
	// Output:
	// one
	// two
	// three
}

// nextEvent reads one event of a text/event-stream.
func nextEvent(lines *bufio.Scanner) (event, data, id string) {
	var all []string
	for lines.Scan() {
		switch name, value, _ := strings.Cut(lines.Text(), ": "); name {
		case "event":
			event = value
		case "data":
			all = append(all, value)
		case "id":
			id = value
		case "":
			if event != "" { // else it was a heartbeat
				return event, strings.Join(all, "\n"), id
			}
		}
	}
	return event, strings.Join(all, "\n"), id
}

// A program sends over HTTP to one user, whose browser follows nothing but that.
func ExamplePushlet_HandlePush() {
	p := pushlet.New(
		pushlet.WithIdentity(func(r *http.Request) (string, error) {
			session, err := r.Cookie("session") // an application looks it up
			if err != nil {
				return "", errors.New("please log in")
			}
			return session.Value, nil
		}),
		pushlet.WithPushAuthorize(func(r *http.Request) error {
			if r.Header.Get("Authorization") != "Bearer s3cret" {
				return pushlet.ErrUnauthenticated
			}
			return nil
		}),
	)
	if err := p.Start(); err != nil {
		log.Fatal(err)
	}
	defer p.Stop()
	mux := http.NewServeMux()
	mux.HandleFunc("/events", p.HandleSSE)
	mux.HandleFunc("/push", p.HandlePush)
	server := httptest.NewServer(mux)
	defer server.Close()

	follow, err := http.NewRequest(http.MethodGet, server.URL+"/events?topic=@user", nil)
	if err != nil {
		log.Fatal(err)
	}
	follow.AddCookie(&http.Cookie{Name: "session", Value: "u001"})
	stream, err := http.DefaultClient.Do(follow)
	if err != nil {
		log.Fatal(err)
	}
	defer stream.Body.Close()
	lines := bufio.NewScanner(stream.Body)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "event: pushlet.connected") {
	}

	push := func(authorization string) {
		const body = `{"uids":["u001","u002"],"events":[{"event":"invoice","data":{"no":17}}]}`
		request, err := http.NewRequest(http.MethodPost, server.URL+"/push", strings.NewReader(body))
		if err != nil {
			log.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Authorization", authorization)
		request.Header.Set("Idempotency-Key", "invoice-17")
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			log.Fatal(err)
		}
		defer response.Body.Close()
		answer, err := io.ReadAll(response.Body)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(response.StatusCode, strings.TrimSpace(string(answer)))
	}
	push("")
	push("Bearer s3cret")
	push("Bearer s3cret") // the answer was lost, perhaps: nothing is published twice

	for lines.Scan() && lines.Text() != "event: invoice" {
	}
	lines.Scan()
	fmt.Println(lines.Text())
	// Output:
	// 401 {"error":"pushlet: unauthenticated"}
	// 200 {"events":[{"published":2,"duplicates":0,"clients":1}]}
	// 200 {"events":[{"published":0,"duplicates":2,"clients":1}]}
	// data: {"no":17}
}

// One connection for all that a page follows, and the module that makes it: a page needs no more
// than these three handlers, and
//
//	import { Pushlet } from "/pushlet.js";
//	new Pushlet().subscribe("news", m => console.log(m.data));
func ExamplePushlet_HandleClientJS() {
	p := pushlet.New()
	if err := p.Start(); err != nil {
		log.Fatal(err)
	}
	defer p.Stop()

	mux := http.NewServeMux()
	mux.HandleFunc("/pushlet.js", p.HandleClientJS)
	mux.HandleFunc("/ws", p.HandleWebSocket)
	mux.HandleFunc("/events", p.HandleSSE)
	server := httptest.NewServer(mux)
	defer server.Close()

	response, err := http.Get(server.URL + "/pushlet.js")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	fmt.Println(response.StatusCode, response.Header.Get("Content-Type"))
	// Output: 200 text/javascript; charset=utf-8
}

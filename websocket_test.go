package pushlet_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/usual2970/pushlet"
)

// The protocol on a WebSocket as DESIGN.md, section 4, has it, and who may connect.

func TestWebSocketCommands(t *testing.T) {
	for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
		t.Run(fmt.Sprintf("kind=%d", kind), func(t *testing.T) {
			s := wsServe(t)
			c := s.connect("")
			send := func(command string) {
				t.Helper()
				if err := c.WriteMessage(kind, []byte(command)); err != nil {
					t.Fatal(err)
				}
			}
			send(`{"action":"subscribe","topic":"users/123/notifications"}`)
			c.expect("users/123/notifications", "pushlet.subscribed", "")
			send(`{"action":"subscribe","topic":"a","topics":["b","汉字"]}`)
			for _, topic := range []string{"a", "b", "汉字"} {
				c.expect(topic, "pushlet.subscribed", "")
			}
			for _, topic := range []string{"users/123/notifications", "a", "b", "汉字", "somewhere else"} {
				if err := s.Publish(topic, "custom-event", "for "+topic); err != nil {
					t.Fatal(err)
				}
			}
			for _, topic := range []string{"users/123/notifications", "a", "b", "汉字"} {
				c.expect(topic, "custom-event", "for "+topic)
			}
			send(`{"action":"unsubscribe","topics":["a"],"topic":"b"}`)
			c.expect("b", "pushlet.unsubscribed", "")
			c.expect("a", "pushlet.unsubscribed", "")
			s.publish("a", "no more")
			s.publish("b", "no more")
			s.publish("汉字", "still")
			c.expect("汉字", "message", "still")
			send(`{"action":"ping"}`)
			c.expect("", "pushlet.pong", "")
		})
	}
}

func TestWebSocketMessageArrivesAsPublished(t *testing.T) {
	s := wsServe(t)
	query := "?topic=t"
	clients := map[string]*wsClient{
		"binary":          s.connect(query),
		"text":            s.connect(query, wsSubproto, "pushlet.text"),
		"text of several": s.connect(query, wsSubproto, "chat, pushlet.text"),
		"unknown":         s.connect(query, wsSubproto, "chat"),
	}
	for _, c := range clients {
		c.expect("t", "pushlet.subscribed", "")
	}
	if got := clients["unknown"].response.Header.Get(wsSubproto); got != "" {
		t.Errorf("the server has chosen subprotocol %q, want none", got)
	}
	for _, data := range []string{
		"Hello, World!", "", " leading space", "\ufeffBOM", "a\nb\rc\r\nd\x00e\x1b\x7f", `"\/<&>`,
		"\u2028\u2029", "漢字 and 🦆", "\t", strings.Repeat("x", 125), strings.Repeat("y", 126),
		strings.Repeat("z", 65535), strings.Repeat("🦆\"\n", 1<<20/6),
	} {
		s.publish("t", data)
		for _, c := range clients {
			c.expect("t", "message", data)
		}
	}
	s.publish("t", "cut \xf0\x9f and \xff")
	for _, c := range clients {
		c.expect("t", "message", "cut \ufffd and \ufffd")
	}
}

// A WebSocket client and an EventSource get the same message, and IDs increase.
func TestWebSocketAndSSETogether(t *testing.T) {
	s := wsServe(t)
	c := s.connect("?topic=both")
	from := c.expect("both", "pushlet.subscribed", "").ID
	stream := s.stream("/events?topic=both")
	s.publish("both", "one for all")
	m := c.expect("both", "message", "one for all")
	stream.until("data: one for all")
	if age := time.Since(m.Timestamp); age < -time.Second || age > wsPatience {
		t.Errorf("timestamp %v is %v ago", m.Timestamp, age)
	}
	ids := []string{from, m.ID}
	for range 100 {
		s.publish("both", "next")
		ids = append(ids, c.expect("both", "message", "next").ID)
	}
	if !slices.IsSortedFunc(ids, wsCompareIDs) || len(slices.Compact(ids)) != 102 {
		t.Errorf("IDs do not increase: %q", ids)
	}
}

// wsCompareIDs compares IDs as a Redis stream does.
func wsCompareIDs(a, b string) int {
	parse := func(id string) (n [2]uint64) {
		ms, seq, _ := strings.Cut(id, "-")
		n[0], _ = strconv.ParseUint(ms, 10, 64)
		n[1], _ = strconv.ParseUint(seq, 10, 64)
		return n
	}
	x, y := parse(a), parse(b)
	return slices.Compare(x[:], y[:])
}

func TestWebSocketBadCommands(t *testing.T) {
	s := wsServe(t, pushlet.WithMaxTopics(3), pushlet.WithCommandRate(1e6, 1e6))
	c := s.connect("")
	for _, test := range []struct{ command, topic, why string }{
		{``, "", "not a command"},
		{`subscribe news`, "", "not a command"},
		{`{"action":"subscribe"`, "", "not a command"},
		{`{"action":"subscribe","topic":"a"}{}`, "", "not a command"},
		{`[]`, "", "not a command"},
		{`"subscribe"`, "", "not a command"},
		{`12`, "", "not a command"},
		{`{"action":1}`, "", "not a command"},
		{`{"action":"subscribe","topic":{"a":1}}`, "", "not a command"},
		{`{"action":"subscribe","topics":"a"}`, "", "not a command"},
		{`{"action":"subscribe","topics":[["a"]]}`, "", "not a command"},
		{`{"action":"subscribe","topic":"a","since":7}`, "", "not a command"},
		{`{"action":"subscribe","topic":"a","since":["1-1"]}`, "", "not a command"},
		{`{"action":"subscribe","topic":"a","since":{"a":7}}`, "", "not a command"},
		{strings.Repeat("[", 60_000), "", "not a command"},
		{strings.Repeat(`{"topics":`, 6_000), "", "not a command"},
		{`{"action":"subscribe","topics":` + strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000) + `}`, "", "not a command"},
		{`null`, "", "unknown action"},
		{`{}`, "", "unknown action"},
		{`{"action":"Subscribe","topic":"a"}`, "", `unknown action "Subscribe"`},
		{`{"action":"` + strings.Repeat("x", 60_000) + `"}`, "", "unknown action"},
		{`{"action":"subscribe"}`, "", "without a topic"},
		{`{"action":"subscribe","topic":null}`, "", "without a topic"},
		{`{"action":"subscribe","topics":[]}`, "", "without a topic"},
		{`{"action":"unsubscribe"}`, "", "without a topic"},
		{`{"action":"subscribe","topic":""}`, "", "invalid topic"},
		{`{"action":"subscribe","topic":"a\nb"}`, "", "invalid topic"},
		{`{"action":"subscribe","topic":"a\u0000b"}`, "", "invalid topic"},
		{`{"action":"subscribe","topic":"a\u0085b"}`, "", "invalid topic"},
		{`{"action":"subscribe","topic":"` + strings.Repeat("x", 256) + `"}`, "", "invalid topic"},
		{`{"action":"subscribe","topics":["a","b","c","d"]}`, "", "more than 3 topics"},
		{`{"action":"unsubscribe","topics":["a","b","c","d"]}`, "", "more than 3 topics"},
		{`{"action":"subscribe","topics":["` + strings.Repeat(`x","`, 15_000) + `x"]}`, "", "more than 3 topics"},
		{`{"action":"subscribe","topics":[` + strings.Repeat(`"",`, 20_000) + `""]}`, "", "more than 3 topics"},
	} {
		c.send("%s", test.command)
		c.expectError(test.topic, test.why)
		c.ping() // and nothing else was answered
	}
	if n := s.Stats().Topics; n != 0 {
		t.Errorf("%d topics are followed, want 0", n)
	}
	// Of several topics the bad ones alone are refused; unknown members are ignored.
	c.send(`{"action":"subscribe","topics":["good","","fine"],"colour":"red","since":null}`)
	c.expect("good", "pushlet.subscribed", "")
	c.expectError("", "invalid topic")
	c.expect("fine", "pushlet.subscribed", "")
}

// Answers come in the order of the commands, however many are on their way.
func TestWebSocketAnswersInOrder(t *testing.T) {
	s := wsServe(t, pushlet.WithMaxTopics(1000), pushlet.WithCommandRate(1e6, 1e6))
	r := s.raw("")
	const rounds = 300
	var commands []byte
	for i := range rounds {
		for _, command := range []string{
			fmt.Sprintf(`{"action":"subscribe","topic":"%d"}`, i), `{"action":"ping"}`,
			fmt.Sprintf(`{"action":"subscribe","topics":["%d",""],"since":"x"}`, i),
			`{}`, fmt.Sprintf(`{"action":"unsubscribe","topic":"%d"}`, i),
		} {
			commands = append(commands, wsMasked(wsFin|wsText, []byte(command))...)
		}
	}
	r.write(commands)
	for i := range rounds {
		topic := fmt.Sprint(i)
		r.expect(topic, "pushlet.subscribed", "")
		r.expect("", "pushlet.pong", "")
		r.expect(topic, "pushlet.subscribed", "")
		r.expect(topic, "pushlet.gap", "unknown_cursor")
		for _, why := range []string{"invalid topic", "unknown action"} {
			if m := r.next(); m.Event != "pushlet.error" || !strings.Contains(m.Data, why) {
				t.Fatalf("got %+v, want an error that says %q", m, why)
			}
		}
		r.expect(topic, "pushlet.unsubscribed", "")
	}
}

func TestWebSocketTopicLimit(t *testing.T) {
	s := wsServe(t, pushlet.WithMaxTopics(2))
	c := s.connect("")
	c.subscribe("a", "b")
	c.send(`{"action":"subscribe","topic":"c"}`)
	c.expectError("c", "more than 2 topics")
	c.subscribe("a", "b") // are followed already
	c.subscribe("*")      // counts as none
	c.send(`{"action":"unsubscribe","topic":"b"}`)
	c.expect("b", "pushlet.unsubscribed", "")
	c.subscribe("c")
	s.publish("b", "no")
	s.publish("c", "yes")
	c.expect("c", "message", "yes")
}

func TestWebSocketBroadcast(t *testing.T) {
	s := wsServe(t)
	several, one, none, left, asked := s.connect(""), s.connect("?topic=a"), s.connect(""), s.connect(""), s.connect("")
	several.subscribe("a", "b", "c")
	one.expect("a", "pushlet.subscribed", "")
	left.subscribe("a", "b")
	left.send(`{"action":"unsubscribe","topics":["a","b"]}`)
	left.expect("a", "pushlet.unsubscribed", "")
	left.expect("b", "pushlet.unsubscribed", "")
	asked.subscribe("*")
	for i := range 3 {
		s.broadcast("notice", fmt.Sprint(i))
		for _, c := range []*wsClient{several, one, asked} {
			m := c.next()
			if m.Event != "notice" || m.Data != fmt.Sprint(i) || m.ID == "" {
				t.Fatalf("got %+v, want notice %d", m, i)
			}
		}
	}
	for _, c := range []*wsClient{several, one, none, left, asked} {
		c.ping() // it got no other frame
	}
	// Who unsubscribes from the broadcast log but follows a topic still gets broadcasts.
	asked.subscribe("a")
	asked.send(`{"action":"unsubscribe","topic":"*"}`)
	asked.expect("*", "pushlet.unsubscribed", "")
	s.broadcast("notice", "4")
	asked.expect("*", "notice", "4")
	asked.send(`{"action":"unsubscribe","topic":"a"}`)
	asked.expect("a", "pushlet.unsubscribed", "")
	s.broadcast("notice", "5")
	asked.ping()
}

// The documents' Go client works as it stands there.
func TestWebSocketDocumentedClient(t *testing.T) {
	s := wsServe(t)
	c := s.connect("").Conn
	if err := c.WriteJSON(struct {
		Action string `json:"action"`
		Topic  string `json:"topic"`
	}{"subscribe", "my-topic"}); err != nil {
		t.Fatal(err)
	}
	s.until("the topic is followed", func(st pushlet.Stats) bool { return st.Topics == 1 })
	before := time.Now().Add(-time.Millisecond)
	s.publish("my-topic", "Hello, World!")
	for {
		c.SetReadDeadline(time.Now().Add(wsPatience))
		kind, b, err := c.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		if kind != websocket.BinaryMessage {
			t.Fatalf("message of kind %d, want binary", kind)
		}
		var m wsDocumented
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if m.Event == "message" {
			if m.Data != "Hello, World!" || m.Timestamp.Before(before) || m.Timestamp.After(time.Now()) {
				t.Errorf("got %+v", m)
			}
			return
		}
	}
}

func TestWebSocketTLS(t *testing.T) {
	p := pushlet.New(pushlet.WithLogger(wsSilence))
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewTLSServer(http.HandlerFunc(p.HandleWebSocket))
	defer srv.Close()
	defer p.Stop()
	dialer := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}}
	conn, _, err := dialer.Dial("wss"+strings.TrimPrefix(srv.URL, "https")+"?topic=t", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &wsClient{Conn: conn, s: &wsServer{Pushlet: p, t: t, patience: wsPatience}, kind: websocket.BinaryMessage}
	c.expect("t", "pushlet.subscribed", "")
	for _, size := range []int{1, 1 << 10, 1 << 20} {
		data := strings.Repeat("d", size)
		c.s.publish("t", data)
		c.expect("t", "message", data)
	}
	c.ping()
	stopped := make(chan error)
	go func() { stopped <- p.Stop() }()
	if code := c.closed(); code != websocket.CloseGoingAway {
		t.Errorf("close code %d, want 1001", code)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Stop: %v", err)
	}
}

func TestWebSocketRefusals(t *testing.T) {
	deny := func(_ *http.Request, topic string) error {
		if topic == "secret" {
			return errors.New("not for you")
		}
		return nil
	}
	for _, test := range []struct {
		name    string
		method  string
		query   string
		header  []string
		options []pushlet.Option
		status  int
		headers map[string]string
		body    string
	}{
		{name: "no upgrade", header: []string{"Upgrade", ""}, status: 426, headers: map[string]string{"Upgrade": "websocket"}},
		{name: "upgrade to something else", header: []string{"Upgrade", "h2c"}, status: 426},
		{name: "no Connection header", header: []string{"Connection", ""}, status: 426},
		{name: "POST", method: "POST", status: 405, headers: map[string]string{"Allow": "GET"}},
		{name: "old version", header: []string{"Sec-WebSocket-Version", "8"}, status: 400, headers: map[string]string{"Sec-WebSocket-Version": "13"}},
		{name: "no key", header: []string{"Sec-WebSocket-Key", ""}, status: 400},
		{name: "short key", header: []string{"Sec-WebSocket-Key", "c2hvcnQ="}, status: 400},
		{name: "foreign origin", header: []string{"Origin", "https://evil.test"}, status: 403, body: "origin"},
		{name: "foreign subdomain", header: []string{"Origin", "https://pushlet.test.evil.test"}, status: 403},
		{name: "no origin at all", header: []string{"Origin", "null"}, status: 403},
		{name: "broken origin", header: []string{"Origin", "https://%zz"}, status: 403},
		{name: "same origin", header: []string{"Origin", "https://PUSHLET.test"}, status: 101},
		{
			name: "origin not listed", header: []string{"Origin", "https://c.test"}, status: 403,
			options: []pushlet.Option{pushlet.WithAllowedOrigins("https://a.test", "https://b.test")},
		},
		{
			name: "listed origin of another scheme", header: []string{"Origin", "http://a.test"}, status: 403,
			options: []pushlet.Option{pushlet.WithAllowedOrigins("https://a.test")},
		},
		{
			name: "listed origin", header: []string{"Origin", "https://B.test"}, status: 101,
			options: []pushlet.Option{pushlet.WithAllowedOrigins("https://a.test", "https://b.test")},
		},
		{
			name: "same origin besides the listed", header: []string{"Origin", "http://pushlet.test"}, status: 101,
			options: []pushlet.Option{pushlet.WithAllowedOrigins("https://a.test")},
		},
		{
			name: "any origin", header: []string{"Origin", "https://evil.test"}, status: 101,
			options: []pushlet.Option{pushlet.WithAllowedOrigins("*")},
		},
		{name: "control character in topic", query: "?topic=a%0Ab", status: 400, body: "invalid topic"},
		{name: "long topic", query: "?topic=" + strings.Repeat("x", 256), status: 400, body: "invalid topic"},
		{name: "reserved topic", query: "?topic=@user/a", status: 400, body: "reserved"},
		{name: "broken query", query: "?topic=%zz", status: 400},
		{
			name: "too many topics", query: "?topic=a&topic=b&topic=c", status: 400, body: "more than 2 topics",
			options: []pushlet.Option{pushlet.WithMaxTopics(2)},
		},
		{
			name: "as many topics as allowed", query: "?topic=a&topic=b&topic=a&topic=&topic=/", status: 101,
			options: []pushlet.Option{pushlet.WithMaxTopics(2)},
		},
		{
			name: "not authorized", query: "?topic=open&topic=secret", status: 403, body: "not for you",
			options: []pushlet.Option{pushlet.WithAuthorize(deny)},
		},
		{name: "authorized", query: "?topic=open", status: 101, options: []pushlet.Option{pushlet.WithAuthorize(deny)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := wsServe(t, test.options...)
			method := test.method
			if method == "" {
				method = http.MethodGet
			}
			_, answer := s.handshake(method, test.query, test.header...)
			if answer.status != test.status {
				t.Fatalf("status %d: %s, want %d", answer.status, answer.body, test.status)
			}
			for name, want := range test.headers {
				if got := answer.header.Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if test.status == http.StatusSwitchingProtocols {
				return
			}
			if !strings.Contains(answer.body, test.body) {
				t.Errorf("body %q, want one with %q", answer.body, test.body)
			}
			if st := s.Stats(); st.Refused != 1 || st.Clients != 0 || st.Connected != 0 {
				t.Errorf("refused %d, clients %d, connected %d; want 1, 0, 0", st.Refused, st.Clients, st.Connected)
			}
		})
	}
}

func TestWebSocketTooManyClients(t *testing.T) {
	s := wsServe(t, pushlet.WithMaxClients(2), pushlet.WithRetry(time.Second))
	first := s.connect("?topic=t")
	s.connect("?topic=t")
	for range 3 {
		c, err := s.tryConnect("?topic=t")
		if err == nil || c.response == nil || c.response.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("err %v, response %v; want status 503", err, c.response)
		}
		wait, err := strconv.Atoi(c.response.Header.Get("Retry-After"))
		if err != nil || wait < 1 || wait > 4 {
			t.Errorf("Retry-After %q, want 1 to 4 seconds", c.response.Header.Get("Retry-After"))
		}
	}
	first.Close()
	s.end()
	s.until("there is room again", func(st pushlet.Stats) bool { return st.Clients == 1 })
	wsUntil(t, "a client is accepted again", func() bool {
		_, err := s.tryConnect("?topic=t")
		return err == nil
	})
}

func TestWebSocketBeforeStartAndAfterStop(t *testing.T) {
	p := pushlet.New(pushlet.WithLogger(wsSilence))
	srv := httptest.NewServer(http.HandlerFunc(p.HandleWebSocket))
	defer srv.Close()
	refused := func(when string) {
		t.Helper()
		_, response, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(srv.URL, "http"), nil)
		if err == nil || response == nil || response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" {
			t.Errorf("%s: err %v, response %v; want status 503 with Retry-After", when, err, response)
		}
	}
	refused("before Start")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	p.Stop()
	refused("after Stop")
}

type wsContextKey struct{}

// Authorize sees the request, with what middleware has put into its context, for every
// topic; also long after the handler has returned.
func TestWebSocketAuthorize(t *testing.T) {
	type question struct {
		topic, token, user string
		err                error
	}
	var mu sync.Mutex
	var asked []question
	authorize := func(r *http.Request, topic string) error {
		mu.Lock()
		defer mu.Unlock()
		user, _ := r.Context().Value(wsContextKey{}).(string)
		asked = append(asked, question{topic, r.Header.Get("Authorization"), user, r.Context().Err()})
		if strings.HasPrefix(topic, "private/") {
			return fmt.Errorf("%q is not for %s", topic, user)
		}
		return nil
	}
	returned := make(chan struct{}, 1)
	user := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithCancel(context.WithValue(r.Context(), wsContextKey{}, "ada"))
			next.ServeHTTP(w, r.WithContext(ctx))
			cancel()
			returned <- struct{}{}
		})
	}
	s := wsServeWrapped(t, user, pushlet.WithAuthorize(authorize))
	c := s.connect("?topic=a", "Authorization", "Bearer x")
	<-returned
	c.expect("a", "pushlet.subscribed", "")
	c.subscribe("b")
	s.publish("a", "1")
	from := c.expect("a", "message", "1").ID
	c.send(`{"action":"subscribe","topics":["c","private/d","e"]}`)
	c.expect("c", "pushlet.subscribed", "")
	c.expectError("private/d", `"private/d" is not for ada`)
	c.expect("e", "pushlet.subscribed", "")
	c.send(`{"action":"subscribe","topic":"private/a","since":%q}`, from)
	c.expectError("private/a", "is not for ada")
	s.publish("private/d", "secret")
	s.publish("private/a", "secret")
	c.ping()

	mu.Lock()
	defer mu.Unlock()
	var topics []string
	for _, q := range asked {
		topics = append(topics, q.topic)
		if q.token != "Bearer x" || q.user != "ada" {
			t.Errorf("asked about %q with token %q, user %q", q.topic, q.token, q.user)
		}
		if q.err != nil {
			t.Errorf("asked about %q with a context that is done: %v", q.topic, q.err)
		}
	}
	if want := []string{"a", "b", "c", "private/d", "e", "private/a"}; !slices.Equal(topics, want) {
		t.Errorf("asked about %q, want %q", topics, want)
	}
}

// "Every subscription": to the broadcast log as well, or who may follow nothing could
// read all broadcasts.
func TestWebSocketAuthorizeBroadcastLog(t *testing.T) {
	nobody := func(*http.Request, string) error { return errors.New("no") }
	s := wsServe(t, pushlet.WithAuthorize(nobody))
	c := s.connect("")
	s.broadcast("notice", "for those who follow something")
	c.send(`{"action":"subscribe","topic":"*","since":"0-0"}`)
	c.expectError("*", "no")
	c.ping()
}

// A panic of the application's own, in a goroutine of ours, is a refusal.
func TestWebSocketAuthorizePanics(t *testing.T) {
	s := wsServe(t, pushlet.WithAuthorize(func(_ *http.Request, topic string) error {
		if topic == "trap" {
			panic("in authorize")
		}
		return nil
	}))
	c := s.connect("?topic=a")
	c.expect("a", "pushlet.subscribed", "")
	c.send(`{"action":"subscribe","topics":["trap","b"]}`)
	c.expectError("trap", "")
	c.expect("b", "pushlet.subscribed", "")
	if _, err := s.tryConnect("?topic=trap"); err == nil {
		t.Error("the handshake for a topic whose authorization panics succeeds")
	}
	s.publish("a", "on it goes")
	c.expect("a", "message", "on it goes")
}

// wsUnwrapper hides everything of a ResponseWriter but what Unwrap shows.
type wsUnwrapper struct{ w http.ResponseWriter }

func (u wsUnwrapper) Header() http.Header         { return u.w.Header() }
func (u wsUnwrapper) Write(b []byte) (int, error) { return u.w.Write(b) }
func (u wsUnwrapper) WriteHeader(status int)      { u.w.WriteHeader(status) }
func (u wsUnwrapper) Unwrap() http.ResponseWriter { return u.w }

// wsOpaque cannot be hijacked.
type wsOpaque struct{ http.ResponseWriter }

func TestWebSocketMiddleware(t *testing.T) {
	cookies := func(wrap func(http.ResponseWriter) http.ResponseWriter) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				h := w.Header()
				h.Add("Set-Cookie", "session=1")
				h.Add("Set-Cookie", "theme=dark")
				h.Set("X-Frame-Options", "DENY")
				h.Set("X-Split", "a\r\nX-Forged: b")
				// What is for another answer than an upgrade is left out.
				h.Set("Content-Type", "text/html")
				h.Set("Content-Encoding", "gzip")
				h.Set("Connection", "close")
				h.Set(wsExtensions, "permessage-deflate")
				h.Set("Sec-WebSocket-Accept", "forged")
				next.ServeHTTP(wrap(w), r)
			})
		}
	}
	for name, wrap := range map[string]func(http.ResponseWriter) http.ResponseWriter{
		"bare":    func(w http.ResponseWriter) http.ResponseWriter { return w },
		"wrapped": func(w http.ResponseWriter) http.ResponseWriter { return wsUnwrapper{wsUnwrapper{w}} },
	} {
		t.Run(name, func(t *testing.T) {
			s := wsServeWrapped(t, cookies(wrap))
			c := s.connect("?topic=t", wsSubproto, "pushlet.text")
			h := c.response.Header
			if got := h["Set-Cookie"]; !slices.Equal(got, []string{"session=1", "theme=dark"}) {
				t.Errorf("cookies %q", got)
			}
			if got := h.Get("X-Frame-Options"); got != "DENY" {
				t.Errorf("X-Frame-Options %q", got)
			}
			for _, name := range []string{"X-Forged", "Content-Type", "Content-Encoding", wsExtensions} {
				if got := h.Values(name); len(got) > 0 {
					t.Errorf("%s: %q, want none", name, got)
				}
			}
			if got := h.Values("Connection"); !slices.Equal(got, []string{"Upgrade"}) {
				t.Errorf("Connection: %q", got)
			}
			c.expect("t", "pushlet.subscribed", "")
			s.publish("t", "hello")
			c.expect("t", "message", "hello")
		})
	}
	t.Run("cannot be hijacked", func(t *testing.T) {
		s := wsServeWrapped(t, func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(wsOpaque{w}, r) })
		})
		c, err := s.tryConnect("")
		if err == nil || c.response == nil || c.response.StatusCode != http.StatusInternalServerError {
			t.Errorf("err %v, response %v; want status 500", err, c.response)
		}
		if st := s.Stats(); st.Clients != 0 || st.Refused != 1 {
			t.Errorf("clients %d, refused %d; want 0, 1", st.Clients, st.Refused)
		}
	})
}

// A server's timeouts are for requests, not for connections that were taken over.
func TestWebSocketOutlivesServerTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &wsPipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		p := pushlet.New(pushlet.WithLogger(wsSilence))
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{
			Handler:      http.HandlerFunc(p.HandleWebSocket),
			ReadTimeout:  2 * time.Second,
			WriteTimeout: 2 * time.Second,
			IdleTimeout:  2 * time.Second,
		}
		go func() { _ = srv.Serve(l) }() // until Close
		defer srv.Close()
		defer p.Stop()
		s := &wsServer{Pushlet: p, t: t, dial: l.dial, patience: time.Hour}
		r := s.raw("?topic=t")
		r.expect("t", "pushlet.subscribed", "")
		for range 10 {
			time.Sleep(5 * time.Second)
			s.publish("t", "still here")
			r.expect("t", "message", "still here")
		}
		r.Close()
	})
}

func TestWebSocketCloseHandshake(t *testing.T) {
	s := wsServe(t)
	for _, code := range []int{1000, 1001, 1008, 1011, 3000, 4999} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			r := s.raw("?topic=t")
			r.expect("t", "pushlet.subscribed", "")
			r.frame(wsFin|wsClose, websocket.FormatCloseMessage(code, "good bye"))
			wsExpectEcho(t, r, code)
			if end := s.end(); end.reason != pushlet.ReasonClientClosed {
				t.Errorf("reason %q, want %q", end.reason, pushlet.ReasonClientClosed)
			}
		})
	}
	t.Run("no code", func(t *testing.T) {
		r := s.raw("")
		r.frame(wsFin|wsClose, nil)
		wsExpectEcho(t, r, websocket.CloseNoStatusReceived)
		s.end()
	})
	t.Run("no close frame", func(t *testing.T) {
		r := s.raw("?topic=t")
		r.Close()
		if end := s.end(); end.reason != pushlet.ReasonClientClosed {
			t.Errorf("reason %q, want %q", end.reason, pushlet.ReasonClientClosed)
		}
	})
	t.Run("gorilla", func(t *testing.T) {
		c := s.connect("?topic=t")
		c.expect("t", "pushlet.subscribed", "")
		bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
		if err := c.WriteControl(websocket.CloseMessage, bye, time.Now().Add(wsPatience)); err != nil {
			t.Fatal(err)
		}
		if code := c.closed(); code != 1000 {
			t.Errorf("close code %d, want 1000", code)
		}
		s.end()
	})
	s.until("all have left", func(st pushlet.Stats) bool { return st.Clients == 0 && st.Topics == 0 })
}

// wsExpectEcho reads the answer to a close frame, then the end of the connection: the
// server closes first (RFC 6455, section 7.1.1).
func wsExpectEcho(t *testing.T, r *wsRaw, code int) {
	t.Helper()
	if w := r.read(); w.opcode() != wsClose || w.code() != code {
		t.Fatalf("frame %#x, code %d; want a close frame with %d", w.first, w.code(), code)
	}
	if w, err := r.tryRead(); !errors.Is(err, io.EOF) {
		t.Errorf("frame %#x, error %v after the close frame; want EOF", w.first, err)
	}
	r.Close()
}

// Everything that was published before Shutdown arrives before the close frame.
func TestWebSocketShutdown(t *testing.T) {
	const messages = 500
	s := wsServe(t, pushlet.WithQueue(64, 1<<20))
	clients := []*wsClient{s.connect("?topic=t"), s.connect("?topic=t", wsSubproto, "pushlet.text"), s.connect("")}
	for _, c := range clients[:2] {
		c.expect("t", "pushlet.subscribed", "")
	}
	raw := s.raw("?topic=t")
	raw.expect("t", "pushlet.subscribed", "")
	for i := range messages {
		s.publish("t", fmt.Sprint(i))
	}
	stopped := make(chan error, 1)
	go func() { stopped <- s.Stop() }()
	for _, c := range clients[:2] {
		for i := range messages {
			c.expect("t", "message", fmt.Sprint(i))
		}
	}
	for i := range messages {
		raw.expect("t", "message", fmt.Sprint(i))
	}
	for i, c := range clients {
		if code := c.closed(); code != websocket.CloseGoingAway {
			t.Errorf("client %d: close code %d, want 1001", i, code)
		}
	}
	if code := raw.closed(); code != websocket.CloseGoingAway {
		t.Errorf("raw client: close code %d, want 1001", code)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Stop: %v", err)
	}
	for range 4 {
		if end := s.end(); end.reason != pushlet.ReasonShutdown {
			t.Errorf("reason %q, want %q", end.reason, pushlet.ReasonShutdown)
		}
	}
	if err := s.Publish("t", "", ""); !errors.Is(err, pushlet.ErrClosed) {
		t.Errorf("Publish: %v, want ErrClosed", err)
	}
}

// A peer that ignores the close frame has two seconds, or as long as Shutdown may take.
func TestWebSocketShutdownOfDeafPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := wsServePipes(t)
		r := s.raw("")
		begin := time.Now()
		stopped := make(chan error)
		go func() { stopped <- s.Stop() }()
		if w := r.read(); w.opcode() != wsClose || w.code() != websocket.CloseGoingAway {
			t.Fatalf("frame %#x, want a close frame with 1001", w.first)
		}
		if w, err := r.tryRead(); !errors.Is(err, io.EOF) {
			t.Errorf("frame %#x, error %v; want EOF", w.first, err)
		}
		if err := <-stopped; err != nil {
			t.Errorf("Stop: %v", err)
		}
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("Stop took %v, want about 2 s", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := wsServePipes(t)
		s.raw("") // reads nothing, so that not even the close frame can be written
		ctx, cancel := context.WithTimeoutCause(t.Context(), 500*time.Millisecond, errors.New("enough"))
		defer cancel()
		begin := time.Now()
		if err := s.Shutdown(ctx); err == nil || err.Error() != "enough" {
			t.Errorf("Shutdown: %v, want the context's cause", err)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("Shutdown took %v, want little more than 0.5 s", took)
		}
		if end := s.end(); end.reason != pushlet.ReasonShutdown {
			t.Errorf("reason %q, want %q", end.reason, pushlet.ReasonShutdown)
		}
	})
}

// A client that does not even take the answer to its handshake holds no handler, and is gone
// after the write timeout.
func TestWebSocketHandshakeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := wsServePipes(t)
		conn, err := s.dial()
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, wsRequest(http.MethodGet, "?topic=t"))
		if end := s.end(); end.reason != pushlet.ReasonWriteTimeout {
			t.Errorf("reason %q, want %q", end.reason, pushlet.ReasonWriteTimeout)
		}
		if st := s.Stats(); st.Clients != 0 || st.Topics != 0 {
			t.Errorf("clients %d, topics %d; want none", st.Clients, st.Topics)
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		if b, err := io.ReadAll(conn); err != nil || len(b) > 0 {
			t.Errorf("read %q, %v; want the end", b, err)
		}
	})
}

func TestWebSocketMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := wsServePipes(t, pushlet.WithMaxConnectionAge(10*time.Minute))
		r := s.raw("?topic=t")
		r.expect("t", "pushlet.subscribed", "")
		begin := time.Now()
		wsExpectEnd(t, s, r, websocket.CloseNormalClosure, pushlet.ReasonMaxAge)
		if age := time.Since(begin); age < 10*time.Minute || age > 11*time.Minute {
			t.Errorf("ended after %v, want 10 minutes to a heartbeat", age)
		}
	})
}

func TestWebSocketIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := wsServePipes(t, pushlet.WithIdleTimeout(10*time.Minute))
		idle, fed, talks := s.raw("?topic=idle"), s.raw("?topic=fed"), s.raw("?topic=talks")
		begin := time.Now()
		var wg sync.WaitGroup
		alive := func(r *wsRaw, topic, act string) {
			r.expect(topic, "pushlet.subscribed", "")
			for range 3 {
				r.until(begin, 9*time.Minute)
				begin := time.Now()
				if act == "publish" {
					s.publish(topic, "x")
					r.expect(topic, "message", "x")
				} else {
					r.text(`{"action":"ping"}`)
					r.expect("", "pushlet.pong", "")
				}
				r.until(begin, 9*time.Minute)
			}
			r.Close()
		}
		wg.Go(func() { alive(fed, "fed", "publish") })
		wg.Go(func() { alive(talks, "talks", "ping") })
		idle.expect("idle", "pushlet.subscribed", "")
		wsExpectEnd(t, s, idle, websocket.CloseNormalClosure, pushlet.ReasonIdle)
		if age := time.Since(begin); age < 10*time.Minute || age > 11*time.Minute+time.Second {
			t.Errorf("ended after %v, want 10 minutes to a heartbeat or two", age)
		}
		wg.Wait()
	})
}

// until answers pings until the time after begin is over.
func (r *wsRaw) until(begin time.Time, d time.Duration) {
	r.s.t.Helper()
	for {
		r.SetReadDeadline(begin.Add(d))
		w, err := wsReadFrame(r.br)
		switch {
		case wsIsTimeout(err):
			return
		case err != nil:
			r.s.t.Errorf("after %v: %v", time.Since(begin), err)
			return
		case w.opcode() != wsPing:
			r.s.t.Errorf("frame %#x %q, want a ping", w.first, w.payload)
		}
		r.frame(wsFin|wsPong, w.payload)
	}
}

// wsExpectEnd answers pings until the server closes with that code, for that reason.
func wsExpectEnd(t *testing.T, s *wsServer, r *wsRaw, code int, why pushlet.Reason) {
	t.Helper()
	if w := r.read(); w.opcode() != wsClose || w.code() != code {
		t.Fatalf("frame %#x %q, want a close frame with %d", w.first, w.payload, code)
	}
	r.frame(wsFin|wsClose, nil)
	if end := s.end(); end.reason != why {
		t.Errorf("reason %q, want %q", end.reason, why)
	}
}

// A client that reads, but so slowly that it falls out of history, is told with 1013
// under policy Disconnect.
func TestWebSocketSlowConsumerDisconnect(t *testing.T) {
	s := wsServe(t, pushlet.WithQueue(1, 1<<20), pushlet.WithHistory(2, 1<<20, time.Hour),
		pushlet.WithSlowPolicy(pushlet.Disconnect))
	s.beatEvery(time.Hour)
	c := s.connect("?topic=t")
	c.expect("t", "pushlet.subscribed", "")
	flooding := make(chan struct{})
	go func() {
		defer close(flooding)
		for s.Stats().Slow == 0 {
			for range 200 {
				s.publish("t", "x")
			}
		}
	}()
	if code := c.closed(); code != websocket.CloseTryAgainLater {
		t.Errorf("close code %d, want 1013", code)
	}
	if end := s.end(); end.reason != pushlet.ReasonSlow {
		t.Errorf("reason %q, want %q", end.reason, pushlet.ReasonSlow)
	}
	<-flooding
}

// An idle connection costs one goroutine; the handler and net/http's buffers are gone. The
// same holds for SSE on HTTP/1.1.
func TestIdleConnectionsReleaseTheirHandlers(t *testing.T) {
	const clients = 100
	for name, connect := range map[string]func(*wsServer){
		"sse": func(s *wsServer) { s.stream("/events?topic=t") },
		"websocket": func(s *wsServer) {
			s.raw("?topic=t").expect("t", "pushlet.subscribed", "")
		},
		"websocket that was busy": func(s *wsServer) {
			r := s.raw("")
			r.text(`{"action":"subscribe","topics":["t","a","b","c"]}`)
			for _, topic := range []string{"t", "a", "b", "c"} {
				r.expect(topic, "pushlet.subscribed", "")
			}
			r.text(`{"action":%s"ping"}`, strings.Repeat(" ", 60_000))
			r.expect("", "pushlet.pong", "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			returned := make(chan struct{}, clients+1)
			s := wsServeWrapped(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					next.ServeHTTP(w, r)
					returned <- struct{}{}
				})
			})
			connect(s) // what is made once is made now
			<-returned
			before := wsGoroutines()
			var memory [2]runtime.MemStats
			runtime.GC()
			runtime.GC() // what pools hold
			runtime.ReadMemStats(&memory[0])
			for range clients {
				connect(s)
			}
			for range clients {
				select {
				case <-returned:
				case <-time.After(wsPatience):
					t.Fatal("a handler has not returned")
				}
			}
			wsUntil(t, "one goroutine a connection", func() bool {
				now := wsGoroutines()
				return now.ours-before.ours == clients && now.http <= before.http && now.all-before.all <= clients
			})
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&memory[1])
			inUse := func(m *runtime.MemStats) int64 { return int64(m.HeapAlloc + m.StackInuse) }
			// The test's own client costs 4 KiB, its bufio.Reader. Net/http's buffers, which must be
			// gone, are 8 KiB, and its goroutine is another 8 KiB.
			each := (inUse(&memory[1]) - inUse(&memory[0])) / clients
			t.Logf("a connection costs %d bytes, 4 KiB of which are the client's", each)
			if each > 12<<10 {
				t.Error("which is too much")
			}
		})
	}
}

// wsGoroutineCount says how many goroutines there are: the library's, net/http's for
// connections, and all.
type wsGoroutineCount struct{ ours, http, all int }

func wsGoroutines() (n wsGoroutineCount) {
	buf := make([]byte, 1<<20)
	for runtime.Stack(buf, true) == len(buf) {
		buf = make([]byte, 2*len(buf))
	}
	stacks := string(buf[:runtime.Stack(buf, true)])
	for _, stack := range strings.Split(stacks, "\n\n") {
		n.all++
		switch {
		case strings.Contains(stack, "net/http.(*conn).serve("):
			n.http++
		case strings.Contains(stack, "github.com/usual2970/pushlet.(*"):
			n.ours++
		}
	}
	return n
}

package pushlettest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// WebSocket opens a WebSocket, and waits until it follows the topics of the path, as in
// "/ws?topic=news". If the server refuses, the test fails.
func (s *Server) WebSocket(path string, options ...Option) *Client {
	s.t.Helper()
	c, answer := s.TryWebSocket(path, options...)
	if c == nil {
		s.t.Fatalf("pushlettest: WebSocket %s: status %d: %s", path, answer.Status, answer.Body)
	}
	return c
}

// TryWebSocket is WebSocket for a test that looks at the answer itself. The client is nil
// if the status is not 101.
func (s *Server) TryWebSocket(path string, options ...Option) (*Client, Answer) {
	s.t.Helper()
	return s.connect(webSocket{path}, options)
}

// Subscribe follows topics over WebSocket, and waits for the answers: what is published
// from then on will arrive. If the server refuses one, the test fails.
func (c *Client) Subscribe(topics ...string) {
	c.t.Helper()
	for _, topic := range topics {
		if err := c.subscribe(topic, nil); err != nil {
			c.t.Fatalf("pushlettest: subscribe to %q: %v", topic, err)
		}
	}
}

// SubscribeSince is Subscribe for one topic from a position, the ID of an event of that
// topic.
func (c *Client) SubscribeSince(topic, since string) {
	c.t.Helper()
	if err := c.subscribe(topic, &since); err != nil {
		c.t.Fatalf("pushlettest: subscribe to %q since %q: %v", topic, since, err)
	}
}

// TrySubscribe is Subscribe for one topic that may be refused. The error's text is what the
// server said in pushlet.error. If there is no answer, the test fails.
func (c *Client) TrySubscribe(topic string) error {
	c.t.Helper()
	err := c.subscribe(topic, nil)
	if no := refusal(""); err != nil && !errors.As(err, &no) {
		c.t.Fatalf("pushlettest: subscribe to %q: %v", topic, err)
	}
	return err
}

// A refusal is the data of pushlet.error.
type refusal string

func (r refusal) Error() string { return string(r) }

// Unsubscribe ends following topics over WebSocket, and waits for the answers.
func (c *Client) Unsubscribe(topics ...string) {
	c.t.Helper()
	for _, topic := range topics {
		if err := c.ask(command{Action: "unsubscribe", Topic: topic}, "pushlet.unsubscribed"); err != nil {
			c.t.Fatalf("pushlettest: unsubscribe from %q: %v", topic, err)
		}
	}
}

// Ping asks the server over WebSocket and waits for the answer. By then the server has acted
// on all earlier commands, and what it had queued for this client before has arrived.
func (c *Client) Ping() {
	c.t.Helper()
	if err := c.ask(command{Action: "ping"}, "pushlet.pong"); err != nil {
		c.t.Fatalf("pushlettest: ping: %v", err)
	}
}

// Send sends a text frame over WebSocket, whatever is in it, and waits for nothing. If the
// connection has ended, the test fails.
func (c *Client) Send(text string) {
	c.t.Helper()
	if err := c.send([]byte(text)); err != nil {
		c.t.Fatalf("pushlettest: send: %v", err)
	}
}

// A command is what a WebSocket client sends.
type command struct {
	Action string  `json:"action"`
	Topic  string  `json:"topic,omitempty"`
	Since  *string `json:"since,omitempty"`
}

func (c *Client) subscribe(topic string, since *string) error {
	return c.ask(command{"subscribe", topic, since}, "pushlet.subscribed")
}

var errNoWebSocket = errors.New("an SSE client cannot send commands")

func (c *Client) send(text []byte) error {
	ws := c.current().ws
	if ws == nil {
		return errNoWebSocket
	}
	ws.SetWriteDeadline(time.Now().Add(c.settings.timeout))
	return ws.WriteMessage(websocket.TextMessage, text)
}

// ask sends a command and waits for its answer.
func (c *Client) ask(cmd command, answer string) error {
	text, err := json.Marshal(cmd)
	if err != nil {
		return err
	}
	n := c.count()
	if err := c.send(text); err != nil {
		return err
	}
	return c.answered(n, cmd.Topic, answer)
}

// answered waits for an answer about a topic, not among the first n events. What
// pushlet.error says is a refusal.
func (c *Client) answered(n int, topic, answer string) error {
	e, err := c.answerTo(n, func(e Event) bool {
		switch e.Name {
		case answer:
			return e.Topic == topic
		case "pushlet.error":
			return e.Topic == topic || e.Topic == "" // which command it does not always say
		}
		return false
	})
	if err == nil && e.Name != answer {
		return refusal(e.Data)
	}
	return err
}

// A webSocket is the protocol WebSocket.
type webSocket struct{ path string }

func (p webSocket) connect(ctx context.Context, c *Client, again bool) (*visit, Answer, error) {
	var conn *conn
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (_ net.Conn, err error) {
		conn, err = c.server.dial(ctx, c.settings.buffer)
		return conn, err
	}}
	header := c.settings.header.Clone()
	if header.Get("Sec-WebSocket-Extensions") != "" { // gorilla sets it itself
		header.Del("Sec-WebSocket-Extensions")
		dialer.EnableCompression = true
	}
	path := p.path
	if again {
		path = p.withoutTopics()
	}
	ws, resp, err := dialer.DialContext(ctx, "ws"+strings.TrimPrefix(URL, "http")+path, header)
	if err != nil {
		if resp == nil || !errors.Is(err, websocket.ErrBadHandshake) {
			return nil, Answer{}, err
		}
		b, err := io.ReadAll(resp.Body)
		return nil, Answer{resp.StatusCode, resp.Header, string(b)}, err
	}
	v := &visit{conn: conn, ws: ws}
	ws.SetPingHandler(func(data string) error {
		c.note(func() { c.heartbeat++ })
		// If it fails the connection does, and the next read says so.
		_ = ws.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(c.settings.timeout))
		return nil
	})
	v.read = func() error {
		_, b, err := ws.ReadMessage()
		if err != nil {
			return err
		}
		e, err := decode(b)
		if err != nil {
			c.t.Errorf("pushlettest: the server sends what is no message of Pushlet: %v: %.200q", err, b)
			return err
		}
		c.note(func() {
			c.received = append(c.received, e)
			c.since.note(e)
		})
		return nil
	}
	v.end = func(err error) End {
		if bye := (*websocket.CloseError)(nil); errors.As(err, &bye) && bye.Code != websocket.CloseAbnormalClosure {
			return End{Code: bye.Code, Text: bye.Text}
		}
		return End{Code: websocket.CloseAbnormalClosure, Cut: true}
	}
	return v, Answer{Status: resp.StatusCode, Header: resp.Header}, nil
}

// decode reads a frame.
func decode(b []byte) (Event, error) {
	var m struct {
		Topic     string    `json:"topic"`
		Event     string    `json:"event"`
		Data      string    `json:"data"`
		Timestamp time.Time `json:"timestamp"`
		ID        string    `json:"id"`
	}
	err := json.Unmarshal(b, &m)
	return Event{m.Topic, m.Event, m.Data, m.ID, m.Timestamp}, err
}

// withoutTopics is the path for a client that comes back: it subscribes by commands.
func (p webSocket) withoutTopics() string {
	path, query, _ := strings.Cut(p.path, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return p.path // the server has taken it as it is
	}
	values.Del("topic")
	values.Del("since")
	if len(values) == 0 {
		return path
	}
	return path + "?" + values.Encode()
}

// settle waits for the topics of the path, or subscribes to those that the client follows.
func (p webSocket) settle(c *Client, n int, again bool) error {
	if again {
		return c.resubscribe()
	}
	_, query, _ := strings.Cut(p.path, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return err
	}
	for _, topic := range values["topic"] {
		if topic == "" || topic == "/" {
			continue // they count as none
		}
		if err := c.answered(n, topic, "pushlet.subscribed"); err != nil {
			return fmt.Errorf("topic %q: %w", topic, err)
		}
	}
	return nil
}

// resubscribe goes on where the last connection stopped.
func (c *Client) resubscribe() error {
	c.mu.Lock()
	list := slices.Clone(c.since.list)
	c.mu.Unlock()
	for _, s := range list {
		err := c.subscribe(s.topic, &s.id)
		if err != nil && s.subscribed {
			return fmt.Errorf("subscribe to %q since %q: %w", s.topic, s.id, err)
		}
	}
	return nil
}

func (p webSocket) leave(v *visit) {
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	if v.ws.WriteControl(websocket.CloseMessage, bye, time.Now().Add(time.Second)) != nil {
		v.conn.Close() // it has ended already
	}
}

// Positions is what a page remembers to come back: the topics it follows, and where it is
// in each.
type positions struct{ list []position }

type position struct {
	topic, id  string
	subscribed bool // false: the broadcast log, of which it knows from a broadcast only
}

// note takes note of an event.
func (p *positions) note(e Event) {
	i := slices.IndexFunc(p.list, func(s position) bool { return s.topic == e.Topic })
	switch {
	case e.Topic == "" || e.Name == "pushlet.error":
	case e.Name == "pushlet.unsubscribed":
		if i >= 0 {
			p.list = slices.Delete(p.list, i, i+1)
		}
	case i >= 0:
		if e.ID != "" {
			p.list[i].id = e.ID
		}
		p.list[i].subscribed = p.list[i].subscribed || e.Name == "pushlet.subscribed"
	case e.Topic == "*": // first, so that a broadcast comes once
		p.list = slices.Insert(p.list, 0, position{e.Topic, e.ID, e.Name == "pushlet.subscribed"})
	case e.Name == "pushlet.subscribed":
		p.list = append(p.list, position{e.Topic, e.ID, true})
	}
}

package pushlettest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
)

// An Event is what a client received, over either protocol.
type Event struct {
	Topic string // "*" is a broadcast; always empty over SSE, which does not say
	Name  string // as it was published; "message" if that was empty
	Data  string
	ID    string    // from where a client resumes after this event
	Time  time.Time // of the message; zero over SSE, which does not say
}

func (e Event) String() string {
	if e.Topic == "" {
		return fmt.Sprintf("%s %.80q", e.Name, e.Data)
	}
	return fmt.Sprintf("%s %.80q of %q", e.Name, e.Data, e.Topic)
}

// reserved reports whether the event is one of the library's own.
func (e Event) reserved() bool { return strings.HasPrefix(e.Name, "pushlet.") }

// A Gap says that messages are gone for good.
type Gap struct {
	Topics []string // "*" is the broadcast log
	Reason string   // "trimmed", "expired", "restarted", "rolled_back" or "unknown_cursor"
}

// An End says how a connection ended.
type End struct {
	// Code is the close code of a WebSocket, 1006 if it ended without one, and Text what
	// came with it. Over SSE they are zero.
	Code int
	Text string

	// Cut is true if the connection broke. A stream that the server only closed has ended
	// well: nobody can see whether it wanted to say more.
	Cut bool

	// Retry is how long the stream asked an EventSource to wait before it comes back.
	// Over WebSocket it is zero.
	Retry time.Duration
}

func (e End) String() string {
	switch {
	case e.Code != 0:
		return fmt.Sprintf("close code %d %q", e.Code, e.Text)
	case e.Cut:
		return "cut"
	}
	return fmt.Sprintf("end of stream, retry after %v", e.Retry)
}

// An Answer is what the server said to a request for a connection. If that was refused
// Body is the reason, at most 1024 bytes of it.
type Answer struct {
	Status int
	Header http.Header
	Body   string
}

// A Client is a browser in memory: an EventSource or a WebSocket, and the page that uses
// it. It keeps everything it receives, over all its connections, whether or not the test
// has asked for it.
//
// Methods that can fail the test belong to the test's goroutine.
type Client struct {
	// Immutable.
	t        testing.TB
	server   *Server
	protocol protocol
	settings settings

	// Guarded by mu, which is never held while waiting.
	mu        sync.Mutex
	changed   chan struct{} // closed at the next change, and replaced
	received  []Event
	read      int // how many of them Next and the like have passed
	visit     *visit
	heartbeat int
	lastID    string    // over SSE, of the last event
	since     positions // over WebSocket
}

// A protocol is what differs between the two.
type protocol interface {
	// connect opens a connection. The visit is nil if the server answers otherwise.
	connect(ctx context.Context, c *Client, again bool) (*visit, Answer, error)
	// settle waits until what is published from then on will arrive. Events from the nth on
	// are of this visit.
	settle(c *Client, n int, again bool) error
	// leave says goodbye.
	leave(v *visit)
}

// errSentAway is returned by settle for a stream that ended before it began: there are too
// many clients, for instance, and an EventSource is to come back.
var errSentAway = errors.New("an empty stream: come back later")

// A visit is one connection of a client.
type visit struct {
	conn *conn
	ws   *websocket.Conn // nil over SSE
	read func() error    // the next piece; the error ends the visit
	end  func(error) End
	done chan struct{} // closed when the reader has ended
	how  End           // set before done is closed
}

func (s *Server) connect(p protocol, options []Option) (*Client, Answer) {
	s.t.Helper()
	c := &Client{
		t:        s.t,
		server:   s,
		protocol: p,
		settings: s.settings.with(options),
		changed:  make(chan struct{}),
	}
	s.mu.Lock()
	s.clients = append(s.clients, c)
	s.mu.Unlock()
	answer := c.begin(false)
	if c.current() == nil {
		return nil, answer
	}
	return c, answer
}

// begin opens a connection and waits until it is settled. Without one, if the server
// refuses, visit is what it was.
func (c *Client) begin(again bool) Answer {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), c.settings.timeout)
	defer cancel()
	v, answer, err := c.protocol.connect(ctx, c, again)
	if err != nil {
		c.t.Fatalf("pushlettest: connect: %v", err)
	}
	if v == nil {
		return answer
	}
	v.done = make(chan struct{})
	c.mu.Lock()
	before, n := c.visit, len(c.received)
	c.visit = v
	c.mu.Unlock()
	go c.follow(v) // ends with the connection, which ends with the test at the latest
	switch err := c.protocol.settle(c, n, again); {
	case errors.Is(err, errSentAway):
		<-v.done
		answer.Body = fmt.Sprintf("%v (%v)", err, v.how)
		c.mu.Lock()
		c.visit = before
		c.mu.Unlock()
	case err != nil:
		c.t.Fatalf("pushlettest: connect: %v", err)
	}
	return answer
}

// follow reads until the connection ends.
func (c *Client) follow(v *visit) {
	var err error
	for err == nil {
		err = v.read()
	}
	v.how = v.end(err)
	v.conn.Close()
	close(v.done)
	c.note(func() {})
}

// note changes what is guarded by mu and lets those who wait look again.
func (c *Client) note(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	close(c.changed)
	c.changed = make(chan struct{})
}

// current returns the connection that is there, or was the last.
func (c *Client) current() *visit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.visit
}

// await waits until found returns true. The error says why it does not: the connection has
// ended, or the time is over.
func (c *Client) await(found func() bool) error {
	timer := time.NewTimer(c.settings.timeout)
	defer timer.Stop()
	for {
		c.mu.Lock()
		v, changed := c.visit, c.changed
		c.mu.Unlock()
		over := false
		select {
		case <-v.done: // all has been received, so the look that follows is the last
			over = true
		default:
		}
		switch {
		case found():
			return nil
		case over:
			return fmt.Errorf("the connection has ended: %v", v.how)
		}
		select {
		case <-changed:
		case <-timer.C:
			return fmt.Errorf("not within %v", c.settings.timeout)
		}
	}
}

// take waits for the next event that is wanted and passes it. Those before it are passed
// over, also in vain.
func (c *Client) take(what string, wanted func(Event) bool) Event {
	c.t.Helper()
	var e Event
	c.mu.Lock()
	from := c.read
	c.mu.Unlock()
	err := c.await(func() bool {
		for c.pass(&e) {
			if wanted(e) {
				return true
			}
		}
		return false
	})
	if err != nil {
		c.t.Fatalf("pushlettest: %s: %v; %s", what, err, c.receivedSince(from))
	}
	return e
}

// pass passes the next event, if there is one.
func (c *Client) pass(e *Event) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.read == len(c.received) {
		return false
	}
	*e = c.received[c.read]
	c.read++
	return true
}

// answerTo waits for an event that came after the first n and is wanted, without passing any.
func (c *Client) answerTo(n int, wanted func(Event) bool) (answer Event, err error) {
	err = c.await(func() bool {
		c.mu.Lock()
		events := c.received[n:]
		c.mu.Unlock() // what is there does not change
		n += len(events)
		for _, e := range events {
			if wanted(e) {
				answer = e
				return true
			}
		}
		return false
	})
	return answer, err
}

// count returns how many events were received.
func (c *Client) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.received)
}

// receivedSince says what came, for a message.
func (c *Client) receivedSince(from int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	const most = 20
	events := c.received[from:]
	if len(events) == 0 {
		return "nothing was received"
	}
	var b strings.Builder
	b.WriteString("received instead:")
	if len(events) > most {
		fmt.Fprintf(&b, " %d events, of these the last", len(events))
		events = events[len(events)-most:]
	}
	for _, e := range events {
		fmt.Fprintf(&b, "\n\t%v", e)
	}
	return b.String()
}

// Next returns the next message, and waits for it if need be. It passes over what the
// library says itself, the events pushlet.*; what was lost is in [Client.Gaps].
func (c *Client) Next() Event {
	c.t.Helper()
	return c.take("waiting for a message", func(e Event) bool { return !e.reserved() })
}

// NextAny returns the next event, whatever it is.
func (c *Client) NextAny() Event {
	c.t.Helper()
	return c.take("waiting for an event", func(Event) bool { return true })
}

// Expect returns the next message, which must have this name and data. The name of a
// message that was published without is "message".
func (c *Client) Expect(name, data string) Event {
	c.t.Helper()
	what := fmt.Sprintf("waiting for %v", Event{Name: name, Data: data})
	e := c.take(what, func(e Event) bool { return !e.reserved() })
	if e.Name != name || e.Data != data {
		c.t.Fatalf("pushlettest: message %v, want %v", e, Event{Name: name, Data: data})
	}
	return e
}

// WaitFor returns the next event for which claim returns true, also of pushlet.*; those
// before it are passed over.
func (c *Client) WaitFor(claim func(Event) bool) Event {
	c.t.Helper()
	return c.take("WaitFor", claim)
}

// ExpectNone fails the test if there is a message that the test has not taken, once
// everything that was published before has arrived. In a synctest bubble that is when all
// is at rest: it calls synctest.Wait, and a client that is stalled is not waited for.
//
// Outside, a WebSocket makes a round trip to the server, [Client.Ping]. A client that has
// just resumed, or fallen behind, may have got its answer before all of the messages that
// it missed. An SSE client cannot ask, so there ExpectNone fails the test at once: publish
// one more message, and Expect that.
func (c *Client) ExpectNone() {
	c.t.Helper()
	if !settled() {
		if c.current().ws == nil {
			c.t.Fatal("pushlettest: ExpectNone of an SSE client works in a synctest bubble only; " +
				"publish one more message instead, and Expect that")
		}
		c.Ping()
	}
	c.mu.Lock()
	i := slices.IndexFunc(c.received[c.read:], func(e Event) bool { return !e.reserved() })
	from := c.read
	c.mu.Unlock()
	if i >= 0 {
		c.t.Fatalf("pushlettest: ExpectNone: %s", c.receivedSince(from))
	}
}

// settled waits until all is at rest, and reports false outside a bubble, where Wait panics.
func settled() (ok bool) {
	defer func() {
		if v := recover(); v != nil && fmt.Sprint(v) == "wait already in progress" {
			panic(v)
		}
	}()
	synctest.Wait()
	return true
}

// Events returns all messages that were received, whether or not the test has taken them:
// those of all connections, in their order, without the events pushlet.*.
func (c *Client) Events() []Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.received), Event.reserved)
}

// Gaps returns the gaps the client was told of. If there are none nothing was lost of what
// it follows; of broadcasts see [Client.Reconnect].
func (c *Client) Gaps() (gaps []Gap) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.received {
		if e.Name != "pushlet.gap" {
			continue
		}
		g := Gap{Topics: []string{e.Topic}, Reason: e.Data}
		if e.Topic == "" { // SSE
			if err := json.Unmarshal([]byte(e.Data), &g); err != nil {
				g.Reason = e.Data
			}
		}
		gaps = append(gaps, g)
	}
	return gaps
}

// Heartbeats returns how many heartbeats have come: comment lines over SSE, pings over
// WebSocket.
func (c *Client) Heartbeats() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heartbeat
}

// Drop cuts the connection now, as a network does that fails: what was on its way is lost,
// the server gets an error the next time it reads or writes. When it returns the client
// receives nothing more until [Client.Reconnect]. How much was still on its way is a
// matter of luck; to lose something for sure call Stall first. If the connection has ended
// Drop does nothing.
func (c *Client) Drop() {
	v := c.current()
	if v == nil {
		return // it has not been connected
	}
	v.conn.drop()
	<-v.done
}

// Stall makes the client stop reading, as a page that hangs or a peer that has vanished
// without a word: it answers no pings either, and does not see when the server ends the
// connection. The server can write until the connection's buffer is full; see [WithBuffer].
// A connection that is opened later is not stalled.
func (c *Client) Stall() { c.current().conn.stall(true) }

// Unstall goes on after [Client.Stall].
func (c *Client) Unstall() { c.current().conn.stall(false) }

// Reconnect connects again as a page does, at once, and waits as [Server.SSE] and
// [Server.WebSocket] do. Over SSE it sends the ID of the last event that was received as
// Last-Event-ID. Over WebSocket it subscribes to each topic that it follows from where it
// stopped, to "*" first if it knows a position there, because a broadcast or an earlier
// Subscribe("*") has given it one; "topic" and "since" are left out of the URL. A
// connection that is still there is dropped first. If the server refuses, the test fails.
//
// A WebSocket without a position in "*" does not get the broadcasts of the meantime, and is
// not told of a gap either: to resume them a page has to Subscribe to "*" first. The same
// goes for one that has only got a broadcast, and may not follow "*" by name.
//
// What was received before and not taken comes first with Next.
func (c *Client) Reconnect() {
	c.t.Helper()
	if before, answer := c.current(), c.TryReconnect(); c.current() == before {
		c.t.Fatalf("pushlettest: reconnect: status %d: %s", answer.Status, answer.Body)
	}
}

// TryReconnect is Reconnect for a test that looks at the answer itself. If the server
// refuses, the client remains without a connection.
func (c *Client) TryReconnect() Answer {
	c.t.Helper()
	c.Drop()
	return c.begin(true)
}

// Close ends the connection as a page does that is left: a WebSocket sends close code 1000
// and waits for the answer.
func (c *Client) Close() {
	c.t.Helper()
	v := c.current()
	v.conn.stall(false)
	c.protocol.leave(v)
	timer := time.NewTimer(c.settings.timeout)
	defer timer.Stop()
	select {
	case <-v.done:
	case <-timer.C:
		c.t.Fatalf("pushlettest: Close: no answer within %v", c.settings.timeout)
	}
}

// Closed returns a channel that is closed when the present connection has ended.
func (c *Client) Closed() <-chan struct{} { return c.current().done }

// WaitClosed waits until the connection has ended and returns how.
func (c *Client) WaitClosed() End {
	c.t.Helper()
	c.mu.Lock()
	v, from := c.visit, len(c.received)
	c.mu.Unlock()
	timer := time.NewTimer(c.settings.timeout)
	defer timer.Stop()
	select {
	case <-v.done:
	case <-timer.C:
		c.t.Fatalf("pushlettest: WaitClosed: not within %v; %s", c.settings.timeout, c.receivedSince(from))
	}
	return v.how
}

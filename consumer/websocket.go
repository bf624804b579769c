package consumer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// A webSocket is the protocol WebSocket.
type webSocket struct {
	c *Client

	// Guarded by c.mu.
	url        url.URL // without topics
	topics     []*topic
	allRefused bool  // the server does not let us resume the broadcast log
	owed       bool  // the user's topic is confirmed, and will be told with the broadcast log
	link       *link // nil: there is no connection

	// Owned by the goroutine of the run.
	byCommand bool // resume by commands: the server does not take the URL
	been      bool // there was a connection before
}

// A topic is something that the client follows.
type topic struct {
	name   string
	since  string // where it is; empty: not known yet
	wanted bool   // by the application; false: the broadcast log and the user's, which come by themselves
}

// A link is one connection, as the goroutines that serve it see it.
type link struct {
	ws     *websocket.Conn
	frames chan frame    // from the reader
	wake   chan struct{} // for the writer; holds one
	done   chan struct{} // closed when nobody takes frames any more

	// Guarded by Client.mu.
	out     [][]byte
	leaving map[string]int // how many answers to unsubscribe are to come

	// Owned by the goroutine of the run.
	resumesAll bool // the broadcast log is resumed, unless the server refuses
}

// A frame is what the server sends, or why there is nothing more.
type frame struct {
	message
	err error
}

type message struct {
	Topic     string    `json:"topic"`
	Event     *string   `json:"event"`
	Data      string    `json:"data"`
	Timestamp time.Time `json:"timestamp"`
	ID        string    `json:"id"`
}

// A command is what we send.
type command struct {
	Action string            `json:"action"`
	Topics []string          `json:"topics"`
	Since  map[string]string `json:"since,omitempty"` // of those that do not begin now
}

const (
	framesAhead  = 64               // how far the reader may be ahead of the application
	writeTimeout = 10 * time.Second // of a command
	longQuery    = 4 << 10          // a longer URL is asking for trouble
	manyTopics   = 100              // more than that go in few commands
	topicsAtOnce = 50               // then so many in each

	// What pushlet.error says of a topic that a server cannot give just now.
	unavailable = "pushlet: unavailable"
)

func newWebSocket(c *Client) (protocol, error) {
	w := &webSocket{c: c, url: *c.url}
	if c.url.User != nil {
		return nil, errors.New("consumer: a WebSocket URL has no user and password: see WithHeader")
	}
	for _, name := range []string{"Connection", "Upgrade", "Sec-Websocket-Extensions", "Sec-Websocket-Key", "Sec-Websocket-Version"} {
		if _, set := c.cfg.header[name]; set {
			return nil, fmt.Errorf("consumer: WithHeader: %s belongs to the WebSocket", name)
		}
	}
	query := c.url.Query()
	since := query["since"]
	if len(since) > 1 && len(since) != len(query["topic"]) {
		return nil, errors.New("consumer: since in the URL: one for all topics, or one for each")
	}
	for i, name := range query["topic"] {
		if name == "" || name == "/" {
			continue // they count as none
		}
		w.want(name)
		if len(since) > 0 {
			w.find(name).since = since[min(i, len(since)-1)]
		}
	}
	for _, name := range c.cfg.topics {
		w.want(name)
	}
	for name, since := range c.cfg.since {
		w.know(name).since = since
	}
	query.Del("topic")
	query.Del("since")
	w.url.RawQuery = query.Encode()
	_, err := c.cfg.webSocketDialer()
	return w, err
}

// find returns a topic that is followed, nil if it is not.
func (w *webSocket) find(name string) *topic {
	if i := slices.IndexFunc(w.topics, func(t *topic) bool { return t.name == name }); i >= 0 {
		return w.topics[i]
	}
	return nil
}

// know returns a topic, which is followed from now on. The broadcast log comes first: who
// follows another topic follows it too, and where it begins has to be said before that. Then
// comes the user's, so that there is room for both in the URL.
func (w *webSocket) know(name string) *topic {
	t := w.find(name)
	if t != nil {
		return t
	}
	t = &topic{name: name}
	at := len(w.topics)
	switch {
	case name == allTopic:
		at = 0
	case name == userTopic:
		at = min(1, len(w.topics))
	}
	w.topics = slices.Insert(w.topics, at, t)
	return t
}

// want follows a topic for the application. It returns the topics that are new.
func (w *webSocket) want(name string) (fresh []*topic) {
	for _, name := range []string{allTopic, name} {
		if w.find(name) == nil {
			fresh = append(fresh, w.know(name))
		}
	}
	w.find(name).wanted = true
	return fresh
}

// Subscribe follows topics from now on, over WebSocket. It does not wait: [Client.OnSubscribed]
// is told when the server has confirmed a topic, and [Client.OnError] of a [TopicError] when it
// refuses. Without a connection they are followed once there is one. Over SSE the error
// is errors.ErrUnsupported.
func (c *Client) Subscribe(topics ...string) error {
	w, err := c.webSocket(topics)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var fresh []*topic
	for _, name := range topics {
		fresh = append(fresh, w.want(name)...)
	}
	if w.link != nil {
		w.link.send(w.commandsFor(fresh))
	}
	return nil
}

// Unsubscribe ends following topics, over WebSocket. No message of theirs is handed over any
// more once it has returned, except for one that is on its way to the application at this
// moment. Over SSE the error is errors.ErrUnsupported.
func (c *Client) Unsubscribe(topics ...string) error {
	w, err := c.webSocket(topics)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range topics {
		if t := w.find(name); t != nil && t.wanted {
			w.drop(t)
		}
	}
	return nil
}

// webSocket checks the arguments of Subscribe and Unsubscribe.
func (c *Client) webSocket(topics []string) (*webSocket, error) {
	if c.err != nil {
		return nil, c.err
	}
	w, ok := c.protocol.(*webSocket)
	if !ok {
		return nil, fmt.Errorf("consumer: topics of an event stream do not change: %w", errors.ErrUnsupported)
	}
	if slices.Contains(topics, "") {
		return nil, errors.New("consumer: an empty topic")
	}
	return w, nil
}

// drop ends following a topic, and the broadcast log with the last one.
func (w *webSocket) drop(t *topic) {
	t.wanted = false
	ordinary := func(t *topic) bool { return t.name != allTopic }
	if t.name == allTopic && slices.ContainsFunc(w.topics, ordinary) {
		return // it comes with the others
	}
	gone := []*topic{t}
	w.remove(t)
	if all := w.find(allTopic); all != nil && !all.wanted && !slices.ContainsFunc(w.topics, ordinary) {
		gone = append(gone, all)
		w.remove(all)
	}
	if w.link != nil {
		for _, t := range gone {
			w.link.leaving[t.name]++
			w.link.send([]command{{Action: "unsubscribe", Topics: []string{t.name}}})
		}
	}
}

func (w *webSocket) remove(t *topic) {
	w.topics = slices.DeleteFunc(w.topics, func(other *topic) bool { return other == t })
}

// commandsFor subscribes to topics, each from where it is. The server limits the rate of commands,
// and how many topics are in one: so it is few commands for many topics, and one for each of few,
// where one too many is refused alone.
func (w *webSocket) commandsFor(topics []*topic) (commands []command) {
	topics = slices.DeleteFunc(slices.Clone(topics), func(t *topic) bool {
		return t.name == userTopic && t.since == "" // comes by itself
	})
	size := 1
	if len(topics) > manyTopics {
		size = topicsAtOnce
	}
	for chunk := range slices.Chunk(topics, size) {
		cmd := command{Action: "subscribe", Since: map[string]string{}}
		for _, t := range chunk {
			cmd.Topics = append(cmd.Topics, t.name)
			if t.since != "" && (t.name != allTopic || !w.allRefused) { // perhaps it is allowed by now
				cmd.Since[t.name] = t.since
			}
		}
		commands = append(commands, cmd)
	}
	return commands
}

// send queues commands for the writer. It is called with Client.mu held.
func (l *link) send(commands []command) {
	for _, cmd := range commands {
		b, _ := json.Marshal(cmd) // strings cannot fail
		l.out = append(l.out, b)
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (w *webSocket) visit(ctx context.Context, hand func(Message) bool) (fruitful bool, err error) {
	target, asked, more := w.target()
	ws, err := w.dial(ctx, target)
	if more && refusesURL(err) {
		w.byCommand = true // so that what is refused is one topic, and not all
		target, asked, _ = w.target()
		ws, err = w.dial(ctx, target)
	}
	if err != nil {
		return false, reasonOf(ctx, err)
	}
	l := &link{
		ws:      ws,
		frames:  make(chan frame, framesAhead),
		wake:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		leaving: map[string]int{},
	}
	lost := w.connect(l, asked)
	var both sync.WaitGroup
	both.Go(func() { l.read(int64(w.c.cfg.maxSize)) }) // ends when the connection is closed, and done
	both.Go(func() { l.write(&w.c.mu) })               // ends with done
	defer both.Wait()
	defer w.disconnect(l)
	w.c.connected()
	w.been = true
	if lost {
		if !hand(lostBroadcasts()) {
			return true, errBroken
		}
	}
	return w.take(ctx, l, hand)
}

// lostBroadcasts is the gap of who may not resume the broadcast log.
func lostBroadcasts() Message {
	gap := &Gap{Topics: []string{allTopic}, Reason: NotResumable}
	return Message{Topic: allTopic, Event: GapEvent, Data: gap.Reason, Gap: gap}
}

// refusesURL reports whether the server may not like what the URL asks for.
func refusesURL(err error) bool {
	var answer *ResponseError
	refusals := []int{http.StatusBadRequest, http.StatusForbidden, http.StatusRequestURITooLong, http.StatusRequestHeaderFieldsTooLarge}
	return errors.As(err, &answer) && slices.Contains(refusals, answer.Status)
}

// target is the URL, with those topics in it that are to be resumed by it, and whether some of
// these could also be resumed by commands.
func (w *webSocket) target() (target string, asked []*topic, more bool) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	u := w.url
	query := u.RawQuery
	for _, t := range w.topics {
		if t.since == "" || t.name == allTopic && w.allRefused || !w.byURLOnly(t) && (w.byCommand || len(query) > longQuery) {
			continue
		}
		if query != "" {
			query += "&"
		}
		query += url.Values{"topic": {t.name}, "since": {t.since}}.Encode()
		asked = append(asked, t)
		more = more || !w.byURLOnly(t)
	}
	u.RawQuery = query
	return u.String(), asked, more
}

// byURLOnly reports whether a topic can be resumed by the URL only: a client that has a user
// follows the user's and the broadcast log from the start.
func (w *webSocket) byURLOnly(t *topic) bool {
	return t.name == userTopic || t.name == allTopic && w.find(userTopic) != nil
}

// connect makes l the connection, and subscribes to what is not in its URL. It reports
// whether broadcasts may have been missed.
func (w *webSocket) connect(l *link, asked []*topic) (lost bool) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.link, w.owed = l, false
	rest := slices.DeleteFunc(slices.Clone(w.topics), func(t *topic) bool { return slices.Contains(asked, t) })
	for _, t := range asked {
		if w.find(t.name) != t { // given up meanwhile, and perhaps wanted anew
			l.leaving[t.name]++
			l.send([]command{{Action: "unsubscribe", Topics: []string{t.name}}})
		}
	}
	l.send(w.commandsFor(rest))
	all := w.find(allTopic)
	l.resumesAll = all != nil && all.since != "" && !w.allRefused
	return w.been && w.allRefused && len(w.topics) > 0
}

// disconnect ends a connection as it should, if it still can.
func (w *webSocket) disconnect(l *link) {
	w.c.mu.Lock()
	w.link = nil
	w.c.mu.Unlock()
	close(l.done)
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = l.ws.WriteControl(websocket.CloseMessage, bye, time.Now().Add(time.Second)) // it may have ended
	l.ws.Close()
}

// take hands over what the connection brings.
func (w *webSocket) take(ctx context.Context, l *link, hand func(Message) bool) (fruitful bool, err error) {
	for {
		var f frame
		select {
		case f = <-l.frames:
		case <-ctx.Done():
			return fruitful, context.Cause(ctx)
		}
		switch {
		case ctx.Err() != nil: // stopped meanwhile, by the body perhaps
			return fruitful, context.Cause(ctx)
		case f.err != nil:
			return fruitful, f.err
		}
		fruitful = true
		m, ok, err := w.accept(l, f.message)
		if err != nil {
			return fruitful, err
		}
		if ok && !hand(m) {
			return fruitful, errBroken
		}
	}
}

// accept takes note of a frame, and reports whether it is for the application.
func (w *webSocket) accept(l *link, f message) (m Message, ok bool, err error) {
	m = Message{Topic: f.Topic, Event: *f.Event, Data: f.Data, ID: f.ID, Time: f.Timestamp}
	switch m.Event {
	case eventSubscribed:
		for _, topic := range w.confirm(l, m) {
			w.c.subscribed(topic)
		}
		return m, false, nil
	case eventUnsubscribed:
		w.c.mu.Lock()
		defer w.c.mu.Unlock()
		if l.leaving[m.Topic] > 0 {
			l.leaving[m.Topic]--
		}
		return m, false, nil
	case eventError:
		if err := w.refused(l, m); err != nil {
			return m, false, err
		}
		if m.Topic == allTopic && l.resumesAll {
			l.resumesAll = false
			return lostBroadcasts(), true, nil
		}
		return m, false, nil
	case GapEvent:
		m.Gap = &Gap{Topics: []string{m.Topic}, Reason: m.Data}
	default:
		if isReserved(m.Event) {
			return m, false, nil
		}
	}
	return m, w.pass(l, m), nil
}

// pass notes how far a topic has come, and reports whether it is still followed.
func (w *webSocket) pass(l *link, m Message) bool {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if l.leaving[m.Topic] > 0 {
		return false
	}
	if t := w.find(m.Topic); t != nil && m.ID != "" {
		t.since = m.ID
	}
	return true
}

// confirm notes from where a topic is followed, and returns what the application is to be told
// of. The user's topic waits for the broadcast log: only then can the client resume both.
func (w *webSocket) confirm(l *link, m Message) (told []string) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if l.leaving[m.Topic] > 0 {
		return nil
	}
	if m.Topic == userTopic {
		if w.find(allTopic) == nil {
			l.send(w.commandsFor([]*topic{w.know(allTopic)})) // to learn where it is
		}
		w.know(userTopic).since = m.ID
		w.owed = true
		return w.pay()
	}
	t := w.find(m.Topic)
	if t == nil {
		return nil
	}
	t.since = m.ID
	if t.name == allTopic {
		w.allRefused = false
	}
	told = w.pay()
	if t.wanted {
		told = append(told, t.name)
	}
	return told
}

// pay returns what is owed, if it can be told now.
func (w *webSocket) pay() (told []string) {
	if all := w.find(allTopic); w.owed && (w.allRefused || all != nil && all.since != "") {
		w.owed = false
		told = append(told, userTopic)
	}
	return told
}

// refused acts on what the server could not do.
func (w *webSocket) refused(l *link, m Message) error {
	if strings.HasPrefix(m.Data, unavailable) && m.Topic != "" {
		return fmt.Errorf("consumer: topic %q: %s", m.Topic, m.Data) // come back later
	}
	w.c.mu.Lock()
	t := w.find(m.Topic)
	quiet := t != nil && t.name == allTopic && !t.wanted
	switch {
	case t == nil, l.leaving[t.name] > 0: // it may have been wanted anew
	case t.name == allTopic:
		w.allRefused = true
		t.since = ""
	default:
		w.remove(t)
	}
	told := w.pay()
	w.c.mu.Unlock()
	for _, topic := range told {
		w.c.subscribed(topic)
	}
	if !quiet {
		w.c.fail(&TopicError{Topic: m.Topic, Text: m.Data})
	}
	return nil
}

// dial opens a connection.
func (w *webSocket) dial(ctx context.Context, target string) (*websocket.Conn, error) {
	h, err := w.c.cfg.headers(ctx)
	if err != nil {
		return nil, err
	}
	d, err := w.c.cfg.webSocketDialer()
	if err != nil {
		return nil, err
	}
	shake := &handshake{ctx: ctx, idle: w.c.cfg.idle}
	defer shake.end()
	shake.watch(d)
	ws, resp, err := d.DialContext(ctx, target, h)
	if errors.Is(err, websocket.ErrBadHandshake) && resp != nil {
		if resp.StatusCode == http.StatusOK {
			return nil, ErrNotPushlet
		}
		return nil, responseError(resp)
	}
	if err != nil {
		return nil, withoutURL(err)
	}
	return ws, nil
}

// A handshake ends with its context, for which gorilla does not watch while it waits for the
// answer.
type handshake struct {
	ctx  context.Context // of the call of dial, as long as which it lives
	idle time.Duration

	// Owned by the goroutine that dials.
	conns []*watchedConn
	stops []func() bool
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// watch makes the dialer watch the connections that it opens.
func (s *handshake) watch(d *websocket.Dialer) {
	dial := d.NetDialContext
	if dial == nil && d.NetDial != nil {
		old := d.NetDial
		dial = func(_ context.Context, network, addr string) (net.Conn, error) { return old(network, addr) }
	}
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	d.NetDialContext = s.watched(dial)
	if d.NetDialTLSContext != nil {
		d.NetDialTLSContext = s.watched(d.NetDialTLSContext)
	}
}

func (s *handshake) watched(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		wc := &watchedConn{Conn: conn, idle: s.idle}
		s.conns = append(s.conns, wc)
		s.stops = append(s.stops, context.AfterFunc(s.ctx, func() { conn.Close() }))
		return wc, nil
	}
}

func (s *handshake) end() {
	for _, stop := range s.stops {
		stop()
	}
	for _, c := range s.conns {
		c.open.Store(true)
	}
}

// A watchedConn fails when nothing comes for too long, once the handshake is done.
type watchedConn struct {
	net.Conn
	idle time.Duration
	open atomic.Bool
}

func (c *watchedConn) Read(b []byte) (int, error) {
	if c.idle > 0 && c.open.Load() {
		c.SetReadDeadline(time.Now().Add(c.idle))
	}
	return c.Conn.Read(b)
}

// read passes on what comes, until the connection ends.
func (l *link) read(limit int64) {
	for {
		var f frame
		f.message, f.err = l.next(limit)
		select {
		case l.frames <- f:
		case <-l.done:
			return
		}
		if f.err != nil {
			return
		}
	}
}

// next reads one message. The limit holds after decompression too.
func (l *link) next(limit int64) (m message, err error) {
	_, r, err := l.ws.NextReader()
	if err == nil {
		var b bytes.Buffer
		if _, err = b.ReadFrom(io.LimitReader(r, limit+1)); err == nil {
			if int64(b.Len()) > limit {
				return m, fmt.Errorf("%w: a message of more than %d bytes", ErrTooLarge, limit)
			}
			if json.Unmarshal(b.Bytes(), &m) != nil || m.Event == nil {
				return m, ErrNotPushlet
			}
			return m, nil
		}
	}
	var bye *websocket.CloseError
	var late net.Error // gorilla hides what it is
	switch {
	case errors.As(err, &late) && late.Timeout():
		err = ErrIdle
	case errors.As(err, &bye) && bye.Code != websocket.CloseAbnormalClosure:
		err = fmt.Errorf("consumer: the server has closed the WebSocket: %w", err)
	default:
		err = fmt.Errorf("consumer: the WebSocket has broken: %w", err)
	}
	return m, err
}

// write sends commands.
func (l *link) write(mu *sync.Mutex) {
	for {
		select {
		case <-l.wake:
		case <-l.done:
			return
		}
		mu.Lock()
		out := l.out
		l.out = nil
		mu.Unlock()
		for _, b := range out {
			l.ws.SetWriteDeadline(time.Now().Add(writeTimeout))
			if l.ws.WriteMessage(websocket.TextMessage, b) != nil {
				l.ws.Close() // the reader says so
				return
			}
		}
	}
}

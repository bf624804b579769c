package pushlet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// HandleSSE serves an event stream (WHATWG HTML, "Server-sent events"). Topics come from
// the URL, "?topic=a&topic=b"; without any the topic is "default". A client that comes
// back with the Last-Event-ID header, or "?lastEventId=" where it cannot set headers,
// gets what it missed first, or is told of a gap.
//
// With "?format=json" the stream carries the JSON of the WebSocket, so that a client knows the
// topic and the ID of each message: see the package documentation.
//
// On HTTP/1.1 it takes the connection over and returns; see WithHijack. Otherwise it
// returns when the stream ends. Answers other than a stream: 400 for bad topics, 401
// from WithIdentity, 403 from WithAuthorize, 405 for methods other than GET, HEAD and OPTIONS, 501 where the
// ResponseWriter cannot flush; where a client should come back (too many clients,
// before Start, after Stop) 503 with Retry-After, for an EventSource a stream that ends.
func (p *Pushlet) HandleSSE(w http.ResponseWriter, r *http.Request) {
	p.cfg.allowOrigin(w, r)
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodOptions:
		p.preflight(w)
		return
	default:
		w.Header().Set("Allow", sseMethods)
		p.refuse(w, http.StatusMethodNotAllowed, "method not allowed")
		return
	}
	s, status, err := p.sseRequestOf(r)
	if err != nil {
		p.refuse(w, status, err.Error())
		return
	}
	if r.Method == http.MethodHead {
		setSSEHeader(w.Header())
		return
	}
	if err := p.admit(); err != nil {
		p.comeBack(w, r, err)
		return
	}
	p.counters.sse.Add(1)
	if !p.hijackSSE(w, r, s) {
		p.streamSSE(w, r, s)
	}
}

// An sseRequest is what a client asked for.
type sseRequest struct {
	info   Client
	form   form
	topics []string // formSSE
	resume *resume  // formSSE
	wishes []wish   // formSSEJSON
}

// sseRequestOf reads a request. If it is not to be served the error says why, and the
// status is for that.
func (p *Pushlet) sseRequestOf(r *http.Request) (s *sseRequest, status int, err error) {
	wishes, query, err := wishesOf(r)
	if err != nil {
		return nil, http.StatusBadRequest, err
	}
	format := query.Get("format")
	switch format {
	case "":
		err = p.checkWishes(wishes, userTopic)
	case "json": // what is wrong with a topic is said in the stream
	default:
		err = fmt.Errorf("pushlet: unknown format %.64q", format)
	}
	if err != nil {
		return nil, http.StatusBadRequest, err
	}
	if len(wishes) == 0 {
		wishes = []wish{{topic: defaultTopic}}
	}
	user, err := p.identify(r)
	if err != nil {
		return nil, http.StatusUnauthorized, err
	}
	s = &sseRequest{info: Client{ID: newClientID(), Protocol: "sse", Remote: r.RemoteAddr, User: user}}
	if format == "json" {
		s.form = formSSEJSON
		for i := range wishes {
			if since := wishes[i].since; since != nil && *since == "" {
				wishes[i].since = nil
			}
		}
		s.wishes = broadcastsFirst(wishes)
		if user != "" && !slices.ContainsFunc(wishes, func(w wish) bool { return w.topic == userTopic }) {
			s.wishes = append(s.wishes, wish{topic: userTopic})
		}
		return s, 0, nil
	}
	if wishes, err = withUser(wishes, user); err != nil {
		return nil, http.StatusBadRequest, err
	}
	s.topics = make([]string, len(wishes))
	for i := range wishes {
		s.topics[i] = wishes[i].topic
	}
	if hashesCollide(s.topics) {
		return nil, http.StatusBadRequest, errors.New("pushlet: these topics cannot be followed on one connection")
	}
	if err := p.authorizeAll(r, s.topics); err != nil {
		return nil, http.StatusForbidden, err
	}
	s.resume = p.resumeOf(r, query.Get("lastEventId"))
	return s, 0, nil
}

const sseMethods = "GET, HEAD, OPTIONS"

// preflight answers OPTIONS. Browsers ask before they send a Last-Event-ID that is long
// or has unusual characters to another origin.
func (p *Pushlet) preflight(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Allow", sseMethods)
	if h.Get("Access-Control-Allow-Origin") != "" {
		h.Set("Access-Control-Allow-Methods", sseMethods)
		h.Set("Access-Control-Allow-Headers", "Last-Event-ID, Cache-Control, Authorization")
		h.Set("Access-Control-Max-Age", "86400")
	}
	w.WriteHeader(http.StatusNoContent)
}

// resumeOf reads where a client stopped, nil if it did not say.
func (p *Pushlet) resumeOf(r *http.Request, fromQuery string) *resume {
	token := r.Header.Get("Last-Event-ID")
	if token == "" {
		token = fromQuery
	}
	if token == "" {
		return nil
	}
	if len(token) > maxToken(p.cfg.maxTopics+1) {
		return &resume{} // none of ours
	}
	c, ok := parseCursor(token)
	return &resume{cursor: c, known: ok}
}

// hashesCollide reports whether a cursor could not tell two of the topics apart.
func hashesCollide(topics []string) bool {
	if len(topics) == 1 {
		return false
	}
	seen := make(map[topicHash]struct{}, len(topics))
	for _, t := range topics {
		seen[hashTopic(t)] = struct{}{}
	}
	return len(seen) < len(topics)
}

// comeBack refuses a client that should try again. An EventSource gives up for good on
// any status but 200, so it gets a stream that ends at once.
func (p *Pushlet) comeBack(w http.ResponseWriter, r *http.Request, err error) {
	wait := spreadRetry(p.cfg.retry)
	if !strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		w.Header().Set("Retry-After", strconv.Itoa(1+int(wait.Seconds())))
		p.refuse(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	p.counters.refused.Add(1)
	setSSEHeader(w.Header())
	_, _ = w.Write(append(appendRetry(nil, wait), '\n')) // if it fails the client is gone
}

// sseHeader is what every stream has. The names are in canonical form.
var sseHeader = []struct{ name, value string }{
	{"Content-Type", "text/event-stream"},
	{"Cache-Control", "no-cache, no-transform"},
	{"X-Accel-Buffering", "no"}, // nginx
}

func setSSEHeader(h http.Header) {
	for _, f := range sseHeader {
		h.Set(f.name, f.value)
	}
	h.Del("Content-Length")
}

// hijackSSE serves the stream on the bare connection, and reports false if that is not
// possible; then nothing was sent.
func (p *Pushlet) hijackSSE(w http.ResponseWriter, r *http.Request, s *sseRequest) bool {
	// A Content-Encoding was set by a wrapper that wants to write the body itself.
	if !p.cfg.hijack || r.ProtoMajor != 1 || w.Header().Get("Content-Encoding") != "" {
		return false
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return false
	}
	conn.SetDeadline(time.Time{}) // the server's; if it fails, so will the first write
	t := newConnTransport(conn, p.cfg.writeTimeout, &p.heartbeat, true)
	now := time.Now()
	c := newClient(s.info, s.form, t, p.env, now)
	c.again = p.reauthorizer(r, s.info.User)
	c.tell(appendRetry(responseHead(w.Header(), now), p.cfg.retry))
	p.attachSSE(c, s, r)
	go p.watchSSE(c, conn) // ends with the connection; conns waits for it
	return true
}

// responseHead is the head of a response with the headers that middleware has set. The
// body ends with the connection.
func responseHead(h http.Header, now time.Time) []byte {
	b := make([]byte, 0, 256)
	b = append(b, "HTTP/1.1 200 OK\r\n"...)
	if h.Get("Date") == "" {
		b = append(b, "Date: "...)
		b = now.UTC().AppendFormat(b, http.TimeFormat)
		b = append(b, "\r\n"...)
	}
	for _, name := range []string{"Connection", "Transfer-Encoding", "Content-Length", "Trailer"} {
		delete(h, name) // they are about a body that ends otherwise
	}
	b = append(b, "Connection: close\r\n"...)
	for _, f := range sseHeader {
		delete(h, f.name)
		b = append(b, f.name...)
		b = append(b, ": "...)
		b = append(b, f.value...)
		b = append(b, "\r\n"...)
	}
	if len(h) > 0 {
		buf := bytes.NewBuffer(b)
		_ = h.Write(buf) // into memory: cannot fail
		b = buf.Bytes()
	}
	return append(b, "\r\n"...)
}

// attachSSE gives the client to the broker.
func (p *Pushlet) attachSSE(c *client, s *sseRequest, r *http.Request) {
	p.greet(s.info)
	if s.form == formSSEJSON {
		p.attachJSON(c, s.wishes, r)
		return
	}
	p.broker.send(&attach{client: c, topics: s.topics, resume: s.resume, hello: connectedHead(s)})
}

// attachJSON gives the broker a client that speaks JSON, and does what its URL asks for. The
// first event says how long the silence between heartbeats is, so that the client, whom the
// browser does not tell of comments, can notice a dead connection.
func (p *Pushlet) attachJSON(c *client, wishes []wish, r *http.Request) {
	interval := time.Duration(p.heartbeat.Load()).Milliseconds()
	c.tell(fmt.Appendf(nil, "event: %s\ndata: %d\n\n", eventHeartbeat, interval))
	p.broker.send(&attach{client: c})
	m := &commander{p, c, r}
	for _, w := range wishes {
		if c.isEnding() {
			return
		}
		if topic, ok := m.topic(w.topic); ok {
			m.subscribe(topic, w.since)
		}
	}
}

// connectedHead is pushlet.connected without its "id:", up to the value of "resumed".
func connectedHead(s *sseRequest) []byte {
	b := make([]byte, 0, 128)
	b = append(b, "event: "+eventConnected+"\ndata: {\"client\":"...)
	b = appendJSONString(b, s.info.ID)
	for i, topic := range s.topics {
		if i == 0 {
			b = append(b, `,"topics":[`...)
		} else {
			b = append(b, ',')
		}
		b = appendJSONString(b, wireTopic(topic))
	}
	return append(b, `],"resumed":`...)
}

// watchSSE waits for the end of a connection that was taken over. A client of an event
// stream has nothing to say; what it sends is dropped.
func (p *Pushlet) watchSSE(c *client, conn net.Conn) {
	swallow(conn, make([]byte, 64))
	c.abort(ReasonClientClosed)
	p.counters.sse.Add(-1)
	p.leave(c)
}

// streamSSE serves the stream through the ResponseWriter. The handler's goroutine is the
// client's flusher.
func (p *Pushlet) streamSSE(w http.ResponseWriter, r *http.Request, s *sseRequest) {
	rc := http.NewResponseController(w)
	deadlineErr := rc.SetWriteDeadline(time.Time{}) // a WriteTimeout is not meant for streams
	var err error = http.ErrNotSupported
	if canFlush(w) {
		setSSEHeader(w.Header())
		// Wrappers that compress, or count, look at the header only here, and not in Flush.
		w.WriteHeader(http.StatusOK)
		err = rc.Flush()
	}
	if err != nil {
		w.Header().Del("Content-Type")
		p.counters.sse.Add(-1)
		p.refuse(w, http.StatusNotImplemented, "pushlet: streaming is not supported here: "+err.Error())
		p.dismiss()
		return
	}
	t := newControllerTransport(w, p.cfg.writeTimeout)
	c := newClient(s.info, s.form, t, p.env, time.Now())
	c.again = p.reauthorizer(r, s.info.User)
	c.wake = make(chan struct{}, 1)
	c.gone = make(chan struct{})
	c.tell(appendRetry(nil, p.cfg.retry))
	p.attachSSE(c, s, r)
	p.feed(c, t, r, writeLimit(r, deadlineErr))
	c.abort(ReasonClientClosed)
	t.retire()
	p.counters.sse.Add(-1)
	p.leave(c)
}

// canFlush reports whether there is a Flush that http.ResponseController would call.
func canFlush(w http.ResponseWriter) bool {
	for {
		switch v := w.(type) {
		case http.Flusher, interface{ FlushError() error }:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = v.Unwrap()
		default:
			return false
		}
	}
}

// feed writes what is queued to c whenever there is something, until the end.
func (p *Pushlet) feed(c *client, t *controllerTransport, r *http.Request, limit <-chan time.Time) {
	for {
		select {
		case <-c.wake:
			p.flusher.drain(c)
		case <-t.end:
			return
		case <-c.gone:
			return
		case <-r.Context().Done():
			return
		case <-limit:
			if c.finish(ReasonMaxAge, farewell(c.form, ReasonMaxAge, p.cfg.retry, time.Now())) == runnable {
				c.kick()
			}
		}
	}
}

// writeLimit is for a ResponseWriter whose write deadline cannot be changed, on a server
// that has one: it fires shortly before, so that the stream ends well and the client
// resumes, instead of being cut within a message.
func writeLimit(r *http.Request, deadlineErr error) <-chan time.Time {
	srv, _ := r.Context().Value(http.ServerContextKey).(*http.Server)
	if srv == nil || srv.WriteTimeout <= 0 || !errors.Is(deadlineErr, http.ErrNotSupported) {
		return nil
	}
	return time.After(srv.WriteTimeout - min(srv.WriteTimeout/4, time.Second))
}

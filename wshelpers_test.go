package pushlet_test

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/usual2970/pushlet"
)

// What the WebSocket tests share: a server, on loopback or on pipes in a synctest bubble;
// gorilla's client; and a raw client that writes frames by hand and reads them strictly.

// wsPatience is how long a test waits for what must come. Only a failure uses it up.
const wsPatience = 30 * time.Second

// A wsServer is a started Pushlet behind an HTTP server, with HandleWebSocket at /ws and
// HandleSSE at /events. Both end with the test, which fails if they do not end well.
type wsServer struct {
	*pushlet.Pushlet
	t        testing.TB
	dial     func() (net.Conn, error)
	patience time.Duration
	ended    chan wsEnd // what OnDisconnect was told
}

// A wsEnd is the end of one connection.
type wsEnd struct {
	client pushlet.Client
	reason pushlet.Reason
}

// wsServe starts a server on loopback.
func wsServe(t testing.TB, options ...pushlet.Option) *wsServer {
	t.Helper()
	return wsServeWrapped(t, nil, options...)
}

// wsServeWrapped is wsServe behind a middleware.
func wsServeWrapped(t testing.TB, wrap func(http.Handler) http.Handler, options ...pushlet.Option) *wsServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := wsServeOn(t, l, wrap, options...)
	s.dial = func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) }
	return s
}

// wsServeSmall is wsServe with connections that take little at once, so that nearly every
// write of the server is cut and somebody has to go on with it.
func wsServeSmall(t testing.TB, options ...pushlet.Option) *wsServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := wsServeOn(t, wsSmallListener{l}, nil, options...)
	s.dial = func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) }
	return s
}

type wsSmallListener struct{ net.Listener }

func (l wsSmallListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok {
		err = errors.Join(err, tcp.SetWriteBuffer(4<<10))
	}
	return conn, err
}

// wsServePipes starts a server on in-memory connections, for a synctest bubble: there
// time passes only when everybody waits, so patience costs nothing.
func wsServePipes(t testing.TB, options ...pushlet.Option) *wsServer {
	t.Helper()
	l := &wsPipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	s := wsServeOn(t, l, nil, options...)
	s.dial = l.dial
	s.patience = 1000 * time.Hour
	return s
}

// wsServeOn starts a server on l. The caller sets dial.
func wsServeOn(t testing.TB, l net.Listener, wrap func(http.Handler) http.Handler, options ...pushlet.Option) *wsServer {
	t.Helper()
	s := &wsServer{t: t, patience: wsPatience, ended: make(chan wsEnd, 4096)}
	hooks := pushlet.Hooks{OnDisconnect: func(c pushlet.Client, why pushlet.Reason) { s.ended <- wsEnd{c, why} }}
	options = append([]pushlet.Option{pushlet.WithLogger(wsSilence), pushlet.WithHooks(hooks)}, options...)
	s.Pushlet = pushlet.New(options...)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/ws", s.HandleWebSocket)
	mux.HandleFunc("/events", s.HandleSSE)
	var handler http.Handler = mux
	if wrap != nil {
		handler = wrap(mux)
	}
	srv := &http.Server{Handler: handler}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }() // until Close
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.patience)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v; %v", err, s.Stats())
		}
		srv.Close()
		<-served
	})
	return s
}

// end waits for the next connection to end.
func (s *wsServer) end() wsEnd {
	s.t.Helper()
	select {
	case end := <-s.ended:
		return end
	case <-time.After(s.patience):
		s.t.Fatalf("no connection has ended; %v", s.Stats())
		return wsEnd{}
	}
}

// until waits until the claim about the statistics holds.
func (s *wsServer) until(what string, claim func(pushlet.Stats) bool) {
	s.t.Helper()
	wsUntil(s.t, what, func() bool { return claim(s.Stats()) })
}

// wsUntil looks again and again whether the claim holds.
func wsUntil(t testing.TB, what string, claim func() bool) {
	t.Helper()
	deadline := time.Now().Add(wsPatience)
	for !claim() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(2 * time.Millisecond) // between two looks; what it waits for is the claim
	}
}

// publish publishes data as event "message".
func (s *wsServer) publish(topic, data string) {
	s.t.Helper()
	if err := s.Publish(topic, "", data); err != nil {
		s.t.Fatalf("Publish(%q): %v", topic, err)
	}
}

// beatEvery sets the heartbeat interval.
func (s *wsServer) beatEvery(interval time.Duration) {
	s.t.Helper()
	if err := s.SetHeartbeatInterval(interval); err != nil {
		s.t.Fatal(err)
	}
}

// broadcast publishes to all.
func (s *wsServer) broadcast(event, data string) {
	s.t.Helper()
	if err := s.PublishToAll(event, data); err != nil {
		s.t.Fatalf("PublishToAll: %v", err)
	}
}

// wsSilence is a logger for tests that provoke errors.
func wsSilence() pushlet.Logger { return wsSilent{} }

type wsSilent struct{}

func (wsSilent) Println(...any)                         {}
func (l wsSilent) WithField(string, any) pushlet.Logger { return l }

// A wsPipeListener accepts net.Pipe connections.
type wsPipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *wsPipeListener) dial() (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *wsPipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *wsPipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *wsPipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// A wsMessage is one frame of the protocol.
type wsMessage struct {
	Topic     string    `json:"topic"`
	Event     string    `json:"event"`
	Data      string    `json:"data"`
	Timestamp time.Time `json:"timestamp"`
	ID        string    `json:"id"`
}

// wsDocumented is the message struct of the Go client in the original documents. The
// simplest clients have no more than this, so every frame must fit into it.
type wsDocumented struct {
	Event     string    `json:"event"`
	Data      string    `json:"data"`
	Timestamp time.Time `json:"timestamp"`
}

// wsDecode decodes a frame and checks what holds for every frame.
func wsDecode(t testing.TB, b []byte) wsMessage {
	t.Helper()
	var keys map[string]any
	if err := json.Unmarshal(b, &keys); err != nil {
		t.Fatalf("not a JSON object: %v\n%.500q", err, b)
	}
	for _, key := range []string{"event", "data", "timestamp"} {
		if _, ok := keys[key].(string); !ok {
			t.Fatalf("%s is not a string in %.500s", key, b)
		}
	}
	var doc wsDocumented
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatalf("the documents' client cannot decode %.500s: %v", b, err)
	}
	if doc.Event == "" || doc.Timestamp.IsZero() || time.Until(doc.Timestamp) > time.Minute {
		t.Fatalf("event %q, timestamp %v in %.500s", doc.Event, doc.Timestamp, b)
	}
	var m wsMessage
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// A wsClient is gorilla's client.
type wsClient struct {
	*websocket.Conn
	s        *wsServer
	response *http.Response
	kind     int // of the frames it expects
}

// connect connects gorilla's client. The headers come in pairs.
func (s *wsServer) connect(query string, header ...string) *wsClient {
	s.t.Helper()
	c, err := s.tryConnect(query, header...)
	if err != nil {
		s.t.Fatalf("connect: %v, response %v", err, c.response)
	}
	return c
}

// tryConnect is connect for handshakes that may fail.
func (s *wsServer) tryConnect(query string, header ...string) (*wsClient, error) {
	dialer := websocket.Dialer{NetDial: func(string, string) (net.Conn, error) { return s.dial() }}
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Add(header[i], header[i+1])
	}
	if h.Get(wsExtensions) != "" {
		h.Del(wsExtensions)
		dialer.EnableCompression = true
	}
	conn, response, err := dialer.Dial("ws://pushlet.test/ws"+query, h)
	c := &wsClient{conn, s, response, websocket.BinaryMessage}
	if err != nil {
		return c, err
	}
	if conn.Subprotocol() == "pushlet.text" {
		c.kind = websocket.TextMessage
	}
	s.t.Cleanup(func() { conn.Close() })
	return c, nil
}

const (
	wsExtensions = "Sec-WebSocket-Extensions"
	wsSubproto   = "Sec-WebSocket-Protocol"
)

// send sends a command in a text frame.
func (c *wsClient) send(format string, args ...any) {
	c.s.t.Helper()
	if err := c.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, format, args...)); err != nil {
		c.s.t.Fatalf("send: %v", err)
	}
}

// next returns the next frame.
func (c *wsClient) next() wsMessage {
	c.s.t.Helper()
	m, err := c.tryNext()
	if err != nil {
		c.s.t.Fatalf("next: %v", err)
	}
	return m
}

func (c *wsClient) tryNext() (wsMessage, error) {
	c.s.t.Helper()
	c.SetReadDeadline(time.Now().Add(c.s.patience))
	kind, b, err := c.ReadMessage()
	if err != nil {
		return wsMessage{}, err
	}
	if kind != c.kind {
		c.s.t.Fatalf("frame of kind %d, want %d", kind, c.kind)
	}
	return wsDecode(c.s.t, b), nil
}

// expect reads a frame and compares what matters of it.
func (c *wsClient) expect(topic, event, data string) wsMessage {
	c.s.t.Helper()
	m := c.next()
	if m.Topic != topic || m.Event != event || m.Data != data {
		c.s.t.Fatalf("got %.300q\nwant topic %q event %q data %.300q", m, topic, event, data)
	}
	return m
}

// expectError reads a pushlet.error that says why.
func (c *wsClient) expectError(topic, why string) {
	c.s.t.Helper()
	if m := c.next(); m.Topic != topic || m.Event != "pushlet.error" || !strings.Contains(m.Data, why) {
		c.s.t.Fatalf("got %.300q\nwant pushlet.error for topic %q that says %q", m, topic, why)
	}
}

// expectEach reads as many frames as are wanted. Those of one topic must come in the order
// given, each written as "event data"; different topics do not wait for each other.
func (c *wsClient) expectEach(want map[string][]string) {
	c.s.t.Helper()
	n := 0
	for _, frames := range want {
		n += len(frames)
	}
	got := make(map[string][]string)
	for range n {
		m := c.next()
		got[m.Topic] = append(got[m.Topic], m.Event+" "+m.Data)
	}
	for topic := range want {
		if !slices.Equal(got[topic], want[topic]) {
			c.s.t.Fatalf("topic %q: got %q\nwant %q", topic, got[topic], want[topic])
		}
	}
}

// subscribe follows topics, waits for the answers, and returns the ID of the last.
func (c *wsClient) subscribe(topics ...string) (id string) {
	c.s.t.Helper()
	list, _ := json.Marshal(topics)
	c.send(`{"action":"subscribe","topics":%s}`, list)
	for _, topic := range topics {
		id = c.expect(topic, "pushlet.subscribed", "").ID
	}
	return id
}

// ping waits until the server has acted on all commands, whose answers come in their
// order. No other frame may come before its own.
func (c *wsClient) ping() {
	c.s.t.Helper()
	c.send(`{"action":"ping"}`)
	c.expect("", "pushlet.pong", "")
}

// closed reads up to the end of the connection and returns the close code, 1006 if there
// was none. Messages on the way are dropped.
func (c *wsClient) closed() int {
	c.s.t.Helper()
	for {
		if _, err := c.tryNext(); err != nil {
			return wsCloseCode(c.s.t, err)
		}
	}
}

func wsCloseCode(t testing.TB, err error) int {
	t.Helper()
	var bye *websocket.CloseError
	switch {
	case errors.As(err, &bye):
		return bye.Code
	case wsIsTimeout(err):
		t.Fatalf("the connection does not end: %v", err)
	}
	return websocket.CloseAbnormalClosure
}

func wsIsTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// Opcodes and bits of RFC 6455, section 5.2, and RFC 7692, section 6.
const (
	wsFin      = 0x80
	wsRSV1     = 0x40
	wsCont     = 0x0
	wsText     = 0x1
	wsBinary   = 0x2
	wsClose    = 0x8
	wsPing     = 0x9
	wsPong     = 0xa
	wsMask     = 0x80 // in the second byte
	wsControls = 0x8  // the opcodes of control frames have this bit
)

// A wsRaw is a client that writes what it likes and reads frames strictly.
type wsRaw struct {
	net.Conn
	s  *wsServer
	br *bufio.Reader
}

// raw connects a raw client. The headers come in pairs.
func (s *wsServer) raw(query string, header ...string) *wsRaw {
	s.t.Helper()
	r, answer := s.handshake(http.MethodGet, query, header...)
	if answer.status != http.StatusSwitchingProtocols {
		s.t.Fatalf("handshake: status %d: %s", answer.status, answer.body)
	}
	return r
}

// A wsAnswer is what a server says to an upgrade request.
type wsAnswer struct {
	status int
	header http.Header
	body   string // of a refusal
}

// handshake sends an upgrade request and reads the answer, whatever it is.
func (s *wsServer) handshake(method, query string, header ...string) (*wsRaw, wsAnswer) {
	s.t.Helper()
	conn, err := s.dial()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	r := &wsRaw{conn, s, bufio.NewReader(conn)}
	r.write([]byte(wsRequest(method, query, header...)))
	r.SetReadDeadline(time.Now().Add(r.s.patience))
	response, err := http.ReadResponse(r.br, nil)
	if err != nil {
		s.t.Fatalf("handshake: %v", err)
	}
	defer response.Body.Close()
	answer := wsAnswer{status: response.StatusCode, header: response.Header}
	if answer.status != http.StatusSwitchingProtocols {
		body, err := io.ReadAll(response.Body)
		if err != nil {
			s.t.Fatalf("handshake: %v", err)
		}
		answer.body = string(body)
	}
	return r, answer
}

// wsRequest is an upgrade request. A header that is given replaces the usual one; an
// empty value leaves it out.
func wsRequest(method, query string, header ...string) string {
	lines := []string{"Host", "pushlet.test", "Upgrade", "websocket", "Connection", "Upgrade",
		"Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}
	for i := 0; i < len(header); i += 2 {
		if at := slices.Index(lines, header[i]); at >= 0 {
			lines = slices.Delete(lines, at, at+2)
		}
		if header[i+1] != "" {
			lines = append(lines, header[i], header[i+1])
		}
	}
	b := fmt.Appendf(nil, "%s /ws%s HTTP/1.1\r\n", method, query)
	for i := 0; i < len(lines); i += 2 {
		b = fmt.Appendf(b, "%s: %s\r\n", lines[i], lines[i+1])
	}
	return string(b) + "\r\n"
}

// write writes bytes as they are. That it fails is for the reader to notice: a server may
// end the connection while a hostile client is still writing.
func (r *wsRaw) write(b []byte) {
	r.SetWriteDeadline(time.Now().Add(r.s.patience))
	r.Write(b)
}

// frame writes a masked frame; text writes a whole message.
func (r *wsRaw) frame(first byte, payload []byte) { r.write(wsMasked(first, payload)) }

func (r *wsRaw) text(format string, args ...any) {
	r.frame(wsFin|wsText, fmt.Appendf(nil, format, args...))
}

// wsMasked builds a masked frame.
func wsMasked(first byte, payload []byte) []byte {
	b := wsMaskedHeader(first, uint64(len(payload)))
	key := b[len(b)-4:]
	b = append(b, payload...)
	for i := range payload {
		b[len(b)-len(payload)+i] ^= key[i%4]
	}
	return b
}

// wsMaskedHeader builds the header of a masked frame that claims to have size bytes.
func wsMaskedHeader(first byte, size uint64) []byte {
	b := []byte{first}
	switch {
	case size < 126:
		b = append(b, wsMask|byte(size))
	case size < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, wsMask|126), uint16(size))
	default:
		b = binary.BigEndian.AppendUint64(append(b, wsMask|127), size)
	}
	key := make([]byte, 4)
	rand.Read(key)
	return append(b, key...)
}

// A wsWire is a frame as it came from the server.
type wsWire struct {
	first   byte
	payload []byte
	size    int // bytes on the wire
}

func (w wsWire) opcode() byte { return w.first & 0xf }

func (w wsWire) code() int {
	if len(w.payload) < 2 {
		return websocket.CloseNoStatusReceived
	}
	return int(binary.BigEndian.Uint16(w.payload))
}

// wsReadFrame reads a frame that a server may send. One that breaks RFC 6455, or that is
// a fragment, which Pushlet never sends, is a wsViolation.
func wsReadFrame(br *bufio.Reader) (w wsWire, err error) {
	var head [2]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		return w, err
	}
	w.first = head[0]
	size, extra, least := uint64(head[1]), 0, uint64(0)
	switch size {
	case 126:
		extra, least = 2, 126
	case 127:
		extra, least = 8, 1<<16
	}
	if extra > 0 {
		var long [8]byte
		if _, err := io.ReadFull(br, long[8-extra:]); err != nil {
			return w, err
		}
		size = binary.BigEndian.Uint64(long[:])
	}
	opcode := w.opcode()
	switch {
	case head[1]&wsMask != 0:
		return w, wsViolation(fmt.Sprintf("masked frame % x", head))
	case !slices.Contains([]byte{wsText, wsBinary, wsClose, wsPing, wsPong}, opcode):
		return w, wsViolation(fmt.Sprintf("opcode %#x", opcode))
	case w.first&wsFin == 0:
		return w, wsViolation("fragment")
	case w.first&0x30 != 0, opcode&wsControls != 0 && w.first&wsRSV1 != 0:
		return w, wsViolation(fmt.Sprintf("reserved bits in %#x", w.first))
	case size < least:
		return w, wsViolation("length not in its shortest form")
	case opcode&wsControls != 0 && size > 125:
		return w, wsViolation("long control frame")
	case size > 64<<20:
		return w, wsViolation(fmt.Sprintf("frame of %d bytes", size))
	}
	w.payload = make([]byte, size)
	w.size = 2 + extra + len(w.payload)
	_, err = io.ReadFull(br, w.payload)
	return w, err
}

// A wsViolation says how the server broke the protocol.
type wsViolation string

func (v wsViolation) Error() string { return "the server broke the protocol: " + string(v) }

// read answers pings and returns the next other frame.
func (r *wsRaw) read() wsWire {
	r.s.t.Helper()
	for {
		w, err := r.tryRead()
		if err != nil {
			r.s.t.Fatalf("read: %v", err)
		}
		if w.opcode() != wsPing {
			return w
		}
		r.frame(wsFin|wsPong, w.payload)
	}
}

// tryRead returns the next frame, whatever it is.
func (r *wsRaw) tryRead() (wsWire, error) {
	r.s.t.Helper()
	r.SetReadDeadline(time.Now().Add(r.s.patience))
	w, err := wsReadFrame(r.br)
	if v := wsViolation(""); errors.As(err, &v) {
		r.s.t.Fatal(err)
	}
	return w, err
}

// next returns the next message, decompressed if need be. It answers pings.
func (r *wsRaw) next() wsMessage {
	r.s.t.Helper()
	w := r.read()
	if w.opcode()&wsControls != 0 {
		r.s.t.Fatalf("frame with opcode %#x: %q", w.opcode(), w.payload)
	}
	return wsDecode(r.s.t, w.body(r.s.t))
}

// expect reads a frame and compares what matters of it.
func (r *wsRaw) expect(topic, event, data string) wsMessage {
	r.s.t.Helper()
	m := r.next()
	if m.Topic != topic || m.Event != event || m.Data != data {
		r.s.t.Fatalf("got %.300q\nwant topic %q event %q data %.300q", m, topic, event, data)
	}
	return m
}

// body is the payload of a data frame, decompressed if its RSV1 says so.
func (w wsWire) body(t testing.TB) []byte {
	t.Helper()
	if w.first&wsRSV1 == 0 {
		return w.payload
	}
	// RFC 7692, section 7.2.2; then an empty final block, so that the reader finds an end.
	tail := strings.NewReader("\x00\x00\xff\xff\x01\x00\x00\xff\xff")
	b, err := io.ReadAll(flate.NewReader(io.MultiReader(bytes.NewReader(w.payload), tail)))
	if err != nil {
		t.Fatalf("compressed frame cannot be read: %v", err)
	}
	return b
}

// wsDeflate compresses a message as RFC 7692, section 7.2.1, says.
func wsDeflate(b []byte) []byte {
	var buf bytes.Buffer
	w, err := flate.NewWriter(&buf, flate.BestCompression)
	if err != nil {
		panic(err)
	}
	w.Write(b)
	if err := w.Flush(); err != nil {
		panic(err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\x00\x00\xff\xff"))
}

// closed reads up to the end of the connection and returns the close code, 1006 if there
// was no close frame. It answers the close frame, but no pings; nothing may follow it.
func (r *wsRaw) closed() int {
	r.s.t.Helper()
	for {
		w, err := r.tryRead()
		switch {
		case wsIsTimeout(err):
			r.s.t.Fatalf("the connection does not end: %v", err)
		case err != nil:
			return websocket.CloseAbnormalClosure
		case w.opcode() == wsClose:
			r.frame(wsFin|wsClose, w.payload)
			r.hangUp()
			return w.code()
		}
	}
}

// hangUp closes the client's side after a close frame and checks that nothing follows.
func (r *wsRaw) hangUp() {
	r.s.t.Helper()
	if tcp, ok := r.Conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite() // the server may have closed
		if w, err := r.tryRead(); err == nil {
			r.s.t.Fatalf("frame %#x after the close frame", w.first)
		}
	}
	r.Close()
}

// A wsStream is an event stream, for tests of what both protocols have in common.
type wsStream struct {
	net.Conn
	s  *wsServer
	br *bufio.Reader
}

// stream opens an event stream and waits until it is connected.
func (s *wsServer) stream(path string) *wsStream {
	s.t.Helper()
	conn, err := s.dial()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: pushlet.test\r\nAccept: text/event-stream\r\n\r\n", path)
	e := &wsStream{conn, s, bufio.NewReader(conn)}
	e.until("event: pushlet.connected")
	return e
}

// until reads lines up to the one that is wanted.
func (e *wsStream) until(want string) {
	e.s.t.Helper()
	e.SetReadDeadline(time.Now().Add(e.s.patience))
	for {
		line, err := e.br.ReadString('\n')
		if err != nil {
			e.s.t.Fatalf("no line %q: %v", want, err)
		}
		if strings.TrimRight(line, "\r\n") == want {
			return
		}
	}
}

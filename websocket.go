package pushlet

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"
)

const (
	textProtocol  = "pushlet.text" // subprotocol: JSON in text frames
	minReadBuffer = 257            // gorilla makes a buffer of its own instead of a smaller one
)

func newUpgrader(cfg *config) *websocket.Upgrader {
	return &websocket.Upgrader{
		ReadBufferSize: 0, // it takes the reader that wsHijacker gives it
		// With a pool, a connection has no write buffer: gorilla writes only control
		// frames, and those without one.
		WriteBufferPool:   new(sync.Pool),
		Subprotocols:      []string{textProtocol},
		CheckOrigin:       func(*http.Request) bool { return true }, // HandleWebSocket has done it
		EnableCompression: cfg.compression,
	}
}

// HandleWebSocket serves a WebSocket (RFC 6455). Clients subscribe with JSON commands,
// see the package documentation, or at once with "?topic=a&topic=b", from a position
// with "&since=". It returns after the handshake; the connection goes on.
//
// Answers other than an upgrade: 400 for bad topics and a bad handshake, 401 from WithIdentity, 403 for a foreign origin and from
// WithAuthorize, 405 and 426 for what is no upgrade, 503 with Retry-After for too many
// clients, before Start and after Stop.
func (p *Pushlet) HandleWebSocket(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		p.refuse(w, http.StatusMethodNotAllowed, "method not allowed")
		return
	case !websocket.IsWebSocketUpgrade(r):
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		p.refuse(w, http.StatusUpgradeRequired, "pushlet: this is a WebSocket endpoint")
		return
	case !p.cfg.originAllowed(r):
		logAt(p.log.WithField("origin", r.Header.Get("Origin")), slog.LevelWarn, "websocket refused: origin not allowed")
		p.refuse(w, http.StatusForbidden, "pushlet: origin not allowed")
		return
	}
	wishes, _, err := wishesOf(r)
	if err == nil {
		err = p.checkWishes(wishes, userTopic, broadcastTopic)
	}
	if err != nil {
		p.refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	user, err := p.identify(r)
	if err != nil {
		p.refuse(w, http.StatusUnauthorized, err.Error())
		return
	}
	if wishes, err = withUser(wishes, user); err != nil {
		p.refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	wishes = broadcastsFirst(wishes)
	topics := make([]string, len(wishes))
	for i := range wishes {
		topics[i] = wishes[i].topic
	}
	if err := p.authorizeAll(r, topics); err != nil {
		p.refuse(w, http.StatusForbidden, err.Error())
		return
	}
	if err := p.admit(); err != nil {
		w.Header().Set("Retry-After", fmt.Sprint(1+int(spreadRetry(p.cfg.retry).Seconds())))
		p.refuse(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	r = withoutWindows(r)
	h := &wsHijacker{ResponseWriter: w, bufferSize: p.cfg.readBuffer}
	ws, err := p.upgrader.Upgrade(h, r, handshakeHeader(w.Header()))
	if err != nil { // it has answered
		p.counters.refused.Add(1)
		p.dismiss()
		return
	}
	info := Client{ID: newClientID(), Protocol: "websocket", Remote: r.RemoteAddr, User: user}
	t := newConnTransport(h.conn.Conn, p.cfg.writeTimeout, &p.heartbeat, false)
	c := newClient(info, h.conn.form(ws), t, p.env, time.Now())
	h.conn.client = c
	p.counters.webSocket.Add(1)
	p.greet(info)

	c.tell(h.conn.handshake)
	h.conn.handshake = nil
	rd := &wsReader{commander: commander{p: p, c: c}, ws: ws, conn: h.conn, buf: h.buf, transport: t}
	rd.prepare()
	first := make([]*subscribe, len(wishes))
	for i, w := range wishes {
		first[i] = rd.follow(w.topic, w.since)
	}
	c.again = p.reauthorizer(r, user)
	p.broker.send(&attach{client: c, first: first})
	if p.cfg.authorize != nil {
		// Its context ends with this handler, but it will be asked about later topics.
		rd.request = r.WithContext(context.WithoutCancel(r.Context()))
	}
	go rd.wait() // ends with the connection; conns waits for it
}

// handshakeHeader is what middleware has set, without what belongs to the upgrade.
func handshakeHeader(h http.Header) http.Header {
	h = maps.Clone(h)
	for _, name := range []string{"Connection", "Upgrade", "Content-Length", "Content-Type",
		"Content-Encoding", "Transfer-Encoding", "Sec-Websocket-Extensions", "Sec-Websocket-Accept"} {
		delete(h, name)
	}
	return h
}

// withoutWindows leaves out what a client offers of compression with a smaller window than
// ours (RFC 7692, section 7.1.2.1), to which gorilla would agree without keeping it.
func withoutWindows(r *http.Request) *http.Request {
	const header, window = "Sec-Websocket-Extensions", "server_max_window_bits"
	if len(r.Header[header]) == 0 {
		return r
	}
	offers := strings.Split(strings.Join(r.Header[header], ","), ",")
	kept := slices.DeleteFunc(slices.Clone(offers), func(s string) bool { return strings.Contains(s, window) })
	if len(kept) == len(offers) {
		return r
	}
	r = r.Clone(r.Context())
	r.Header.Set(header, strings.Join(kept, ","))
	return r
}

// wsHijacker hands gorilla the connection as a wsConn, with a reader that we know, so
// that we can tell whether there is something in it.
type wsHijacker struct {
	http.ResponseWriter
	bufferSize int
	conn       *wsConn
	buf        *bufio.Reader
}

func (h *wsHijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, brw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.conn = &wsConn{Conn: conn}
	if brw.Reader.Buffered() == 0 { // else gorilla refuses, as it should
		h.buf = bufio.NewReaderSize(h.conn, h.bufferSize)
		brw.Reader = h.buf
	}
	return h.conn, brw, nil
}

// A wsConn is the connection as gorilla sees it. What gorilla writes, its part of the
// handshake, and later a close frame when the peer breaks the protocol, goes through the
// client's queue: so the handshake leaves in one write with the first frames, and a close
// frame cannot end up within a data frame.
type wsConn struct {
	net.Conn
	client    *client // nil during the handshake
	handshake []byte  // our part of it, to be sent with the first frames
	ahead     []byte  // read by wsReader.wait, to come first
}

func (c *wsConn) Read(b []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(b, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

func (c *wsConn) Write(b []byte) (int, error) {
	if c.client == nil {
		c.handshake = append(c.handshake, b...)
		return len(b), nil
	}
	if c.client.finish(ReasonProtocol, b) == runnable {
		c.client.kick()
	}
	return len(b), nil
}

// SetWriteDeadline does nothing: deadlines are the flusher's.
func (c *wsConn) SetWriteDeadline(time.Time) error { return nil }

// form is what the handshake agreed on.
func (c *wsConn) form(ws *websocket.Conn) form {
	m := formBinary
	if ws.Subprotocol() == textProtocol {
		m = formText
	}
	if bytes.Contains(c.handshake, []byte("\r\nSec-WebSocket-Extensions: permessage-deflate")) {
		m += formBinaryDeflate - formBinary
	}
	return m
}

// A wsReader reads the commands of one client. It belongs to one goroutine at a time:
// while nothing comes that is wait, which needs next to no stack, so that an idle client
// costs little; a stack that has grown would stay so. What wait hears of is read by read.
type wsReader struct {
	commander
	ws        *websocket.Conn
	conn      *wsConn
	buf       *bufio.Reader // between conn and ws
	first     [16]byte      // wait reads into it
	transport *connTransport

	tokens float64   // for the command rate
	filled time.Time // when tokens was right
}

// errTooFast is returned from gorilla's ping handler through NextReader.
var errTooFast = errors.New("pushlet: too many commands")

func (r *wsReader) prepare() {
	r.ws.SetReadLimit(int64(r.p.cfg.maxCommandSize))
	r.ws.SetPongHandler(func(string) error { r.c.heard(false); return nil })
	r.ws.SetPingHandler(r.ping)
	r.ws.SetCloseHandler(func(int, string) error { return nil }) // fail does it
	r.tokens, r.filled = float64(r.p.cfg.commandBurst), time.Now()
}

// wait waits for the first bytes of something and leaves the rest to a new goroutine. Only
// the answer to our ping it takes itself, since that is all that most clients ever send.
func (r *wsReader) wait() {
	n, err := r.conn.Conn.Read(r.first[:])
	for err == nil && isPong(r.first[:n]) {
		r.c.heard(false)
		n, err = r.conn.Conn.Read(r.first[:])
	}
	r.conn.ahead = r.first[:n]
	if err != nil {
		r.read(err) // the end: the stack no longer matters
		return
	}
	go r.read(nil)
}

// isPong reports whether b is just a pong without payload, as a client sends it: masked.
func isPong(b []byte) bool {
	return len(b) == 6 && b[0] == wsFin|wsPong && b[1] == wsMasked
}

// read acts on what has come until all is read, or the connection has failed.
func (r *wsReader) read(err error) {
	for err == nil {
		if err = r.next(); err == nil && len(r.conn.ahead) == 0 && r.buf.Buffered() == 0 {
			go r.wait()
			return
		}
	}
	r.fail(err)
	swallow(r.conn.Conn, make([]byte, 64)) // until the peer, endWrite or abort ends it
	r.c.abort(ReasonClientClosed)
	r.p.counters.webSocket.Add(-1)
	r.p.leave(r.c)
}

// A wsError ends the connection with a close code.
type wsError struct {
	code int
	why  string
}

func (e *wsError) Error() string { return e.why }

// next waits for one message and acts on it.
func (r *wsReader) next() error {
	kind, body, err := r.ws.NextReader()
	if err != nil {
		return err
	}
	buf := commandPool.Get().(*bytes.Buffer)
	defer commandPool.Put(buf)
	buf.Reset()
	if err := r.readAll(buf, body); err != nil {
		return err
	}
	if kind == websocket.TextMessage && !utf8.Valid(buf.Bytes()) {
		return &wsError{websocket.CloseInvalidFramePayloadData, "text is not UTF-8"}
	}
	if !r.mayCommand() {
		return errTooFast
	}
	r.c.heard(true)
	r.command(buf.Bytes())
	return nil
}

var commandPool = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// readAll reads a message, up to the limit, which holds after decompression too.
func (r *wsReader) readAll(buf *bytes.Buffer, body io.Reader) error {
	limit := int64(r.p.cfg.maxCommandSize)
	n, err := buf.ReadFrom(io.LimitReader(body, limit+1))
	var corrupt flate.CorruptInputError
	switch {
	case n > limit:
		return websocket.ErrReadLimit
	case errors.As(err, &corrupt), errors.Is(err, io.ErrUnexpectedEOF):
		return &wsError{websocket.CloseInvalidFramePayloadData, "compressed data is corrupt"}
	}
	return err
}

// mayCommand takes one from the budget of the command rate.
func (r *wsReader) mayCommand() bool {
	now := time.Now()
	r.tokens += now.Sub(r.filled).Seconds() * r.p.cfg.commandRate
	r.tokens = min(r.tokens, float64(r.p.cfg.commandBurst))
	r.filled = now
	if r.tokens < 1 {
		return false
	}
	r.tokens--
	return true
}

func (r *wsReader) ping(data string) error {
	if !r.mayCommand() {
		return errTooFast
	}
	r.c.heard(false)
	pong := append(appendWSHeader(nil, wsFin|wsPong, len(data)), data...)
	r.p.broker.send(&reply{r.c, pong})
	return nil
}

// fail ends the connection after a read that did not yield a command: with a close frame
// where one is due, and then the peer has a moment to close.
func (r *wsReader) fail(err error) {
	code, why := 0, err.Error()
	reason := ReasonProtocol
	var bye *websocket.CloseError
	var bad *wsError
	switch {
	case errors.As(err, &bye) && bye.Code != websocket.CloseAbnormalClosure:
		code, reason, why = bye.Code, ReasonClientClosed, ""
		defer r.transport.peerEnded()
	case errors.As(err, &bad):
		code = bad.code
	case errors.Is(err, errTooFast):
		code = websocket.ClosePolicyViolation
	case errors.Is(err, websocket.ErrReadLimit):
		code, why = websocket.CloseMessageTooBig, "command too large"
	case r.c.isEnding(): // gorilla has sent a close frame, or the connection is at its end
	default:
		r.c.abort(ReasonClientClosed)
		return
	}
	if code != 0 {
		frame := wsCloseFrame(code, why)
		if code == websocket.CloseNoStatusReceived {
			frame = appendWSHeader(nil, wsFin|wsClose, 0)
		}
		if r.c.finish(reason, frame) == runnable {
			r.c.kick()
		}
	}
}

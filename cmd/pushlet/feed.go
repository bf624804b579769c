package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/usual2970/pushlet/consumer"
)

// A feed is a connection of bench that is open. The package consumer would do the same, but needs
// several goroutines and larger buffers for each; here there may be ten thousand.
type feed interface {
	next() (consumer.Message, error)
	// ready is the event after which messages of the topic come.
	ready() string
	// bye says that this is the end, as far as the protocol has words for it, or gives that up at the
	// deadline. It may be called while next waits.
	bye(deadline time.Time)
}

// A dialer opens feeds. It is immutable, and safe for concurrent use.
type dialer struct {
	target target
	tls    *tls.Config
	ws     *websocket.Dialer
}

func newDialer(t target) *dialer {
	return &dialer{
		target: t,
		tls:    &tls.Config{ServerName: t.url.Hostname(), MinVersion: tls.VersionTLS12},
		// A buffer for writing is needed for a moment only.
		ws: &websocket.Dialer{ReadBufferSize: smallBuffer, WriteBufferSize: smallBuffer, WriteBufferPool: &sync.Pool{}},
	}
}

const smallBuffer = 1 << 10

// open asks for a topic, from after the message with that ID if there is one. It tells own of the
// connection as soon as there is one; who closes it ends open.
func (d *dialer) open(ctx context.Context, topic, lastID string, own func(net.Conn)) (feed, error) {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			own(conn)
		}
		return conn, err
	}
	u := *d.target.url
	query := u.Query()
	query.Add("topic", topic)
	if d.target.webSocket() {
		if lastID != "" {
			query.Add("since", lastID)
		}
		u.RawQuery = query.Encode()
		return d.openWebSocket(ctx, u.String(), topic, dial)
	}
	u.RawQuery = query.Encode()
	return d.openSSE(ctx, &u, lastID, dial)
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// An sseFeed is an event stream over HTTP/1.1.
type sseFeed struct{ *consumer.Decoder }

func (f sseFeed) next() (consumer.Message, error) { return f.Next() }
func (f sseFeed) ready() string                   { return "pushlet.connected" }
func (f sseFeed) bye(time.Time)                   {}

func (d *dialer) openSSE(ctx context.Context, u *url.URL, lastID string, dial dialFunc) (feed, error) {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, err
	}
	if u.Scheme == "https" {
		secure := tls.Client(conn, d.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = secure
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = d.target.header.Clone()
	req.Header.Set("Accept", "text/event-stream")
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, smallBuffer), req)
	if err != nil {
		return nil, err
	}
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "text/event-stream") {
		return nil, responseError(resp)
	}
	return sseFeed{consumer.NewDecoder(resp.Body)}, nil
}

// responseError reads an answer that is not what we want.
func responseError(resp *http.Response) error {
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1024)) // as much as there is
	return &consumer.ResponseError{Status: resp.StatusCode, ContentType: resp.Header.Get("Content-Type"), Body: string(b)}
}

// A wsFeed is a WebSocket.
type wsFeed struct {
	conn  *websocket.Conn
	topic string
}

func (d *dialer) openWebSocket(ctx context.Context, url, topic string, dial dialFunc) (feed, error) {
	ws := *d.ws
	ws.NetDialContext = dial
	conn, resp, err := ws.DialContext(ctx, url, d.target.header)
	if errors.Is(err, websocket.ErrBadHandshake) && resp != nil {
		return nil, responseError(resp)
	}
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(consumer.DefaultMaxSize)
	return wsFeed{conn, topic}, nil
}

func (f wsFeed) ready() string { return "pushlet.subscribed" }

func (f wsFeed) bye(deadline time.Time) {
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = f.conn.WriteControl(websocket.CloseMessage, bye, deadline) // it may have ended
}

// wsBuffers are for one message each.
var wsBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func (f wsFeed) next() (m consumer.Message, err error) {
	_, r, err := f.conn.NextReader()
	if err != nil {
		return m, err
	}
	b := wsBuffers.Get().(*bytes.Buffer)
	defer wsBuffers.Put(b)
	b.Reset()
	if _, err := b.ReadFrom(r); err != nil {
		return m, err
	}
	var frame struct{ Topic, Event, Data, ID string }
	if json.Unmarshal(b.Bytes(), &frame) != nil || frame.Event == "" {
		return m, consumer.ErrNotPushlet
	}
	m = consumer.Message{Topic: frame.Topic, Event: frame.Event, Data: frame.Data, ID: frame.ID}
	switch {
	case m.Event == "pushlet.error":
		return m, &consumer.TopicError{Topic: m.Topic, Text: m.Data}
	case m.Topic != f.topic: // a broadcast, or the user's: its ID is no position in the topic
		m.ID = ""
		if m.Event == f.ready() {
			return f.next()
		}
	}
	return m, nil
}

// why is the reason of an error for people, without what differs from connection to connection.
func why(err error) string {
	switch {
	case errors.Is(err, errNoPorts):
		return "no local ports are left for this server (net.ipv4.ip_local_port_range)"
	case errors.Is(err, errNoFiles):
		return "too many open files (ulimit -n)"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the server has ended the connection"
	}
	text := plain(err)
	if i := strings.Index(text, "->"); i > 0 { // read tcp 127.0.0.1:40000->127.0.0.1:8080: …
		if start := strings.LastIndexByte(text[:i], ' '); start >= 0 {
			if end := strings.Index(text[i:], ": "); end > 0 {
				text = text[:start] + text[i+end:]
			}
		}
	}
	return text
}

// tooFew says that n connections cannot be.
func tooFew(n, limit int, what string) error {
	return fmt.Errorf("%s connections are too many for this process: %s %s", thousands(int64(n)), thousands(int64(limit)), what)
}

package consumer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// An Option changes a setting of [NewClient] and [Subscribe]. The last one of a kind counts,
// unless it says otherwise. What is wrong with one is the final error of the subscription.
type Option func(*config)

// A config is immutable once its Client is made, but for the hooks, which the Client guards.
type config struct {
	method      string
	body        []byte
	header      http.Header
	headerFunc  func(context.Context) (http.Header, error)
	client      *http.Client
	dialer      *websocket.Dialer
	compression bool

	topics []string
	since  map[string]string
	lastID string

	first, longest time.Duration // waits between attempts
	idle           time.Duration
	maxSize        int

	hooks hooks
	err   error // what is wrong with the options
}

func defaultConfig() config {
	return config{
		method:  http.MethodGet,
		header:  http.Header{},
		since:   map[string]string{},
		first:   2 * time.Second,
		longest: 30 * time.Second,
		idle:    3 * time.Minute,
		maxSize: DefaultMaxSize,
	}
}

// WithTopics adds topics to those that are in the URL as "topic=". Over SSE they are added to
// the URL, over WebSocket see also [Client.Subscribe].
func WithTopics(topics ...string) Option {
	return func(c *config) {
		for _, t := range topics {
			if t == "" {
				c.err = errors.New("consumer: WithTopics: an empty topic")
			}
		}
		c.topics = append(c.topics, topics...)
	}
}

// WithLastEventID resumes an event stream after the message with that [Message.ID], which the
// application has kept. By default a subscription begins with what is published from now on.
func WithLastEventID(id string) Option { return func(c *config) { c.lastID = id } }

// WithSince resumes a topic over WebSocket after the message with that [Message.ID], which the
// application has kept; one option for each topic. The topic is followed as with [WithTopics],
// unless it is "*", the broadcast log, or "@user".
func WithSince(topic, id string) Option {
	return func(c *config) {
		c.since[topic] = id
		if topic != allTopic && topic != userTopic {
			c.topics = append(c.topics, topic)
		}
	}
}

// WithHeader sets a header of every request, such as Authorization.
func WithHeader(name, value string) Option {
	return func(c *config) { c.header.Set(name, value) }
}

// WithHeaderFunc asks for headers before every attempt to connect, for a token that expires.
// They go on top of those of [WithHeader]. An error counts as a failed attempt. The function is
// called in the goroutine of the subscription.
func WithHeaderFunc(headers func(ctx context.Context) (http.Header, error)) Option {
	return func(c *config) { c.headerFunc = headers }
}

// WithMethod sets the method of the request for an event stream. The default is GET. A
// WebSocket is always asked for with GET.
func WithMethod(method string) Option { return func(c *config) { c.method = method } }

// WithBody sets the body of the request for an event stream, which is sent with every attempt;
// see also [WithMethod].
func WithBody(contentType string, body []byte) Option {
	return func(c *config) {
		c.body = bytes.Clone(body)
		c.header.Set("Content-Type", contentType)
	}
}

// WithHTTPClient sets who makes requests: transport, proxy, TLS, cookies, and what to do about
// redirects. The default is http.DefaultTransport without cookies. Its Timeout is not used,
// because a stream has no end. A WebSocket uses its Jar and, if its Transport is an
// *http.Transport or nil, how that dials, its proxy and its TLS settings.
func WithHTTPClient(client *http.Client) Option { return func(c *config) { c.client = client } }

// WithDialer sets who opens WebSockets, instead of what [WithHTTPClient] says.
func WithDialer(dialer *websocket.Dialer) Option { return func(c *config) { c.dialer = dialer } }

// WithCompression offers the server to compress messages of a WebSocket. An event stream is
// compressed if the server does so, without an option: the http.Transport asks for gzip.
func WithCompression() Option { return func(c *config) { c.compression = true } }

// WithReconnectInterval sets how long to wait before another attempt. After a connection that
// brought something it is about the first; each failed attempt doubles it, up to the longest.
// The wait is random, so that clients do not come together, but never less than first or more
// than longest. The default is 2 and 30 seconds. "retry:" of an event stream takes the
// place of first, and a Retry-After is kept, also where they are more than longest.
func WithReconnectInterval(first, longest time.Duration) Option {
	return func(c *config) {
		if first <= 0 || longest < first {
			c.err = fmt.Errorf("consumer: WithReconnectInterval: %v and %v", first, longest)
		}
		c.first, c.longest = first, longest
	}
}

// WithIdleTimeout sets after how long without a byte from the server, heartbeats included, a
// connection counts as dead. It should be twice the server's heartbeat. The default is 3 minutes;
// d <= 0 waits for ever.
func WithIdleTimeout(d time.Duration) Option { return func(c *config) { c.idle = d } }

// WithMaxSize limits a message to that many bytes, as it is on the wire. A larger one ends the
// subscription with [ErrTooLarge]. The default is [DefaultMaxSize], which n < 1 selects too.
func WithMaxSize(n int) Option {
	return func(c *config) {
		if n < 1 {
			n = DefaultMaxSize
		}
		c.maxSize = n
	}
}

// WithOnConnection is [Client.OnConnection], for [Subscribe].
func WithOnConnection(fn func()) Option {
	return func(c *config) { c.hooks.connection = append(c.hooks.connection, fn) }
}

// WithOnSubscribed is [Client.OnSubscribed], for [Subscribe].
func WithOnSubscribed(fn func(topic string)) Option {
	return func(c *config) { c.hooks.subscribed = append(c.hooks.subscribed, fn) }
}

// WithOnError is [Client.OnError], for [Subscribe].
func WithOnError(fn func(err error)) Option {
	return func(c *config) { c.hooks.failed = append(c.hooks.failed, fn) }
}

// httpClient is the client for streams.
func (c *config) httpClient() *http.Client {
	if c.client == nil {
		return &http.Client{}
	}
	client := *c.client
	client.Timeout = 0
	return &client
}

// headers are those of an attempt.
func (c *config) headers(ctx context.Context) (http.Header, error) {
	h := c.header.Clone()
	if c.headerFunc == nil {
		return h, nil
	}
	more, err := c.headerFunc(ctx)
	if err != nil {
		return nil, fmt.Errorf("consumer: WithHeaderFunc: %w", err)
	}
	for name, values := range more {
		h.Del(name)
		for _, v := range values {
			h.Add(name, v)
		}
	}
	return h, nil
}

// newRequest makes the request for a stream.
func (c *config) newRequest(ctx context.Context, url string) (*http.Request, error) {
	h, err := c.headers(ctx)
	if err != nil {
		return nil, err
	}
	var body io.Reader
	if c.body != nil {
		body = bytes.NewReader(c.body)
	}
	req, err := http.NewRequestWithContext(ctx, c.method, url, body)
	if err != nil {
		return nil, withoutURL(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Cache-Control", "no-cache") // as a browser does for an EventSource
	for name, values := range h {
		req.Header[name] = values
	}
	if host := h.Get("Host"); host != "" {
		req.Host = host
	}
	return req, nil
}

// webSocketDialer is the dialer for WebSockets, which the caller may change.
func (c *config) webSocketDialer() (*websocket.Dialer, error) {
	if c.dialer != nil {
		d := *c.dialer
		return &d, nil
	}
	d := &websocket.Dialer{HandshakeTimeout: 45 * time.Second, EnableCompression: c.compression}
	var rt http.RoundTripper
	if c.client != nil {
		rt = c.client.Transport
		d.Jar = c.client.Jar
	}
	if rt == nil {
		rt = http.DefaultTransport
	}
	t, ok := rt.(*http.Transport)
	if !ok {
		return nil, fmt.Errorf("consumer: a WebSocket cannot use a %T: see WithDialer", rt)
	}
	d.Proxy = t.Proxy
	d.NetDialContext = t.DialContext
	d.NetDialTLSContext = t.DialTLSContext
	if t.TLSClientConfig != nil {
		d.TLSClientConfig = t.TLSClientConfig.Clone()
		d.TLSClientConfig.NextProtos = nil // a WebSocket is HTTP/1.1
	}
	return d, nil
}

// sendable reports whether an ID can be sent as a header.
func sendable(id string) bool {
	return !strings.ContainsFunc(id, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7F })
}

package pushlet_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/usual2970/pushlet"
)

// ----- the parser that the tests rely on

func TestEventParser(t *testing.T) {
	tests := []struct {
		name, stream string
		want         []event
	}{
		// The first four are the examples of the standard.
		{"stock", "data: YHOO\ndata: +2\ndata: 10\n\n", []event{{name: "message", data: "YHOO\n+2\n10"}}},
		{
			"ids", ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
			[]event{{"message", "first event", "1"}, {"message", "second event", ""}, {"message", " third event", ""}},
		},
		{"empty data", "data\n\ndata\ndata\n\ndata:", []event{{name: "message"}, {name: "message", data: "\n"}}},
		{"one space", "data:test\n\ndata: test\n\n", []event{{name: "message", data: "test"}, {name: "message", data: "test"}}},

		{"line ends", "data: a\rdata: b\r\ndata: c\n\r\n\rdata: d\r\r", []event{{name: "message", data: "a\nb\nc"}, {name: "message", data: "d"}}},
		{"BOM", "\uFEFFdata: a\n\ndata: \uFEFFb\n\n\uFEFFdata: c\n\n", []event{{name: "message", data: "a"}, {name: "message", data: "\uFEFFb"}}},
		{"event", "event: x\ndata: a\n\nevent: y\n\ndata: b\n\n", []event{{name: "x", data: "a"}, {name: "message", data: "b"}}},
		{"id stays", "id: 1\ndata: a\n\ndata: b\n\n", []event{{"message", "a", "1"}, {"message", "b", "1"}}},
		{"id with NUL", "id: 1\nid: 2\x00\ndata: a\n\n", []event{{"message", "a", "1"}}},
		{"id without data", "id: 7\n\ndata: a\n\n", []event{{"message", "a", "7"}}},
		{"no end", "data: a\n\ndata: b\n", []event{{name: "message", data: "a"}}},
		{"unknown fields", "foo: 1\n Data: 2\ndata : 3\ndata: a\n\n", []event{{name: "message", data: "a"}}},
		{"invalid UTF-8", "data: \xff\xc3(\n\n", []event{{name: "message", data: "\uFFFD\uFFFD("}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var whole eventParser
			if got := whole.feed([]byte(test.stream)); !slices.Equal(got, test.want) {
				t.Errorf("events %v, want %v", got, test.want)
			}
			var bytewise eventParser
			var got []event
			for i := range len(test.stream) {
				got = append(got, bytewise.feed([]byte{test.stream[i]})...)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("byte by byte: events %v, want %v", got, test.want)
			}
		})
	}

	var p eventParser
	for value, want := range map[string]time.Duration{"3000": 3 * time.Second, "12x": 3 * time.Second, "": 3 * time.Second, "-1": 3 * time.Second, "5": 5 * time.Millisecond} {
		p.retry = 3 * time.Second
		p.feed([]byte("retry: " + value + "\n"))
		if p.retry != want {
			t.Errorf("after %q retry is %v, want %v", value, p.retry, want)
		}
	}
	p = eventParser{}
	p.feed([]byte("id: 5\ndata: not dispatched"))
	if p.lastID != "" {
		t.Errorf("last event ID %q before the event is complete, want none", p.lastID)
	}
}

// ----- what is on the wire

// golden compares bytes with a file in testdata/wire, which the tests of other languages
// may read too. With PUSHLET_UPDATE=1 it writes the file.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", "wire", name)
	if os.Getenv("PUSHLET_UPDATE") == "1" {
		check(t, os.MkdirAll(filepath.Dir(path), 0o755))
		check(t, os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%q\nwant\n%q", path, got, want)
	}
}

// What differs from run to run in a stream, and what the golden files have in its place.
type replacement struct{ pattern, stable string }

var volatile = []replacement{
	{`(?m)^Date: [^\r\n]+ GMT\r$`, "Date: DATE\r"},
	{`(?m)^id: [0-9A-Za-z_-]+$`, "id: CURSOR"},
	{`"client":"[0-9A-Z]{26}"`, `"client":"CLIENT"`},
	{`retry: [0-9]+\n\n$`, "retry: SPREAD\n\n"},
}

// TestSSEWire has every byte of a response, head and all.
func TestSSEWire(t *testing.T) {
	s := newSite(t)
	conn := s.dial(t)
	request(t, conn, "topic=news&topic=users/123/notifications", "HTTP/1.1")
	eventually(t, "the client is there", func() bool { return s.p.Stats().Topics == 2 })
	check(t, s.p.Publish("news", "", "Hello, World!"))
	check(t, s.p.Publish("elsewhere", "message", "not for this client"))
	check(t, s.p.Publish("users/123/notifications", "new-message", "你有一条新消息"))
	check(t, s.p.Publish("news", "lines", "one\ntwo\n"))
	check(t, s.p.PublishToAll("message", "for all"))
	golden(t, "sse_response.txt", s.lastBytes(t, conn, volatile))
}

// lastBytes stops the Pushlet and returns all that a connection has got, without what differs
// from run to run.
func (s *site) lastBytes(t *testing.T, conn net.Conn, volatile []replacement) []byte {
	t.Helper()
	join := s.stop(t)
	check(t, conn.SetReadDeadline(time.Now().Add(patience)))
	got, err := io.ReadAll(conn)
	check(t, err)
	check(t, conn.Close())
	join()
	for _, v := range volatile {
		got = regexp.MustCompile(v.pattern).ReplaceAll(got, []byte(v.stable))
	}
	return got
}

// A wireCase is a line of testdata/wire/sse_messages.jsonl: what is published, the bytes
// after its "id:" line, and what arrives.
type wireCase struct {
	Name     string `json:"name"`
	Event    string `json:"event"`
	Data     string `json:"data"`
	Frame    string `json:"frame"`
	Received struct {
		Event string `json:"event"`
		Data  string `json:"data"`
	} `json:"received"`
}

func TestSSEMessages(t *testing.T) {
	s := newSite(t)
	conn := s.dial(t)
	request(t, conn, "", "HTTP/1.1")
	var raw bytes.Buffer // the bytes of the stream since the last event
	st := receive(t, conn)
	st.body = io.TeeReader(st.body, &raw)
	st.expectHello()

	var table []wireCase
	for _, test := range []struct{ name, event, data, wantEvent, want string }{
		{"plain", "message", "Hello, World!", "message", "Hello, World!"},
		{"no event name", "", "x", "message", "x"},
		{"event names", "custom-event", "x", "custom-event", "x"},
		{"event name that looks like a field", "data: x", "y", "data: x", "y"},
		{"event name with spaces", " login ", "x", " login ", "x"},
		{"event name in Chinese", "登录", "x", "登录", "x"},
		{"event name that is not UTF-8", "a\xff", "x", "a\uFFFD", "x"},
		{"LF", "message", "a\nb", "message", "a\nb"},
		{"CR", "message", "a\rb", "message", "a\nb"},
		{"CRLF", "message", "a\r\nb", "message", "a\nb"},
		{"all line ends", "message", "\n\r\r\n\n\r\n\r", "message", "\n\n\n\n\n\n"},
		{"trailing newlines", "message", "a\n\n\n", "message", "a\n\n\n"},
		{"leading newline", "message", "\na", "message", "\na"},
		{"only a newline", "message", "\n", "message", "\n"},
		{"LF CR", "message", "a\n\rb", "message", "a\n\nb"},
		{"NUL", "message", "a\x00b", "message", "a\x00b"},
		{"leading space", "message", " a\n  b", "message", " a\n  b"},
		{"trailing space", "message", "a \n ", "message", "a \n "},
		{"leading colon", "message", ":a\n:b", "message", ":a\n:b"},
		{"empty", "message", "", "message", ""},
		{"BOM", "message", "\uFEFFa\n\uFEFF", "message", "\uFEFFa\n\uFEFF"},
		{"emoji", "message", "👩‍👩‍👧‍👦 🎉", "message", "👩‍👩‍👧‍👦 🎉"},
		{"forged fields", "message", "x\n\nevent: admin\nid: 1\nretry: 1\n\n", "message", "x\n\nevent: admin\nid: 1\nretry: 1\n\n"},
		{"other line ends", "message", "a\u2028b\u0085c\vd\fe", "message", "a\u2028b\u0085c\vd\fe"},
		{"JSON", "message", `{"a":"\n"}`, "message", `{"a":"\n"}`},
		{"invalid UTF-8", "message", "a\xffb\xc3(", "message", "a\uFFFDb\uFFFD("},
		{"CR in invalid UTF-8", "message", "\xe4\r\n\xbd", "message", "\uFFFD\n\uFFFD"},
	} {
		raw.Reset()
		check(t, s.p.Publish("default", test.event, test.data))
		st.expect(test.wantEvent, test.want)

		c := wireCase{Name: test.name, Event: test.event, Data: test.data}
		id, frame, _ := strings.Cut(raw.String(), "\n")
		if !strings.HasPrefix(id, "id: ") {
			t.Errorf("%s: the frame begins with %q, want an id", test.name, id)
		}
		c.Frame, c.Received.Event, c.Received.Data = frame, test.wantEvent, test.want
		if utf8.ValidString(test.event + test.data) { // JSON can hold nothing else
			table = append(table, c)
		}
	}
	var file bytes.Buffer
	enc := json.NewEncoder(&file)
	enc.SetEscapeHTML(false)
	for _, c := range table {
		check(t, enc.Encode(c))
	}
	golden(t, "sse_messages.jsonl", file.Bytes())

	large := strings.Repeat("0123456789abcde\n", 1<<16)
	check(t, s.p.Publish("default", "message", large))
	st.expect("message", large)
	long := strings.Repeat("x", 1<<20)
	check(t, s.p.Publish("default", "message", long))
	st.expect("message", long)
}

func TestSSETopics(t *testing.T) {
	s := newSite(t)
	for _, test := range []struct {
		query string
		want  []string
	}{
		{"", []string{"default"}},
		{"other=x", []string{"default"}},
		{"topic=", []string{"default"}},
		{"topic=/", []string{"default"}},
		{"topic=/&topic=", []string{"default"}},
		{"topic=my-topic", []string{"my-topic"}},
		{"topic=/&topic=my-topic", []string{"my-topic"}},
		{"topic=a&topic=b", []string{"a", "b"}},
		{"topic=a&topic=b&topic=a", []string{"a", "b"}},
		{"topic=users/123/notifications", []string{"users/123/notifications"}},
		{"topic=%E6%96%B0%E9%97%BB&topic=a+b%26c", []string{"新闻", "a b&c"}},
		{"topic=//", []string{"//"}},
	} {
		st, h, _ := s.connect(t, test.query, "")
		if !slices.Equal(h.Topics, test.want) || h.Resumed || h.Client == "" {
			t.Errorf("?%s: connected %+v, want topics %q, not resumed, an ID", test.query, h, test.want)
		}
		s.publish(t, "some other", "not for this client")
		for _, topic := range test.want {
			s.publish(t, topic, "for "+topic)
			st.expectMessages("for " + topic)
		}
		check(t, s.p.PublishToAll("message", "for all"))
		st.expectMessages("for all")
		st.close()
	}
}

func TestSSEClientIDs(t *testing.T) {
	s := newSite(t)
	seen := make(map[string]bool)
	for range 20 {
		st, h, _ := s.connect(t, "", "")
		if len(h.Client) < 22 || seen[h.Client] { // 128 bits in base64 are 22 characters
			t.Errorf("client ID %q is short or not unique", h.Client)
		}
		seen[h.Client] = true
		st.close()
	}
}

func TestPublishRefuses(t *testing.T) {
	p := newPushlet(t, pushlet.WithMaxMessageSize(100))
	check(t, p.Start())
	for _, test := range []struct {
		topic, event, data string
		want               error
	}{
		{"", "message", "x", pushlet.ErrInvalidTopic},
		{"a\nb", "message", "x", pushlet.ErrInvalidTopic},
		{"a\rb", "message", "x", pushlet.ErrInvalidTopic},
		{"a\x00b", "message", "x", pushlet.ErrInvalidTopic},
		{"a\tb", "message", "x", pushlet.ErrInvalidTopic},
		{"a\x7fb", "message", "x", pushlet.ErrInvalidTopic},
		{"a\u0085b", "message", "x", pushlet.ErrInvalidTopic},
		{"a\u009f", "message", "x", pushlet.ErrInvalidTopic},
		{"a\xc2", "message", "x", pushlet.ErrInvalidTopic},
		{"a\xffb", "message", "x", pushlet.ErrInvalidTopic},
		{strings.Repeat("x", 256), "message", "x", pushlet.ErrInvalidTopic},
		{strings.Repeat("é", 128), "message", "x", pushlet.ErrInvalidTopic},
		{"*", "message", "x", pushlet.ErrReserved},
		{"a", "a\nb", "x", pushlet.ErrInvalidEvent},
		{"a", "a\rb", "x", pushlet.ErrInvalidEvent},
		{"a", "a\x00b", "x", pushlet.ErrInvalidEvent},
		{"a", "\n", "x", pushlet.ErrInvalidEvent},
		{"a", strings.Repeat("x", 256), "x", pushlet.ErrInvalidEvent},
		{"a", "pushlet.gap", "x", pushlet.ErrReserved},
		{"a", "pushlet.", "x", pushlet.ErrReserved},
		{"a", "message", strings.Repeat("x", 101), pushlet.ErrTooLarge},

		{"a", "message", strings.Repeat("x", 100), nil},
		{strings.Repeat("x", 255), strings.Repeat("x", 255), "", nil},
		{"a\u00a0b", "pushlet", "", nil},
		{"**", "Pushlet.gap", "\x00\r\n", nil},
		{" ", " ", " ", nil},
	} {
		if got := p.Publish(test.topic, test.event, test.data); !errors.Is(got, test.want) {
			t.Errorf("Publish(%.20q, %.20q, %.20q) = %v, want %v", test.topic, test.event, test.data, got, test.want)
		}
	}
	for _, test := range []struct {
		event, data string
		want        error
	}{
		{"a\nb", "x", pushlet.ErrInvalidEvent},
		{"pushlet.gap", "x", pushlet.ErrReserved},
		{"message", strings.Repeat("x", 101), pushlet.ErrTooLarge},
		{"", "x", nil},
	} {
		if got := p.PublishToAll(test.event, test.data); !errors.Is(got, test.want) {
			t.Errorf("PublishToAll(%q, %.20q) = %v, want %v", test.event, test.data, got, test.want)
		}
	}
	if got, want := p.Stats().Published, uint64(6); got != want {
		t.Errorf("%d published, want %d: what is refused does not count", got, want)
	}
}

// TestPublishKeepsNothing: a message is a copy, also where its strings are made of
// memory that is used again.
func TestPublishKeepsNothing(t *testing.T) {
	s := newSite(t)
	st, _, e := s.connect(t, "topic=a", "")
	buf := []byte("first message")
	check(t, s.p.Publish("a", "message", string(buf)))
	copy(buf, "XXXXXXXXXXXXX")
	st.expectMessages("first message")
	again, _, _ := s.connect(t, "topic=a", e.id)
	again.expectMessages("first message")
}

func TestSSERetry(t *testing.T) {
	s := newSite(t, withOptions(pushlet.WithRetry(1500*time.Millisecond)))
	st, _, _ := s.connect(t, "", "")
	if got, want := st.parser.retry, 1500*time.Millisecond; got != want {
		t.Errorf("retry = %v, want %v", got, want)
	}
	join := s.stop(t)
	st.expectEnd()
	join()
	if got := st.parser.retry; got < 1500*time.Millisecond || got > 4500*time.Millisecond {
		t.Errorf("retry at the end = %v, want one to three times 1.5s", got)
	}
}

// ----- transports

// flushOnly wraps a ResponseWriter as many a middleware does: it can flush, and hides
// all else.
type flushOnly struct{ http.ResponseWriter }

func (w flushOnly) Flush() { w.ResponseWriter.(http.Flusher).Flush() }

// unwrappable can be looked through.
type unwrappable struct{ http.ResponseWriter }

func (w unwrappable) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// opaque hides even that the writer below can flush.
type opaque struct{ http.ResponseWriter }

// gzipWriter compresses what is written.
type gzipWriter struct {
	http.ResponseWriter
	gz *gzip.Writer
}

func (w gzipWriter) Write(b []byte) (int, error) { return w.gz.Write(b) }

func (w gzipWriter) FlushError() error {
	if err := w.gz.Flush(); err != nil {
		return err
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w gzipWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// wrapWith makes middleware of a function that wraps the ResponseWriter.
func wrapWith(wrap func(http.ResponseWriter) http.ResponseWriter) siteOption {
	return withMiddleware(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(wrap(w), r) })
	})
}

func withGzip() siteOption {
	return withMiddleware(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			gz := gzip.NewWriter(w)
			defer gz.Close()
			next.ServeHTTP(gzipWriter{w, gz}, r)
		})
	})
}

// headerFirst decides in WriteHeader what it makes of the body, as chi's Compress does.
type headerFirst struct {
	http.ResponseWriter
	t     testing.TB
	wrote bool
}

func (w *headerFirst) WriteHeader(status int) {
	w.wrote = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *headerFirst) FlushError() error {
	if !w.wrote {
		w.t.Error("flushed before WriteHeader")
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// TestSSEWriteHeader: whoever wraps the ResponseWriter sees the header before it is sent.
func TestSSEWriteHeader(t *testing.T) {
	s := newSite(t, wrapWith(func(w http.ResponseWriter) http.ResponseWriter {
		return &headerFirst{ResponseWriter: w, t: t}
	}))
	st, _, _ := s.connect(t, "", "")
	check(t, s.p.Publish("default", "", "hello"))
	st.expectMessages("hello")
}

// gunzip reads a compressed stream; the gzip header is read with the first bytes.
type gunzip struct {
	from io.Reader
	gz   *gzip.Reader
}

func (g *gunzip) Read(b []byte) (n int, err error) {
	if g.gz == nil {
		if g.gz, err = gzip.NewReader(g.from); err != nil {
			return 0, err
		}
	}
	return g.gz.Read(b)
}

// A transport is one of the ways in which a stream gets to its client.
type transport struct {
	name     string
	options  []siteOption
	hijacked bool
	gzip     bool
	proto    int
}

// The first four are what differs most; the last two differ only in what is written.
var transports = []transport{
	{name: "HTTP1", hijacked: true, proto: 1},
	{name: "HTTP1 TLS", options: []siteOption{withTLS()}, hijacked: true, proto: 1},
	{name: "HTTP1 not hijacked", options: []siteOption{withOptions(pushlet.WithHijack(false))}, proto: 1},
	{name: "HTTP2", options: []siteOption{withHTTP2()}, proto: 2},
	{
		name:    "wrapper with Unwrap",
		options: []siteOption{wrapWith(func(w http.ResponseWriter) http.ResponseWriter { return unwrappable{w} })},
		proto:   1, hijacked: true,
	},
	{
		name:    "wrapper without Unwrap",
		options: []siteOption{wrapWith(func(w http.ResponseWriter) http.ResponseWriter { return flushOnly{w} })},
		proto:   1,
	},
	{
		name:    "HTTP2 wrapper with Unwrap",
		options: []siteOption{withHTTP2(), wrapWith(func(w http.ResponseWriter) http.ResponseWriter { return unwrappable{w} })},
		proto:   2,
	},
	{
		name:    "HTTP2 wrapper without Unwrap",
		options: []siteOption{withHTTP2(), wrapWith(func(w http.ResponseWriter) http.ResponseWriter { return flushOnly{w} })},
		proto:   2,
	},
	{name: "gzip", options: []siteOption{withGzip()}, gzip: true, proto: 1},
	{name: "HTTP2 gzip", options: []siteOption{withHTTP2(), withGzip()}, gzip: true, proto: 2},
}

func (tr *transport) site(t testing.TB, options ...siteOption) *site {
	t.Helper()
	return newSite(t, slices.Concat(options, tr.options)...)
}

func (tr *transport) connect(t testing.TB, s *site, query, cursor string) (*stream, hello, event) {
	t.Helper()
	var headers []string
	if cursor != "" {
		headers = []string{"Last-Event-ID", cursor}
	}
	st := s.follow(t, query, headers...)
	if tr.gzip {
		st.body = &gunzip{from: st.body}
	}
	h, e := st.expectHello()
	return st, h, e
}

func TestSSETransports(t *testing.T) {
	middleware := withMiddleware(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("Set-Cookie", "session=1; Path=/")
			w.Header().Add("Set-Cookie", "theme=dark")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.Header().Set("Access-Control-Allow-Origin", "https://example.com")
			w.Header().Set("Content-Type", "application/json") // is replaced
			w.Header().Set("Content-Length", "5")              // is removed
			next.ServeHTTP(w, r)
		})
	})
	together(t, transports, func(t *testing.T, tr transport) {
		s := tr.site(t, middleware)
		st, _, e := tr.connect(t, s, "topic=a", "")
		for name, want := range map[string][]string{
			"Content-Type":                {"text/event-stream"},
			"Cache-Control":               {"no-cache, no-transform"},
			"X-Accel-Buffering":           {"no"},
			"Set-Cookie":                  {"session=1; Path=/", "theme=dark"},
			"X-Content-Type-Options":      {"nosniff"},
			"Access-Control-Allow-Origin": {"https://example.com"},
			"Content-Length":              nil,
		} {
			if got := st.resp.Header.Values(name); !slices.Equal(got, want) {
				t.Errorf("header %s: %q, want %q", name, got, want)
			}
		}
		if st.resp.Header.Get("Date") == "" {
			t.Error("no Date header")
		}
		if got := st.resp.ProtoMajor; got != tr.proto {
			t.Errorf("HTTP/%d, want HTTP/%d", got, tr.proto)
		}
		// On HTTP/1 only net/http itself sends chunks.
		chunked := slices.Contains(st.resp.TransferEncoding, "chunked")
		if tr.proto == 1 && chunked == tr.hijacked {
			t.Errorf("chunked: %t, hijacked: %t", chunked, tr.hijacked)
		}

		long := strings.Repeat("x", 1<<20)
		s.publish(t, "a", "one", long)
		st.expectMessages("one", long)
		check(t, s.p.PublishToAll("message", "two"))
		e = st.expectMessages("two")
		eventually(t, "all is counted", func() bool { return s.p.Stats().Delivered == 3 })
		st.close()
		s.clientsGone(t)

		s.publish(t, "a", "three", "four")
		st, h, _ := tr.connect(t, s, "topic=a", e.id)
		if !h.Resumed {
			t.Errorf("connected %+v, want resumed", h)
		}
		st.expectMessages("three", "four")
		s.publish(t, "a", "five")
		join := s.stop(t)
		st.expectMessages("five")
		st.expectEnd()
		join()
		if got := s.p.Stats(); got.Clients != 0 || got.Connected != 2 || got.Delivered != 6 {
			t.Errorf("after Stop: %v, want 2 connected, none left, 6 delivered", got)
		}
	})
}

// TestSSEKeepAlive: a stream that was not hijacked and has ended well leaves its
// connection to the next request.
func TestSSEKeepAlive(t *testing.T) {
	s := newSite(t, withOptions(pushlet.WithHijack(false), pushlet.WithMaxConnectionAge(time.Millisecond)))
	check(t, s.p.SetHeartbeatInterval(10*time.Millisecond))
	conn := s.dial(t)
	for range 3 {
		request(t, conn, "topic=a", "HTTP/1.1")
		st := receive(t, conn)
		st.close = func() {}
		st.expectHello()
		st.expectEnd()
	}
}

// TestSSEHeadIsClean: what middleware puts into a header cannot break the head that the
// library writes itself.
func TestSSEHeadIsClean(t *testing.T) {
	s := newSite(t, withMiddleware(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Value", "a\r\nX-Injected: 1\r\n\r\ndata: x")
			w.Header()["X Name\r\nX-Injected: 1\r\n"] = []string{"b"}
			w.Header().Set("Transfer-Encoding", "chunked")
			w.Header().Set("Trailer", "X-Late")
			w.Header().Set("Connection", "keep-alive")
			next.ServeHTTP(w, r)
		})
	}))
	st := s.rawFollow(t, "topic=a")
	st.expectHello()
	if h := st.resp.Header; h.Get("X-Injected") != "" || h.Get("X-Value") == "" || h.Get("Trailer") != "" || len(st.resp.TransferEncoding) > 0 || !st.resp.Close {
		t.Errorf("header %q", h)
	}
}

func TestSSEOnHTTP10(t *testing.T) {
	s := newSite(t)
	conn := s.dial(t)
	request(t, conn, "topic=a", "HTTP/1.0")
	st := receive(t, conn)
	st.expectHello()
	if len(st.resp.TransferEncoding) > 0 {
		t.Errorf("transfer encoding %q on HTTP/1.0", st.resp.TransferEncoding)
	}
	s.publish(t, "a", "one")
	st.expectMessages("one")
	join := s.stop(t)
	st.expectEnd()
	join()
}

// TestSSEWithoutTCP serves streams on connections of which the system tells nothing.
func TestSSEWithoutTCP(t *testing.T) {
	for _, name := range []string{"unix", "pipe"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var listener net.Listener
			var dial func(context.Context) (net.Conn, error)
			if name == "unix" {
				path := filepath.Join(t.TempDir(), "socket")
				var err error
				listener, err = net.Listen("unix", path)
				check(t, err)
				dial = func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", path) }
			} else {
				pipes := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
				listener, dial = pipes, pipes.dial
			}
			reasons := make(chan pushlet.Reason, 2)
			s := newSite(t, withServer(func(srv *httptest.Server) {
				srv.Listener.Close()
				srv.Listener = listener
			}), withOptions(
				pushlet.WithWriteTimeout(2*time.Second),
				pushlet.WithHooks(pushlet.Hooks{OnDisconnect: func(_ pushlet.Client, why pushlet.Reason) { reasons <- why }}),
			))
			s.srv.URL = "http://example.com"
			s.srv.Client().Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }

			st, _, e := s.connect(t, "topic=a", "")
			long := strings.Repeat("x", 1<<19)
			s.publish(t, "a", "one", long)
			st.expectMessages("one", long)
			resumed, h, _ := s.connect(t, "topic=a", e.id)
			if !h.Resumed {
				t.Error("not resumed")
			}
			resumed.expectMessages("one", long)

			// One of them does not read any more.
			for range 8 {
				s.publish(t, "a", long)
			}
			st.expectMessages(slices.Repeat([]string{long}, 8)...)
			soon(t, "the other is ended", func() {
				if why := <-reasons; why != pushlet.ReasonWriteTimeout {
					t.Errorf("reason %q, want %q", why, pushlet.ReasonWriteTimeout)
				}
			})
			join := s.stop(t)
			st.expectEnd()
			join()
		})
	}
}

// A pipeListener accepts connections in memory.
type pipeListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: "pipe"} }

func TestSSEWithoutFlush(t *testing.T) {
	s := newSite(t, wrapWith(func(w http.ResponseWriter) http.ResponseWriter { return opaque{w} }))
	resp := s.answer(t, http.MethodGet, "")
	if resp.status != http.StatusNotImplemented || !strings.Contains(resp.body, "streaming is not supported") {
		t.Errorf("status %d, body %q, want 501 that says why", resp.status, resp.body)
	}
	if got := resp.header.Get("Content-Type"); strings.Contains(got, "event-stream") {
		t.Errorf("content type %q of a refusal", got)
	}
	if got := s.p.Stats(); got.Clients != 0 || got.Refused != 1 || got.Connected != 0 {
		t.Errorf("%v, want one refused and nothing else", got)
	}
}

// TestServerTimeouts: the timeouts of a http.Server, which are meant for requests that
// end, do not end a stream; and where the stream cannot prevent it, nothing is lost.
func TestServerTimeouts(t *testing.T) {
	t.Parallel()
	const (
		timeout = 2 * time.Second
		life    = 3200 * time.Millisecond
		pace    = 50 * time.Millisecond
	)
	serverTimeouts := withServer(func(srv *httptest.Server) {
		srv.Config.WriteTimeout = timeout
		srv.Config.ReadTimeout = timeout
		srv.Config.IdleTimeout = timeout
		srv.Config.ReadHeaderTimeout = timeout
	})
	together(t, transports[:8], func(t *testing.T, tr transport) {
		s := tr.site(t, serverTimeouts)
		quiet := s.follow(t, "topic=quiet")
		_, last := quiet.expectHello()
		begun := time.Now()

		stop, published := make(chan struct{}), make(chan int, 1)
		go func() {
			ticker := time.NewTicker(pace)
			defer ticker.Stop()
			for n := 1; ; n++ {
				if err := s.p.Publish("a", "message", strconv.Itoa(n)); err != nil {
					t.Error(err)
				}
				select {
				case <-ticker.C:
				case <-stop:
					published <- n
					return
				}
			}
		}()
		halt := sync.OnceValue(func() int { close(stop); return <-published })
		defer halt()
		_, cursor := s.follow(t, "topic=a").expectHello()
		f := &follower{site: s, t: t, query: "topic=a", cursor: cursor.id}
		next := -1
		check(t, f.follow(func(e event) verdict {
			n := number(e)
			if next >= 0 && n != next {
				t.Errorf("message %d, want %d", n, next)
			}
			next = n + 1
			if time.Since(begun) > life {
				return enough
			}
			return stay
		}))
		if last := halt(); next > last+1 {
			t.Errorf("got message %d of %d", next-1, last)
		}
		if len(f.gaps) > 0 {
			t.Errorf("gaps: %v", f.gaps)
		}

		ends := strings.Contains(tr.name, "without Unwrap")
		if !ends && f.visits > 1 {
			t.Errorf("the stream was opened %d times, want once", f.visits)
		}
		s.publish(t, "quiet", "still there")
		e, err := quiet.read()
		if ends && errors.Is(err, io.EOF) { // a good end, from which it can resume
			quiet, _, _ = s.connect(t, "topic=quiet", last.id)
			e, err = quiet.read()
		}
		if err != nil || e.data != "still there" {
			t.Errorf("stream without messages: %v, %v", e, err)
		}
	})
}

// ----- methods and origins

func TestSSEMethods(t *testing.T) {
	s := newSite(t)
	resp := s.answer(t, http.MethodHead, "topic=a")
	if resp.status != http.StatusOK || resp.header.Get("Content-Type") != "text/event-stream" || resp.body != "" {
		t.Errorf("HEAD: status %d, header %v", resp.status, resp.header)
	}
	if resp = s.answer(t, http.MethodHead, "topic=%00"); resp.status != http.StatusBadRequest {
		t.Errorf("HEAD with a bad topic: status %d, want 400", resp.status)
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, "BREW"} {
		resp := s.answer(t, method, "topic=a", "Accept", "text/event-stream")
		if got, want := resp.header.Get("Allow"), "GET, HEAD, OPTIONS"; resp.status != http.StatusMethodNotAllowed || got != want {
			t.Errorf("%s: status %d, Allow %q, want 405 and %q", method, resp.status, got, want)
		}
	}
	resp = s.answer(t, http.MethodOptions, "topic=a")
	if got, want := resp.header.Get("Allow"), "GET, HEAD, OPTIONS"; resp.status != http.StatusNoContent || got != want {
		t.Errorf("OPTIONS: status %d, Allow %q, want 204 and %q", resp.status, got, want)
	}
	if got := s.p.Stats(); got.Clients != 0 || got.Connected != 0 || got.Refused != 6 {
		t.Errorf("%v, want 6 refused and nothing connected", got)
	}
}

func TestSSEOrigins(t *testing.T) {
	const own, other = "https://app.example.com", "https://evil.example.org"
	type headers map[string]string
	for _, test := range []struct {
		name    string
		origins []string
		origin  string
		want    headers
	}{
		{"default", nil, other, headers{"Access-Control-Allow-Origin": "", "Vary": ""}},
		{"listed", []string{own}, own, headers{"Access-Control-Allow-Origin": own, "Access-Control-Allow-Credentials": "true", "Vary": "Origin"}},
		{"listed, other case", []string{own}, "https://APP.example.com", headers{"Access-Control-Allow-Origin": "https://APP.example.com", "Vary": "Origin"}},
		{"not listed", []string{own}, other, headers{"Access-Control-Allow-Origin": "", "Access-Control-Allow-Credentials": "", "Vary": "Origin"}},
		{"longer than a listed one", []string{own}, own + ".evil.org", headers{"Access-Control-Allow-Origin": ""}},
		{"null", []string{own}, "null", headers{"Access-Control-Allow-Origin": ""}},
		{"no origin", []string{own}, "", headers{"Access-Control-Allow-Origin": "", "Vary": "Origin"}},
		{"all", []string{"*"}, other, headers{"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Credentials": ""}},
		{"all and one", []string{"*", own}, own, headers{"Access-Control-Allow-Origin": own, "Access-Control-Allow-Credentials": "true"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, withOptions(pushlet.WithAllowedOrigins(test.origins...)))
			var origin []string
			if test.origin != "" {
				origin = []string{"Origin", test.origin}
			}
			st := s.follow(t, "", origin...)
			preflight := s.answer(t, http.MethodOptions, "", append(origin,
				"Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "last-event-id")...)
			for name, want := range test.want {
				if got := st.resp.Header.Get(name); got != want {
					t.Errorf("GET: %s is %q, want %q", name, got, want)
				}
				if got := preflight.header.Get(name); got != want {
					t.Errorf("OPTIONS: %s is %q, want %q", name, got, want)
				}
			}
			if preflight.status != http.StatusNoContent {
				t.Errorf("OPTIONS: status %d, want 204", preflight.status)
			}
			allowed := test.want["Access-Control-Allow-Origin"] != ""
			if got := preflight.header.Get("Access-Control-Allow-Headers"); strings.Contains(got, "Last-Event-ID") != allowed {
				t.Errorf("OPTIONS: allowed headers %q", got)
			}
			if got := preflight.header.Get("Access-Control-Allow-Methods"); strings.Contains(got, "GET") != allowed {
				t.Errorf("OPTIONS: allowed methods %q", got)
			}
			st.expectHello()
		})
	}

	// A browser shows a page of another origin why it was refused only with the header.
	s := newSite(t, withOptions(pushlet.WithAllowedOrigins(own)))
	resp := s.answer(t, http.MethodGet, "topic=%00", "Origin", own)
	if got := resp.header.Get("Access-Control-Allow-Origin"); resp.status != http.StatusBadRequest || got != own {
		t.Errorf("refusal: status %d, Access-Control-Allow-Origin %q, want 400 and %q", resp.status, got, own)
	}
}

// ----- hooks and numbers

func TestSSEHooks(t *testing.T) {
	type call struct {
		client pushlet.Client
		why    pushlet.Reason
	}
	for _, tr := range transports[:4] {
		t.Run(tr.name, func(t *testing.T) {
			calls := make(chan call, 10)
			s := tr.site(t, withOptions(pushlet.WithHooks(pushlet.Hooks{
				OnConnect:    func(c pushlet.Client) { calls <- call{client: c} },
				OnDisconnect: func(c pushlet.Client, why pushlet.Reason) { calls <- call{c, why} },
			})))
			first, h1, _ := s.connect(t, "topic=a", "")
			c := <-calls
			if c.client.ID != h1.Client || c.client.Protocol != "sse" || !strings.HasPrefix(c.client.Remote, "127.0.0.1:") || c.why != "" {
				t.Errorf("connected %+v, want client %s", c, h1.Client)
			}
			second, h2, _ := s.connect(t, "topic=a", "")
			<-calls
			if got := s.p.Stats(); got.Clients != 2 || got.SSE != 2 || got.WebSocket != 0 || got.Topics != 1 {
				t.Errorf("%v, want two clients of one topic", got)
			}
			join := s.stop(t)
			first.expectEnd()
			second.expectEnd()
			join()
			if got := s.p.Stats(); got.Clients != 0 {
				t.Errorf("after Stop %d clients, want none", got.Clients)
			}
			// Stop waits for the hooks.
			want := map[string]pushlet.Reason{h1.Client: pushlet.ReasonShutdown, h2.Client: pushlet.ReasonShutdown}
			got := make(map[string]pushlet.Reason)
			for range 2 {
				c := <-calls
				got[c.client.ID] = c.why
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("disconnected %v, want %v", got, want)
			}
		})
	}
	t.Run("the client leaves", func(t *testing.T) {
		calls := make(chan call, 10)
		s := newSite(t, withOptions(pushlet.WithHooks(pushlet.Hooks{
			OnDisconnect: func(c pushlet.Client, why pushlet.Reason) { calls <- call{c, why} },
		})))
		st, h, _ := s.connect(t, "topic=a", "")
		st.close()
		if c := <-calls; c.client.ID != h.Client || c.why != pushlet.ReasonClientClosed {
			t.Errorf("disconnected %+v, want client %s, %q", c, h.Client, pushlet.ReasonClientClosed)
		}
		eventually(t, "no clients and no topics", func() bool {
			got := s.p.Stats()
			return got.Clients == 0 && got.Topics == 0
		})
	})
}

// TestConnectHookPublishes: a hook may use the Pushlet that calls it.
func TestConnectHookPublishes(t *testing.T) {
	var s *site
	s = newSite(t, withOptions(pushlet.WithHooks(pushlet.Hooks{
		OnConnect: func(c pushlet.Client) {
			if err := s.p.PublishToAll("joined", c.ID); err != nil {
				t.Error(err)
			}
		},
	})))
	first, h1, _ := s.connect(t, "", "")
	_, h2, _ := s.connect(t, "", "")
	if e := first.next(); e.data == h1.Client || e.data != h2.Client {
		t.Errorf("first event %v, want that %s has joined", e, h2.Client)
	}
}

// TestSSEManyStreamsOverHTTP2 has more streams on one connection than a browser opens
// connections.
func TestSSEManyStreamsOverHTTP2(t *testing.T) {
	s := newSite(t, withHTTP2())
	var streams []*stream
	for i := range 50 {
		st, _, _ := s.connect(t, fmt.Sprintf("topic=t%d", i), "")
		streams = append(streams, st)
	}
	check(t, s.p.PublishToAll("message", "for all"))
	for i, st := range streams {
		s.publish(t, fmt.Sprintf("t%d", i), fmt.Sprint(i))
		st.expectMessages("for all", fmt.Sprint(i))
	}
}

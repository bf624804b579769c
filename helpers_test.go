package pushlet_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/usual2970/pushlet"
)

// patience is how long a test waits for what should happen soon. On a busy machine soon
// may be a while; a test that passes never waits that long.
const patience = 30 * time.Second

// eventually waits until ok returns true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// soon fails the test if f does not return.
func soon(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("not within %v: %s", patience, what)
	}
}

// together runs a subtest for each transport, all at the same time: they wait more than
// they work, so the limit of t.Parallel would only make them late.
func together(t *testing.T, transports []transport, test func(*testing.T, transport)) {
	var all sync.WaitGroup
	for _, tr := range transports {
		all.Go(func() {
			t.Run(tr.name, func(t *testing.T) { test(t, tr) })
		})
	}
	all.Wait()
}

// check fails the test on an error.
func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ----- text/event-stream, as a browser reads it

// An event is what a browser dispatches: e.type, e.data and e.lastEventId.
type event struct {
	name, data, id string
}

func (e event) String() string { return fmt.Sprintf("%s %.60q", e.name, e.data) }

// An eventParser reads a text/event-stream by the algorithm of WHATWG HTML, section
// 9.2.6, written from the text of that standard and sharing nothing with the library.
// The zero value is at the beginning of a stream.
type eventParser struct {
	line    []byte // what has come of the line so far
	started bool   // past the place where a BOM is dropped
	afterCR bool   // a LF would belong to the CR before it

	data      []byte
	eventType string
	idBuffer  string

	lastID   string        // the event source's last event ID string
	retry    time.Duration // the last valid one
	comments int
}

// feed reads the next bytes of the stream, however they are cut, and returns the events
// that they complete. At the end of a stream an event that is not complete is dropped,
// which takes no code.
func (p *eventParser) feed(b []byte) (events []event) {
	for len(b) > 0 {
		if p.afterCR {
			p.afterCR = false
			if b[0] == '\n' {
				b = b[1:]
				continue
			}
		}
		end := lineEnd(b)
		if end < 0 {
			p.line = append(p.line, b...)
			return events
		}
		line := b[:end]
		if len(p.line) > 0 {
			p.line = append(p.line, line...)
			line = p.line
		}
		p.afterCR = b[end] == '\r'
		b = b[end+1:]
		if e, ok := p.endLine(line); ok {
			events = append(events, e)
		}
		p.line = p.line[:0]
	}
	return events
}

// lineEnd returns where the first CR or LF is, or -1. It is bytes.IndexAny, but fast
// under the race detector.
func lineEnd(b []byte) int {
	lf := bytes.IndexByte(b, '\n')
	if lf >= 0 {
		b = b[:lf]
	}
	if cr := bytes.IndexByte(b, '\r'); cr >= 0 {
		return cr
	}
	return lf
}

func (p *eventParser) endLine(line []byte) (event, bool) {
	if !p.started {
		p.started = true
		line = bytes.TrimPrefix(line, []byte("\xEF\xBB\xBF"))
	}
	switch {
	case len(line) == 0:
		return p.dispatch()
	case line[0] == ':':
		p.comments++
		return event{}, false
	}
	name, value, _ := strings.Cut(decodeUTF8(line), ":")
	p.field(name, strings.TrimPrefix(value, " "))
	return event{}, false
}

// decodeUTF8 puts U+FFFD in the place of bytes that are not UTF-8.
func decodeUTF8(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return string([]rune(string(b)))
}

func (p *eventParser) field(name, value string) {
	switch name {
	case "event":
		p.eventType = value
	case "data":
		p.data = append(p.data, value...)
		p.data = append(p.data, '\n')
	case "id":
		if !strings.Contains(value, "\x00") {
			p.idBuffer = value
		}
	case "retry":
		if value == "" || strings.Trim(value, "0123456789") != "" {
			return
		}
		if ms, err := strconv.ParseInt(value, 10, 32); err == nil {
			p.retry = time.Duration(ms) * time.Millisecond
		}
	}
}

func (p *eventParser) dispatch() (event, bool) {
	p.lastID = p.idBuffer
	data, name := p.data, p.eventType
	p.data, p.eventType = p.data[:0], ""
	if len(data) == 0 {
		return event{}, false
	}
	if name == "" {
		name = "message"
	}
	return event{name: name, data: string(data[:len(data)-1]), id: p.lastID}, true
}

// ----- a client

// A stream is one connection to an event stream. Unless a method says otherwise it
// belongs to the test's goroutine.
type stream struct {
	t      testing.TB
	resp   *http.Response
	body   io.Reader
	limit  func(time.Duration) (lift func()) // lets a read fail that takes longer
	close  func()
	buf    []byte
	ready  []event
	parser eventParser
}

// read returns the next event, or why there is none. It may be called by any one
// goroutine.
func (s *stream) read() (event, error) {
	for len(s.ready) == 0 {
		if s.buf == nil {
			s.buf = make([]byte, 4<<10)
		}
		lift := s.limit(patience)
		n, err := s.body.Read(s.buf)
		lift()
		s.ready = append(s.ready, s.parser.feed(s.buf[:n])...)
		if err != nil && len(s.ready) == 0 {
			return event{}, err
		}
	}
	e := s.ready[0]
	s.ready = s.ready[1:]
	return e, nil
}

// next returns the next event.
func (s *stream) next() event {
	s.t.Helper()
	e, err := s.read()
	if err != nil {
		s.t.Fatalf("reading the next event: %v", err)
	}
	return e
}

// expect reads the next event, which must be this one.
func (s *stream) expect(name, data string) event {
	s.t.Helper()
	e := s.next()
	if e.name != name || e.data != data {
		s.t.Fatalf("event %v, want %v", e, event{name: name, data: data})
	}
	return e
}

// expectMessages reads these events of name "message".
func (s *stream) expectMessages(data ...string) (last event) {
	s.t.Helper()
	for _, d := range data {
		last = s.expect("message", d)
	}
	return last
}

// hello is the data of pushlet.connected.
type hello struct {
	Client  string   `json:"client"`
	Topics  []string `json:"topics"`
	Resumed bool     `json:"resumed"`
}

// expectHello reads the first event of a stream.
func (s *stream) expectHello() (hello, event) {
	s.t.Helper()
	e := s.next()
	var h hello
	if err := json.Unmarshal([]byte(e.data), &h); err != nil || e.name != "pushlet.connected" {
		s.t.Fatalf("first event is %v, want pushlet.connected (%v)", e, err)
	}
	if e.id == "" {
		s.t.Fatalf("pushlet.connected has no id")
	}
	return h, e
}

// gap is the data of pushlet.gap.
type gap struct {
	Topics []string `json:"topics"`
	Reason string   `json:"reason"`
}

// expectGap reads a gap event, with these topics in any order.
func (s *stream) expectGap(reason string, topics ...string) event {
	s.t.Helper()
	e := s.next()
	var g gap
	if err := json.Unmarshal([]byte(e.data), &g); err != nil || e.name != "pushlet.gap" {
		s.t.Fatalf("event %v, want pushlet.gap (%v)", e, err)
	}
	slices.Sort(g.Topics)
	slices.Sort(topics)
	if g.Reason != reason || !slices.Equal(g.Topics, topics) {
		s.t.Fatalf("gap %q of %q, want %q of %q", g.Reason, g.Topics, reason, topics)
	}
	return e
}

// expectEnd reads to the end of the stream, which must be a good one, without events,
// and closes it.
func (s *stream) expectEnd() {
	s.t.Helper()
	e, err := s.read()
	s.close()
	switch {
	case err == nil:
		s.t.Fatalf("event %v, want the end of the stream", e)
	case !errors.Is(err, io.EOF):
		s.t.Fatalf("the stream ended with %v, want %v", err, io.EOF)
	}
}

// ----- a server

// A site is a Pushlet that has been started, behind a web server that serves its event
// streams at every path.
type site struct {
	p       *pushlet.Pushlet
	srv     *httptest.Server
	handler http.Handler
	options []pushlet.Option
	unused  bool // do not start the Pushlet
}

type siteOption func(*site)

func withOptions(options ...pushlet.Option) siteOption {
	return func(s *site) { s.options = append(s.options, options...) }
}

// withServer changes the server before it starts.
func withServer(change func(*httptest.Server)) siteOption {
	return func(s *site) { change(s.srv) }
}

// withMiddleware puts a handler around HandleSSE.
func withMiddleware(wrap func(http.Handler) http.Handler) siteOption {
	return func(s *site) { s.handler = wrap(s.handler) }
}

func withHTTP2() siteOption {
	return withServer(func(srv *httptest.Server) { srv.EnableHTTP2 = true; srv.TLS = new(tls.Config) })
}

func withTLS() siteOption {
	return withServer(func(srv *httptest.Server) { srv.TLS = new(tls.Config) })
}

// notStarted leaves it to the test to start the Pushlet.
func notStarted() siteOption { return func(s *site) { s.unused = true } }

// newPushlet returns a Pushlet that logs nothing. It has not been started; when the
// test is over it must stop in time.
func newPushlet(t testing.TB, options ...pushlet.Option) *pushlet.Pushlet {
	t.Helper()
	p := pushlet.New(append([]pushlet.Option{pushlet.WithLogger(discard)}, options...)...)
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	return p
}

// newSite starts a Pushlet and a server. When the test is over the clients go first,
// then the Pushlet, then the server.
func newSite(t testing.TB, options ...siteOption) *site {
	t.Helper()
	s := &site{}
	s.srv = httptest.NewUnstartedServer(nil)
	s.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.p.HandleSSE(w, r) })
	for _, o := range options {
		o(s)
	}
	s.srv.Config.Handler = s.handler
	if s.srv.TLS != nil {
		s.srv.StartTLS()
	} else {
		s.srv.Start()
	}
	t.Cleanup(s.srv.Close)
	t.Cleanup(s.srv.Client().CloseIdleConnections)
	s.srv.Client().Transport.(*http.Transport).DisableCompression = true
	s.p = newPushlet(t, s.options...)
	if !s.unused {
		check(t, s.p.Start())
	}
	return s
}

// get sends a request as an EventSource does and returns the answer, whatever it is.
// The headers come in pairs of name and value.
func (s *site) get(ctx context.Context, query string, headers ...string) (*http.Response, error) {
	return s.do(ctx, http.MethodGet, query, append([]string{"Accept", "text/event-stream"}, headers...)...)
}

func (s *site) do(ctx context.Context, method, query string, headers ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.srv.URL+"/events?"+query, nil)
	if err != nil {
		return nil, err
	}
	for pair := range slices.Chunk(headers, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	return s.srv.Client().Do(req)
}

// An answer is a whole response.
type answer struct {
	status int
	header http.Header
	body   string
}

// answer sends a request that must not be answered with a stream that lasts.
func (s *site) answer(t testing.TB, method, query string, headers ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := s.do(ctx, method, query, headers...)
	check(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// follow opens an event stream. It is closed when the test is over, if not before.
func (s *site) follow(t testing.TB, query string, headers ...string) *stream {
	t.Helper()
	st, err := s.tryFollow(t, query, headers...)
	check(t, err)
	t.Cleanup(st.close)
	return st
}

// tryFollow is for any goroutine: it leaves everything to the caller.
func (s *site) tryFollow(t testing.TB, query string, headers ...string) (*stream, error) {
	ctx, cancel := context.WithCancel(context.Background())
	lift := limitBy(cancel)(patience)
	resp, err := s.get(ctx, query, headers...)
	lift()
	if err != nil {
		cancel()
		return nil, err
	}
	st := &stream{t: t, resp: resp, body: resp.Body, limit: limitBy(cancel)}
	st.close = sync.OnceFunc(func() { cancel(); resp.Body.Close() })
	if got := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || got != "text/event-stream" {
		st.close()
		return nil, fmt.Errorf("status %d with content type %q, want an event stream", resp.StatusCode, got)
	}
	return st, nil
}

// limitBy calls cut when what is limited takes too long.
func limitBy(cut func()) func(time.Duration) func() {
	return func(d time.Duration) func() {
		timer := time.AfterFunc(d, cut)
		return func() { timer.Stop() }
	}
}

// connect opens an event stream and reads its pushlet.connected; a cursor that is not
// empty is sent as Last-Event-ID.
func (s *site) connect(t testing.TB, query, cursor string) (*stream, hello, event) {
	t.Helper()
	var headers []string
	if cursor != "" {
		headers = []string{"Last-Event-ID", cursor}
	}
	st := s.follow(t, query, headers...)
	h, e := st.expectHello()
	return st, h, e
}

// publish publishes messages to a topic, one after the other.
func (s *site) publish(t testing.TB, topic string, data ...string) {
	t.Helper()
	for _, d := range data {
		check(t, s.p.Publish(topic, "message", d))
	}
}

// stop stops the Pushlet while the test goes on, to read what its clients get; join
// waits until it has stopped.
func (s *site) stop(t testing.TB) (join func()) {
	t.Helper()
	stopped := make(chan error, 1)
	go func() { stopped <- s.p.Stop() }()
	return func() {
		t.Helper()
		check(t, <-stopped)
	}
}

// clientsGone waits until the server has noticed that its clients have left.
func (s *site) clientsGone(t testing.TB) {
	t.Helper()
	eventually(t, "no clients", func() bool { return s.p.Stats().Clients == 0 })
}

// dial opens a bare connection to the server.
func (s *site) dial(t testing.TB) net.Conn {
	t.Helper()
	return s.dialBuffer(t, 0)
}

// dialBuffer is dial with a receive buffer of that many bytes, if more than zero: a
// small one shows the server soon that nobody reads.
func (s *site) dialBuffer(t testing.TB, receive int) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: patience, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if receive == 0 {
			return nil
		}
		e := raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receive)
		})
		if e != nil {
			return e
		}
		return err
	}}
	conn, err := d.DialContext(t.Context(), "tcp", s.srv.Listener.Addr().String())
	check(t, err)
	if s.srv.TLS != nil {
		tlsConfig := s.srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		tlsConfig.ServerName = "example.com"
		tlsConfig.NextProtos = []string{"http/1.1"}
		conn = tls.Client(conn, tlsConfig)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// request sends a GET on a bare connection, without reading anything.
func request(t testing.TB, conn net.Conn, query, proto string, headers ...string) {
	t.Helper()
	_, err := fmt.Fprintf(conn, "GET /events?%s %s\r\nHost: example.com\r\n%s\r\n", query, proto, headerLines(headers))
	check(t, err)
}

func headerLines(headers []string) string {
	var b strings.Builder
	for pair := range slices.Chunk(headers, 2) {
		fmt.Fprintf(&b, "%s: %s\r\n", pair[0], pair[1])
	}
	return b.String()
}

// receive reads the head of the response on a bare connection and returns the stream.
func receive(t testing.TB, conn net.Conn) *stream {
	t.Helper()
	check(t, conn.SetReadDeadline(time.Now().Add(patience)))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil) //nolint:bodyclose // the connection is closed
	check(t, err)
	st := &stream{t: t, resp: resp, body: resp.Body, close: func() { conn.Close() }}
	st.limit = func(d time.Duration) func() {
		conn.SetReadDeadline(time.Now().Add(d))
		return func() {}
	}
	return st
}

// rawFollow opens an event stream on a connection of its own. It is closed when the
// test is over, if not before.
func (s *site) rawFollow(t testing.TB, query string, headers ...string) *stream {
	t.Helper()
	conn := s.dial(t)
	request(t, conn, query, "HTTP/1.1", headers...)
	return receive(t, conn)
}

// ----- a client that comes back

// A follower is a client that comes back whenever its stream ends, as an EventSource
// does, but at once. It collects what it gets of one or more topics.
type follower struct {
	site   *site
	t      testing.TB
	query  string
	cursor string
	gaps   []gap
	visits int
}

// follow reads until each is done, and returns why it could not go on, if that is so.
// The function sees the messages, and may end the connection: it returns whether to
// stay, to come back, or to stop.
func (f *follower) follow(see func(event) verdict) error {
	for {
		var headers []string
		if f.cursor != "" {
			headers = []string{"Last-Event-ID", f.cursor}
		}
		st, err := f.site.tryFollow(f.t, f.query, headers...)
		if err != nil {
			return err
		}
		f.visits++
		over, err := f.visit(st, see)
		st.close()
		if over || err != nil {
			return err
		}
	}
}

type verdict int

const (
	stay verdict = iota
	comeBack
	enough
)

func (f *follower) visit(st *stream, see func(event) verdict) (over bool, err error) {
	for {
		e, err := st.read()
		if errors.Is(err, io.EOF) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		f.cursor = e.id
		switch e.name {
		case "pushlet.connected":
			continue
		case "pushlet.gap":
			var g gap
			if err := json.Unmarshal([]byte(e.data), &g); err != nil {
				return false, err
			}
			f.gaps = append(f.gaps, g)
			continue
		}
		if v := see(e); v != stay {
			return v == enough, nil
		}
	}
}

// ----- a stream without a socket

// An exchange is a request that HandleSSE serves without a server or a socket: for tests
// in a bubble of fake time, in which what has been written has arrived.
type exchange struct {
	t      testing.TB
	header http.Header
	status int
	leave  context.CancelFunc
	done   chan struct{} // closed when the handler has returned

	mu     sync.Mutex
	parser eventParser
	events []event
}

// startExchange begins a request within a bubble, and waits until all has settled.
func startExchange(t testing.TB, p *pushlet.Pushlet, query, cursor string) *exchange {
	ctx, leave := context.WithCancel(t.Context())
	x := &exchange{t: t, header: make(http.Header), leave: leave, done: make(chan struct{})}
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/events?"+query, nil)
	r.Header.Set("Accept", "text/event-stream")
	if cursor != "" {
		r.Header.Set("Last-Event-ID", cursor)
	}
	go func() { defer close(x.done); p.HandleSSE(x, r) }()
	t.Cleanup(func() { leave(); <-x.done })
	synctest.Wait()
	return x
}

func (x *exchange) Header() http.Header { return x.header }

func (x *exchange) WriteHeader(status int) { x.status = status }

func (x *exchange) Write(b []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.events = append(x.events, x.parser.feed(b)...)
	return len(b), nil
}

func (x *exchange) Flush() {}

// arrived returns the events since the last call.
func (x *exchange) arrived() (events []event) {
	synctest.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	events, x.events = x.events, nil
	return events
}

// comments returns how many comment lines have come so far.
func (x *exchange) comments() int {
	synctest.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.parser.comments
}

// cursor returns the ID of the last event.
func (x *exchange) cursor() string {
	synctest.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.parser.lastID
}

// ended reports whether the stream is over.
func (x *exchange) ended() bool {
	synctest.Wait()
	select {
	case <-x.done:
		return true
	default:
		return false
	}
}

// ----- logs

// discard is a logger for tests that do not look at the log.
func discard() pushlet.Logger { return noLog{} }

type noLog struct{}

func (noLog) Println(...any)                         {}
func (l noLog) WithField(string, any) pushlet.Logger { return l }

// A logBook keeps the lines of a log, each with its fields as they were given.
type logBook struct {
	mu    sync.Mutex
	lines []logLine
}

type logLine struct {
	text   string
	fields map[string]any
}

func (b *logBook) logger() pushlet.Logger { return bookLogger{book: b} }

func (b *logBook) all() []logLine {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.lines)
}

type bookLogger struct {
	book   *logBook
	fields map[string]any
}

func (l bookLogger) Println(v ...any) {
	l.book.mu.Lock()
	defer l.book.mu.Unlock()
	l.book.lines = append(l.book.lines, logLine{fmt.Sprintln(v...), l.fields})
}

func (l bookLogger) WithField(key string, value any) pushlet.Logger {
	fields := maps.Clone(l.fields)
	if fields == nil {
		fields = make(map[string]any)
	}
	fields[key] = value
	return bookLogger{l.book, fields}
}

// ----- numbers

// numbered returns the messages "from" to "to", both included.
func numbered(from, to int) (data []string) {
	for i := from; i <= to; i++ {
		data = append(data, strconv.Itoa(i))
	}
	return data
}

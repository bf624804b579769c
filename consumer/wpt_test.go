package consumer_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usual2970/pushlet/consumer"
)

// The cases of web-platform-tests for EventSource (its folder eventsource/), by the names of its
// files: the bytes that the server sends, and what must come of them.
//
// Others are about a page, and have nothing to say to a client without one: the DOM
// (eventsource-eventtarget, -onmessage, -onopen, -prototype, -readyState, -url, -constructor-*, and of
// -from-readable-stream all but the bytes; interfaces), workers, the back/forward cache, CORS and
// credentials (-cross-origin, of -cross-origin-preflight all but the IDs, request-credentials), and a
// page that stops loading (-request-cancellation; a context that ends is in TestContext).
//
// Two differ here, and doc.go says so. After 503 (request-status-error) the client comes back. And
// it waits between one and two times what "retry:" asks for (format-field-retry, -retry-bogus: within
// 10 %), so that clients do not all come at once.

// Those about the bytes of one stream.
func TestWPTFormat(t *testing.T) {
	long := strings.Repeat("x", 2*1024)
	msg := func(data string) decoded { return decoded{"message", data, ""} }
	for _, test := range []struct {
		file, stream string
		want         []decoded
		id           string        // that a client which comes back sends
		retry        time.Duration // 0: not asked for
	}{
		{"event-data", "data:msg\ndata: msg\n\n:\nfalsefield:msg\n\nfalsefield:msg\nData:data\n\ndata\n\ndata:end\n\n",
			[]decoded{msg("msg\nmsg"), msg(""), msg("end")}, "", 0},
		{"format-bom", "\uFEFFdata:1\n\n\uFEFFdata:2\n\ndata:3\n\n\n", []decoded{msg("1"), msg("3")}, "", 0},
		{"format-bom-2", "\uFEFF\uFEFFdata:1\n\ndata:2\n\ndata:3\n\n\n", []decoded{msg("2"), msg("3")}, "", 0},
		{"format-comments", "data:1\r:\x00\n:\r\ndata:2\n:" + long + "\rdata:3\n:data:fail\r:" + long + "\ndata:4\n\n",
			[]decoded{msg("1\n2\n3\n4")}, "", 0},
		{"format-data-before-final-empty-line", "retry:1000\ndata:test1\n\nid:test\ndata:test2\n", []decoded{msg("test1")}, "", time.Second},
		{"format-field-data", "data:\n\ndata\ndata\n\ndata:test\n\n\n", []decoded{msg(""), msg("\n"), msg("test")}, "", 0},
		{"format-field-event", "event:test\ndata:x\n\ndata:x\n\n\n", []decoded{{"test", "x", ""}, msg("x")}, "", 0},
		{"format-field-event-empty", "event: \ndata:data\n\n\n", []decoded{msg("data")}, "", 0},
		{"format-field-id", "id: …\nretry: 200\ndata: hello\n\n", []decoded{{"message", "hello", "…"}}, "…", 200 * time.Millisecond},
		{"format-field-id-3, persists", "id: 1\ndata: 1\n\ndata:2\n\n", []decoded{{"message", "1", "1"}, {"message", "2", "1"}}, "1", 0},
		{"format-field-id-3, changes and persists", "id: 1\ndata: 1\n\nid: 2\ndata:2\n\ndata:3\n\n",
			[]decoded{{"message", "1", "1"}, {"message", "2", "2"}, {"message", "3", "2"}}, "2", 0},
		{"format-field-id-3, resets", "id: 1\ndata: 1\n\nid:\ndata:2\n\ndata:3\n\n", []decoded{{"message", "1", "1"}, msg("2"), msg("3")}, "", 0},
		{"format-field-id-3, resets without a colon", "id: 1\ndata: 1\n\nid\ndata:2\n\ndata:3\n\n", []decoded{{"message", "1", "1"}, msg("2"), msg("3")}, "", 0},
		{"format-field-parsing", "data:\x00\ndata:  2\rData:1\ndata\x00:2\ndata:1\r\x00data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n",
			[]decoded{msg("\x00\n 2\n1\n3\n\n4")}, "", 0},
		{"format-field-retry", "retry:03000\ndata:x\n\n\n", []decoded{msg("x")}, "", 3 * time.Second},
		{"format-field-retry-bogus", "retry:3000\nretry:1000x\ndata:x\n\n\n", []decoded{msg("x")}, "", 3 * time.Second},
		{"format-field-retry-empty", "retry\ndata:test\n\n\n", []decoded{msg("test")}, "", 0},
		{"format-field-unknown", "data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n\n",
			[]decoded{msg("test\n\ntest")}, "", 0},
		{"format-leading-space", "data:\ttest\rdata: \ndata:test\n\n\n", []decoded{msg("\ttest\n\ntest")}, "", 0},
		{"format-newlines", "data:test\r\ndata\ndata:test\r\n\r\n", []decoded{msg("test\n\ntest")}, "", 0},
		{"format-null-character", "data:\x00\n\n\n\n\n", []decoded{msg("\x00")}, "", 0},
		{"format-utf-8", "data:ok…\n\n\n", []decoded{msg("ok…")}, "", 0},
		{"eventsource-from-readable-stream, newlines", "data: cr\r\rdata: lf\n\ndata: crlf\r\n\r\n", []decoded{msg("cr"), msg("lf"), msg("crlf")}, "", 0},
		{"eventsource-from-readable-stream, id", "id: 42\ndata: hello\n\n", []decoded{{"message", "hello", "42"}}, "42", 0},
		{"eventsource-from-readable-stream, retry", "retry: 5000\ndata: hello\n\n", []decoded{msg("hello")}, "", 5 * time.Second},
		{"eventsource-from-readable-stream, bogus retry", "retry: bogus\ndata: hello\n\n", []decoded{msg("hello")}, "", 0},
	} {
		t.Run(test.file, func(t *testing.T) {
			d := checkStream(t, test.stream, test.want)
			if retry, _ := d.Retry(); d.LastEventID() != test.id || retry != test.retry {
				t.Errorf("ID %q, retry %v; want %q, %v", d.LastEventID(), retry, test.id, test.retry)
			}
		})
	}
	for _, id := range []string{"\x00\x00", "x\x00", "\x00x", "x\x00x", " \x00"} {
		t.Run(fmt.Sprintf("format-field-id-null, %q", id), func(t *testing.T) {
			if d := checkStream(t, "id: "+id+"\nretry: 200\ndata: hello\n\n", []decoded{msg("hello")}); d.LastEventID() != "" {
				t.Errorf("ID %q", d.LastEventID())
			}
		})
	}
}

// Those about the answer: whether it is a stream.
func TestWPTAnswers(t *testing.T) {
	stream := func(kind string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind)
			io.WriteString(w, "data: ok…\n\n")
			flush(w)
			<-r.Context().Done()
		}
	}
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		status int // the client does not come back; 0: it receives
	}{
		"format-mime-bogus":              {stream("x bogus"), 200},
		"format-mime-valid-bogus":        {stream("text/x-bogus"), 200},
		"format-mime-trailing-semicolon": {stream("text/event-stream;"), 0},
		"format-utf-8":                   {stream("text/event-stream;charset=windows-1252"), 0},
		"request-status-error, 204":      {status(204, "Content-Type", "text/event-stream"), 204},
		"request-status-error, 205":      {status(205, "Content-Type", "text/event-stream"), 205},
		"request-status-error, 210":      {status(210, "Content-Type", "text/event-stream"), 210},
		"request-status-error, 299":      {status(299, "Content-Type", "text/event-stream"), 299},
		"request-status-error, 404":      {status(404, "Content-Type", "text/event-stream"), 404},
		"request-status-error, 410":      {status(410, "Content-Type", "text/event-stream"), 410},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, scripted(t, test.answer, open("data: never\n\n")).URL, quickly)
			if test.status == 0 {
				l.expect("ok…")
				return
			}
			err := l.end()
			var answer *consumer.ResponseError
			if test.status == http.StatusNoContent && !errors.Is(err, consumer.ErrNoContent) ||
				test.status != http.StatusNoContent && (!errors.As(err, &answer) || answer.Status != test.status || answer.Temporary()) {
				t.Errorf("final error %v", err)
			}
			if len(l.errs) > 0 || len(l.opened) > 0 {
				t.Errorf("%d errors before it, %d connections", len(l.errs), len(l.opened))
			}
		})
	}
}

// Those about requests: headers, redirects, and what a client that comes back asks for.
func TestWPTRequests(t *testing.T) {
	const none = "(none)" // no Last-Event-ID
	moved := func(code int) []http.HandlerFunc {
		return []http.HandlerFunc{status(code, "Location", "/there"), open("data: data\n\n")}
	}
	ids := func(id string) []http.HandlerFunc {
		return []http.HandlerFunc{stream("id: " + id + "\nretry: 200\ndata: hello\n\n"), open("data: again\n\n")}
	}
	long := strings.Repeat("a", 255)
	for name, test := range map[string]struct {
		answers []http.HandlerFunc
		want    []string // data
		asked   []string // Last-Event-ID of each request
	}{
		"eventsource-reconnect":                        {[]http.HandlerFunc{stream("retry: 2\n"), open("data: data\n\n")}, []string{"data"}, []string{none, none}},
		"eventsource-reconnect, ok first":              {[]http.HandlerFunc{stream("retry: 2\ndata: ok\n\n"), open("data: data\n\n")}, []string{"ok", "data"}, []string{none, none}},
		"format-data-before-final-empty-line":          {[]http.HandlerFunc{stream("retry:1000\ndata:test1\n\nid:test\ndata:test2\n"), open("data:test1\n\n")}, []string{"test1", "test1"}, []string{none, none}},
		"format-field-id":                              {ids("…"), []string{"hello", "again"}, []string{none, "…"}},
		"format-field-id-2":                            {append([]http.HandlerFunc{stream("id: …\nretry: 200\ndata: hello\n\n"), stream("data: …\n\n")}, open("data: …\n\n")), []string{"hello", "…", "…"}, []string{none, "…", "…"}},
		"format-field-id-null":                         {ids("x\x00"), []string{"hello", "again"}, []string{none, none}},
		"eventsource-cross-origin-preflight, safe ID":  {ids("abc"), []string{"hello", "again"}, []string{none, "abc"}},
		"eventsource-cross-origin-preflight, long ID":  {ids(long), []string{"hello", "again"}, []string{none, long}},
		"eventsource-cross-origin-preflight, other ID": {ids("e5p3n<3k0k0s"), []string{"hello", "again"}, []string{none, "e5p3n<3k0k0s"}},
		"request-redirect, 301":                        {moved(301), []string{"data"}, []string{none, none}},
		"request-redirect, 302":                        {moved(302), []string{"data"}, []string{none, none}},
		"request-redirect, 303":                        {moved(303), []string{"data"}, []string{none, none}},
		"request-redirect, 307":                        {moved(307), []string{"data"}, []string{none, none}},
	} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan string, 100)
			turn := inTurn(test.answers...)
			srv := scripted(t, func(w http.ResponseWriter, r *http.Request) {
				// request-accept, request-cache-control: at each request.
				if r.Method != http.MethodGet || r.Header.Get("Accept") != "text/event-stream" || r.Header.Get("Cache-Control") != "no-cache" {
					t.Errorf("%s, headers %q", r.Method, r.Header)
				}
				id := none
				if ids := r.Header["Last-Event-Id"]; ids != nil {
					id = strings.Join(ids, ",")
				}
				asked <- id
				turn.ServeHTTP(w, r)
			})
			l := listen(t, srv.URL, quickly)
			l.expect(test.want...)
			l.stop()
			_ = l.end()
			close(asked) // the last answer has come
			var got []string
			for id := range asked {
				got = append(got, id)
			}
			if !slices.Equal(got, test.asked) {
				t.Errorf("Last-Event-ID %q, want %q", got, test.asked)
			}
		})
	}
}

// eventsource-close: a stream, another one, and 204, after which nothing comes.
func TestWPTClose(t *testing.T) {
	l := listen(t, scripted(t, stream("retry: 2\ndata: opened\n\n"), stream("data: reconnected\n\n"), status(204), open("data: closed\n\n")).URL, quickly)
	l.expect("opened")
	if err := l.retry(); !errors.Is(err, io.EOF) {
		t.Errorf("error %v", err)
	}
	l.expect("reconnected")
	_ = l.retry()
	if err := l.end(); !errors.Is(err, consumer.ErrNoContent) {
		t.Errorf("final error %v", err)
	}
}

package pushlet_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/usual2970/pushlet"
)

// FuzzSSERoundTrip encodes any message and has the tests' own parser read it, however
// the bytes are cut. Whatever is in it, it is one event and forges nothing.
func FuzzSSERoundTrip(f *testing.F) {
	for _, data := range []string{
		"", "\n", "\r", "\r\n", "\n\r", "a\nb", "a\rb", "a\r\nb", "\n\n\n", "a\n", " a", ":a", "\x00", "\uFEFFa", "data: x\n\nevent: y",
		"id: 1\nretry: 1\n\n", "👩‍👩‍👧‍👦", "\u2028", "\xff", "a\r\r\n\nb",
	} {
		f.Add("message", data, uint8(1))
	}
	f.Add("custom-event", "x", uint8(3))
	f.Add(" x", "x", uint8(7))
	f.Add("data: x", "y", uint8(0))
	p := pushlet.New(pushlet.WithLogger(discard))
	f.Fuzz(func(t *testing.T, name, data string, cut uint8) {
		// Publish is asked whether it would take the name; it goes no further.
		if err := p.Publish("a", name, data); !errors.Is(err, pushlet.ErrNotStarted) || name == "" {
			t.Skip()
		}
		name, data = strings.ToValidUTF8(name, "\uFFFD"), strings.ToValidUTF8(data, "\uFFFD") // as Publish does
		frame := append([]byte("id: 1\n"), pushlet.AppendSSEBody(nil, name, data)...)
		frame = append(frame, frame...) // a second one finds a clean beginning
		want := event{name, strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(data), "1"}
		var parser eventParser
		var got []event
		for chunk := range slices.Chunk(frame, 1+int(cut)) {
			got = append(got, parser.feed(chunk)...)
		}
		if !slices.Equal(got, []event{want, want}) {
			t.Errorf("%q, %q became %q", name, data, got)
		}
		if parser.retry != 0 || parser.comments != 0 || len(parser.line) > 0 {
			t.Errorf("%q, %q: retry %v, %d comments, %q left over", name, data, parser.retry, parser.comments, parser.line)
		}
	})
}

// FuzzHeaders sends hostile requests through HandleSSE: whatever they hold, the answer
// is one that the documentation knows, and a stream begins with an event that is whole.
func FuzzHeaders(f *testing.F) {
	f.Add("GET", "topic=a", "", "", "text/event-stream")
	f.Add("GET", "topic=a&topic=b&lastEventId=x", "AQAA", "https://example.com", "*/*")
	f.Add("OPTIONS", "topic=%zz", "", "https://evil.example.org", "")
	f.Add("HEAD", "topic=*", "", "null", "")
	f.Add("GET", "format=json&topic=a&since=1-1&topic=*&since=&topic=%00&since=x", "", "", "text/event-stream")
	f.Add("GET", "format=xml&topic=a", "", "", "text/event-stream")
	f.Add("POST", "", "", "", "")
	f.Add("GET", "topic=a;topic=b", "\xff", "://", "text/event-stream")
	f.Add("GET", "topic=%00&topic=%0d%0aX:1", "\r\nX: 1", "*", "")
	p := pushlet.New(pushlet.WithLogger(discard), pushlet.WithAllowedOrigins("https://example.com"), pushlet.WithMaxTopics(3))
	if err := p.Start(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { p.Stop() })
	documented := []int{http.StatusOK, http.StatusNoContent, http.StatusBadRequest, http.StatusMethodNotAllowed}
	f.Fuzz(func(t *testing.T, method, query, cursor, origin, accept string) {
		ctx, cancel := context.WithCancel(t.Context())
		r := (&http.Request{
			Method: method, URL: &url.URL{Path: "/events", RawQuery: query}, Host: "example.com",
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{"Last-Event-Id": {cursor}, "Origin": {origin}, "Accept": {accept}},
		}).WithContext(ctx)
		w := &firstEvent{ResponseRecorder: httptest.NewRecorder(), seen: cancel}
		p.HandleSSE(w, r)
		cancel()
		resp := w.Result()
		defer resp.Body.Close()
		if !slices.Contains(documented, resp.StatusCode) {
			t.Errorf("status %d", resp.StatusCode)
		}
		if allowed := resp.Header.Get("Access-Control-Allow-Origin"); allowed != "" && !strings.EqualFold(allowed, "https://example.com") {
			t.Errorf("origin %q is allowed", allowed)
		}
		for name, values := range resp.Header {
			if strings.ContainsAny(name+strings.Join(values, ""), "\r\n") {
				t.Errorf("header %q: %q", name, values)
			}
		}
		if resp.StatusCode != http.StatusOK || method == http.MethodHead {
			return
		}
		if values, _ := url.ParseQuery(query); values.Get("format") == "json" {
			if len(w.events) == 0 || w.events[0] != (event{name: "pushlet.heartbeat", data: "30000"}) {
				t.Fatalf("events %q of %q", w.events, w.Body)
			}
			return
		}
		if len(w.events) == 0 || w.events[0].name != "pushlet.connected" || !safeToken.MatchString(w.events[0].id) {
			t.Fatalf("events %q of %q", w.events, w.Body)
		}
		var h hello
		if err := json.Unmarshal([]byte(w.events[0].data), &h); err != nil || len(h.Topics) == 0 || len(h.Topics) > 3 || h.Resumed && cursor == "" && !strings.Contains(query, "lastEventId") {
			t.Errorf("connected %+v, %v", h, err)
		}
	})
}

// firstEvent records a response, and tells when there is an event in it.
type firstEvent struct {
	*httptest.ResponseRecorder
	parser eventParser
	events []event
	seen   func()
}

func (w *firstEvent) Write(b []byte) (int, error) {
	if w.events = append(w.events, w.parser.feed(b)...); len(w.events) > 0 {
		w.seen()
	}
	return w.ResponseRecorder.Write(b)
}

// FuzzPush sends any body to HandlePush: it is published as a whole or, with a reason, not at all.
func FuzzPush(f *testing.F) {
	for _, body := range []string{
		`{"uids":["u001"],"events":[{"event":"message","data":"hello_world"}]}`,
		`{"topics":["a","a","b"],"uids":["a"],"events":[{"data":{"a":[1,2]}},{"data":"\u0000\n"}]}`,
		`{"events":[{"data":null},{"event":"x","data":" "}]}`,
		`{"events":[{"data":"\ud800"}]}`,
		`{"UIDS":["a"],"events":[{"data":1e400}]}`,
		`{"uids":null}`, `{"uids":[],"events":[{"data":1}]}`, `{"uids":[null],"events":[{"data":1}]}`, `[]`, `{`, ``, `{"events":[{"data":"x"}]} x`,
		`{"topics":["*","@user","@user/a"],"events":[{"data":1}]}`,
		"{\"topics\":[\"\xff\"],\"events\":[{\"data\":\"\xff\"}]}",
		`{"events":[{"event":"pushlet.gap","data":"x"}]}`,
	} {
		f.Add(body, "")
		f.Add(body, "key")
	}
	p := newPushlet(f, pushlet.WithPushAuthorize(pushlet.AllowPush), pushlet.WithMaxMessageSize(1000), pushlet.WithMaxPushSize(4000))
	check(f, p.Start())
	var published uint64
	f.Fuzz(func(t *testing.T, body, key string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/push", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header["Idempotency-Key"] = []string{key}
		w := httptest.NewRecorder()
		p.HandlePush(w, r)
		var answer struct {
			Error  string
			Events []struct {
				Published, Duplicates, Clients uint64
				Error                          string
			}
		}
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatalf("%q: %v", w.Body, err)
		}
		now := p.Stats().Published
		n := now - published
		published = now
		switch w.Code {
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
			if answer.Error == "" || len(answer.Events) > 0 || n > 0 {
				t.Errorf("%q: %s, and %d published", body, w.Body, n)
			}
		case http.StatusOK:
			var want uint64
			for _, e := range answer.Events {
				want += e.Published
				if e.Error != "" || e.Published+e.Duplicates == 0 {
					t.Errorf("%q: %s", body, w.Body)
				}
			}
			if n != want || len(answer.Events) == 0 {
				t.Errorf("%q: %s, and %d published", body, w.Body, n)
			}
		default:
			t.Errorf("%q: status %d", body, w.Code)
		}
	})
}

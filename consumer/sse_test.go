package consumer_test

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usual2970/pushlet/consumer"
	"github.com/usual2970/pushlet/pushlettest"
)

// SSE from servers that are not Pushlet.

// scripted serves an answer for each attempt, and again the last. They stay within an event
// stream until the client goes if they call stay.
func scripted(t testing.TB, answers ...http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(inTurn(answers...))
	t.Cleanup(s.Close)
	return s
}

func inTurn(answers ...http.HandlerFunc) http.Handler {
	var n atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i := int(n.Add(1)) - 1
		answers[min(i, len(answers)-1)](w, r)
	})
}

func flush(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush() // it fails if the client has gone
}

// stream answers with an event stream.
func stream(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, text)
	}
}

// open is stream, and goes on until the client goes.
func open(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		stream(text)(w, r)
		flush(w)
		<-r.Context().Done()
	}
}

// broken is stream, and breaks.
func broken(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		stream(text)(w, r)
		flush(w)
		panic(http.ErrAbortHandler)
	}
}

// status answers with a status, and headers in pairs.
func status(code int, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
		if code != http.StatusNoContent {
			io.WriteString(w, "why\nand more\n")
		}
	}
}

// The position is that of the last event, also without data; what is not complete comes again;
// a server without IDs gets none.
func TestLastEventID(t *testing.T) {
	asked := make(chan string, 10)
	note := func(next http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			asked <- strings.Join(r.Header["Last-Event-Id"], ",")
			next(w, r)
		}
	}
	srv := scripted(t,
		note(stream("data: no id\n\n")),
		note(stream("id: 1\ndata: one\n\nid: 2\ndata: half")),
		note(broken("id: 2\ndata: two\n\nid: 3\n\nid: 4\n")),
		note(stream("data: five\n\n")), // keeps the ID
		note(status(503)),
		note(stream("id\ndata: six\n\n")), // takes it back
		note(stream("id: a…b\ndata: seven\n\n")),
		note(open("data: eight\n\n")),
	)
	l := listen(t, srv.URL, quickly)
	l.expect("no id", "one", "two", "five", "six", "seven", "eight")
	close(asked)
	var got []string
	for id := range asked {
		got = append(got, id)
	}
	if want := []string{"", "", "1", "3", "3", "3", "", "a…b"}; !slices.Equal(got, want) {
		t.Errorf("Last-Event-ID %q, want %q", got, want)
	}
	if err := l.retry(); !errors.Is(err, io.EOF) || err.Attempt != 1 {
		t.Errorf("%v, attempt %d", err, err.Attempt)
	}
	_ = l.retry()
	if err := l.retry(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a broken stream: %v", err)
	}
}

// An ID that no header can carry is a gap, not an endless failure.
func TestUnsendableID(t *testing.T) {
	srv := scripted(t, stream("id: a\x01b\ndata: one\n\n"), open("data: two\n\n"))
	l := listen(t, srv.URL, quickly)
	l.expect("one")
	l.expectGap(consumer.NotResumable)
	l.expect("two")
}

// More of them are in TestWPTAnswers.
func TestFinalAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"400":         {status(400, "Content-Type", "text/plain; charset=utf-8"), `status 400 Bad Request: "why"`},
		"401":         {status(401), "status 401 Unauthorized"},
		"403":         {status(403), "status 403 Forbidden"},
		"501":         {status(501), "status 501 Not Implemented"},
		"no location": {status(302), "status 302 Found"},
		"HTML":        {status(200, "Content-Type", "text/html"), `content type "text/html"`},
		"no type":     {status(200, "Content-Type", ""), `content type ""`},
		"alike":       {status(200, "Content-Type", "text/event-streams"), `content type "text/event-streams"`},
		"206":         {status(206, "Content-Type", "text/event-stream"), "status 206"},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, scripted(t, test.answer, open("data: never\n\n")).URL, quickly)
			err := l.end()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("final error %v, want %q", err, test.want)
			}
			var answer *consumer.ResponseError
			if !errors.As(err, &answer) || answer.Temporary() {
				t.Errorf("final error %#v", err)
			}
			if len(l.errs) > 0 {
				t.Errorf("error %v", <-l.errs)
			}
		})
	}
}

func TestTypeInCapitals(t *testing.T) {
	srv := scripted(t, status(200, "Content-Type", "Text/Event-Stream ;x=y"), open("data: x\n\n"))
	if err := listen(t, srv.URL, quickly).retry(); !errors.Is(err, io.EOF) {
		t.Errorf("error %v", err)
	}
}

// What is tried again waits longer each time, between 2 and 30 seconds, and at random; a
// connection that brings something begins anew; "retry:" and Retry-After are kept.
func TestBackOff(t *testing.T) {
	t.Run("doubles", func(t *testing.T) {
		waits, _ := attempts(t, 12, status(500))
		var longer, differ bool
		for i, wait := range waits {
			most := min(30*time.Second, 4*time.Second<<i)
			least := max(2*time.Second, most/2)
			if wait < least || wait > most {
				t.Errorf("wait %d is %v, want %v to %v", i, wait, least, most)
			}
			longer = longer || wait > 20*time.Second
			differ = differ || i > 5 && wait != waits[i-1]
		}
		if !longer || !differ {
			t.Errorf("waits %v", waits)
		}
	})
	t.Run("begins anew", func(t *testing.T) {
		waits, _ := attempts(t, 5, status(500), status(429), status(502), stream("data: x\n\n"), status(504))
		if waits[2] < 8*time.Second || waits[3] > 4*time.Second || waits[4] < 4*time.Second {
			t.Errorf("waits %v", waits)
		}
	})
	t.Run("an empty stream is a failure", func(t *testing.T) {
		if waits, _ := attempts(t, 4, stream("")); waits[3] < 15*time.Second {
			t.Errorf("waits %v", waits)
		}
	})
	t.Run("a long one is none", func(t *testing.T) {
		long := func(w http.ResponseWriter, r *http.Request) {
			stream(":\n")(w, r)
			flush(w)
			time.Sleep(time.Minute)
		}
		if waits, _ := attempts(t, 4, long); waits[3] > time.Minute+4*time.Second {
			t.Errorf("waits %v", waits)
		}
	})
	t.Run("retry", func(t *testing.T) {
		waits, _ := attempts(t, 9, stream("retry: 10000\n\n"), status(500), status(500), status(500), stream("retry: 100\ndata: x\n\n"))
		for i, want := range []time.Duration{10, 20, 15, 15} {
			if wait := waits[i]; wait < max(10, want/2)*time.Second || wait > 30*time.Second {
				t.Errorf("waits %v", waits)
			}
		}
		if waits[4] > 200*time.Millisecond || waits[8] > 200*time.Millisecond {
			t.Errorf("waits %v", waits)
		}
	})
	t.Run("a long retry", func(t *testing.T) {
		waits, _ := attempts(t, 5, stream("retry: 100000\n\n"), status(500))
		for _, wait := range waits {
			if wait < 100*time.Second || wait > 200*time.Second {
				t.Errorf("waits %v", waits)
			}
		}
	})
	t.Run("the longest retry", func(t *testing.T) {
		srv := scripted(t, stream("retry: 99999999999999999999\n\n"))
		if err := listen(t, srv.URL).retry(); err.Wait < 1<<61 {
			t.Errorf("wait %v", err.Wait)
		}
	})
	t.Run("Retry-After", func(t *testing.T) {
		waits, err := attempts(t, 2, status(503, "Retry-After", "100"), func(w http.ResponseWriter, r *http.Request) {
			status(429, "Retry-After", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))(w, r)
		})
		if waits[0] < 100*time.Second || waits[0] > 104*time.Second || waits[1] < 59*time.Minute || waits[1] > 61*time.Minute {
			t.Errorf("waits %v", waits)
		}
		var answer *consumer.ResponseError
		if !errors.As(err, &answer) || answer.Status != 503 || answer.RetryAfter != 100*time.Second || !strings.Contains(err.Error(), "503") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("interval", func(t *testing.T) {
		srv := scripted(t, status(500))
		l := listen(t, srv.URL, consumer.WithReconnectInterval(time.Millisecond, time.Millisecond))
		for i := range 5 {
			if err := l.retry(); err.Wait != time.Millisecond || err.Attempt != i+1 {
				t.Errorf("%+v", err)
			}
		}
	})
}

// attempts returns the first waits between attempts, in fake time, and the first error.
func attempts(t *testing.T, n int, answers ...http.HandlerFunc) (waits []time.Duration, failure error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		times := make(chan time.Time, 100)
		turn := inTurn(answers...)
		srv := pushlettest.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			times <- time.Now()
			turn.ServeHTTP(w, r)
		}))
		l := listen(t, pushlettest.URL, consumer.WithHTTPClient(srv.HTTPClient()))
		last := <-times
		for range n {
			now := <-times
			waits = append(waits, now.Sub(last))
			last = now
		}
		failure = l.retry()
	})
	return waits, failure
}

// A request that hangs, before or after the header, is given up.
func TestIdleBeforeTheAnswer(t *testing.T) {
	for _, answer := range []http.HandlerFunc{
		func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		open(""),
		open("data: half"),
	} {
		srv := scripted(t, answer, open("data: x\n\n"))
		l := listen(t, srv.URL, quickly, consumer.WithIdleTimeout(50*time.Millisecond))
		l.expect("x")
		if err := l.retry(); !errors.Is(err, consumer.ErrIdle) {
			t.Errorf("error %v", err)
		}
	}
}

func TestRequest(t *testing.T) {
	requests := make(chan *http.Request, 10)
	bodies := make(chan string, 10)
	note := func(next http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			requests <- r
			bodies <- string(b)
			next(w, r)
		}
	}
	srv := scripted(t, note(stream("data: x\n\n")), note(open("data: y\n\n")))
	t.Run("plain", func(t *testing.T) {
		listen(t, srv.URL+"/path?a=b&topic=c", quickly, consumer.WithTopics("d e")).expect("x", "y")
		for range 2 {
			r := <-requests
			if <-bodies != "" || r.Method != "GET" || r.Header.Get("Accept") != "text/event-stream" || r.Header.Get("Cache-Control") != "no-cache" ||
				r.URL.Path != "/path" || r.FormValue("a") != "b" || !slices.Equal(r.Form["topic"], []string{"c", "d e"}) {
				t.Errorf("request %+v", r)
			}
		}
	})
	srv = scripted(t, note(stream("data: x\n\n")), note(open("data: y\n\n")))
	t.Run("custom", func(t *testing.T) {
		n := 0
		l := listen(t, srv.URL, quickly, consumer.WithMethod("POST"), consumer.WithBody("application/json", []byte(`{"prompt":1}`)),
			consumer.WithHeader("authorization", "one"), consumer.WithHeader("Host", "example.com"), consumer.WithHeader("Accept", "text/event-stream, */*"),
			consumer.WithHeaderFunc(func(context.Context) (http.Header, error) {
				if n++; n == 2 {
					return nil, io.ErrClosedPipe
				}
				return http.Header{"Authorization": {fmt.Sprint(n)}}, nil
			}))
		l.expect("x", "y")
		for _, token := range []string{"1", "3"} {
			r := <-requests
			if <-bodies != `{"prompt":1}` || r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" || r.Host != "example.com" ||
				!slices.Equal(r.Header["Authorization"], []string{token}) || !slices.Equal(r.Header["Accept"], []string{"text/event-stream, */*"}) {
				t.Errorf("request %+v", r)
			}
		}
		_ = l.retry()
		if err := l.retry(); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("error %v", err)
		}
	})
}

// Redirects are followed, anew each time, with method and body where the status says so.
func TestRedirects(t *testing.T) {
	for _, code := range []int{301, 302, 303, 307, 308} {
		var first atomic.Int64
		asked := make(chan string, 10)
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			first.Add(1)
			http.Redirect(w, r, "/there", code)
		})
		turn := inTurn(stream("id: 1\ndata: x\n\n"), open("data: y\n\n"))
		mux.HandleFunc("/there", func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			asked <- r.Method + string(b) + r.Header.Get("Last-Event-ID") + r.Header.Get("X-Mine")
			turn.ServeHTTP(w, r)
		})
		srv := httptest.NewServer(mux)
		l := listen(t, srv.URL, quickly, consumer.WithMethod("POST"), consumer.WithBody("text/plain", []byte("b")), consumer.WithHeader("X-Mine", "m"))
		l.expect("x", "y")
		want := []string{"GETm", "GET1m"}
		if code >= 307 {
			want = []string{"POSTbm", "POSTb1m"}
		}
		if got := []string{<-asked, <-asked}; !slices.Equal(got, want) || first.Load() != 2 {
			t.Errorf("%d: asked %q, %d times redirected", code, got, first.Load())
		}
		l.stop()
		_ = l.end()
		srv.Close()
	}
	// Round in circles: it is not the client that has to give up.
	srv := scripted(t, status(302, "Location", "/"))
	if err := listen(t, srv.URL, quickly).retry(); !strings.Contains(err.Error(), "10 redirects") {
		t.Errorf("error %v", err)
	}
}

// gzip comes event by event, whoever has asked for it.
func TestGzip(t *testing.T) {
	srv := scripted(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			t.Errorf("Accept-Encoding %q", r.Header["Accept-Encoding"])
		}
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Content-Encoding", "gzip")
		flush(w)
		z := gzip.NewWriter(w)
		for _, text := range []string{"data: one\n\n", "data: two\n\n"} {
			io.WriteString(z, text)
			_ = z.Flush() // into w
			flush(w)
		}
		<-r.Context().Done()
	})
	listen(t, srv.URL).expect("one", "two")
	listen(t, srv.URL, consumer.WithHeader("Accept-Encoding", "gzip")).expect("one", "two")
	srv = scripted(t, status(200, "Content-Type", "text/event-stream", "Content-Encoding", "br"))
	if err := listen(t, srv.URL).retry(); !strings.Contains(err.Error(), `"br"`) {
		t.Errorf("error %v", err)
	}
}

// Both protocols go through the proxy of the http.Client.
func TestProxy(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		p := start(t)
		used := make(chan string, 10)
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			used <- r.Method
			if r.Method != http.MethodConnect {
				(&httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}, FlushInterval: -1}).ServeHTTP(w, r)
				return
			}
			to, err := net.Dial("tcp", r.Host)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			defer to.Close()
			w.WriteHeader(http.StatusOK)
			from, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer from.Close()
			go func() {
				io.Copy(to, buffered) // net/http may have read a byte already
				to.Close()
			}()
			io.Copy(from, to)
		}))
		defer proxy.Close()
		u, err := url.Parse(proxy.URL)
		must(t, err)
		client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(u)}, Timeout: time.Nanosecond} // which is not used
		l := listen(t, path(serve(t, p).URL)+"?topic=a", consumer.WithHTTPClient(client))
		l.subscribed("a")
		must(t, p.Publish("a", "message", "x"))
		l.expect("x")
		if method := <-used; method == http.MethodConnect != strings.HasPrefix(path(""), "ws") {
			t.Errorf("the proxy was asked for %s", method)
		}
		l.stop()
		_ = l.end()
	})
}

// Headers of the server that are too long are an error, and not the end.
func TestHeaderLimit(t *testing.T) {
	srv := scripted(t, status(200, "X-Long", strings.Repeat("x", 10_000)), open("data: x\n\n"))
	client := &http.Client{Transport: &http.Transport{MaxResponseHeaderBytes: 5000, DisableKeepAlives: true}}
	l := listen(t, srv.URL, quickly, consumer.WithHTTPClient(client))
	l.expect("x")
	if err := l.retry(); !strings.Contains(err.Error(), "header") {
		t.Errorf("error %v", err)
	}
}

// Huge lines, in one event and in many.
func TestHugeLines(t *testing.T) {
	large := strings.Repeat("ä", 2<<20)
	srv := scripted(t, open("data: "+large+"\n\n:"+large+"\ndata: y\n\n"))
	listen(t, srv.URL).expect(large, "y")
}

// An event stream of others may use names that begin with "pushlet.", too: they are passed
// over, but for the gap.
func TestReservedEvents(t *testing.T) {
	srv := scripted(t,
		stream("event: pushlet.connected\ndata: not JSON\n\nevent: pushlet.new\ndata: x\n\nevent: pushlet.gap\ndata: odd\n\nid: 1\nevent: pushlet.disconnected\ndata: {\"reason\":\"because\"}\n\n"),
		open("event: pushlet.gap\ndata: {\"topics\":[\"a\",\"*\"],\"reason\":\"trimmed\"}\n\ndata: y\n\n"))
	l := listen(t, srv.URL, quickly)
	l.expectGap("odd")
	l.expectGap("trimmed", "a", "*")
	l.expect("y")
	if err := l.retry(); !strings.Contains(err.Error(), "because") || !errors.Is(err, io.EOF) {
		t.Errorf("error %v", err)
	}
}

func TestMistakes(t *testing.T) {
	for name, c := range map[string]*consumer.Client{
		"scheme":          consumer.NewClient("ftp://example.com/"),
		"no scheme":       consumer.NewClient("example.com"),
		"no host":         consumer.NewClient("http:///events"),
		"no URL":          consumer.NewClient("http://[::1/%zz"),
		"method":          consumer.NewClient("http://example.com", consumer.WithMethod("A B")),
		"interval":        consumer.NewClient("http://example.com", consumer.WithReconnectInterval(2, 1)),
		"WebSocket's own": consumer.NewClient("ws://example.com", consumer.WithHeader("upgrade", "h2c")),
		"no interval":     consumer.NewClient("http://example.com", consumer.WithReconnectInterval(0, 1)),
		"topic":           consumer.NewClient("http://example.com", consumer.WithTopics("")),
		"password":        consumer.NewClient("ws://a:b@example.com"),
		"transport":       consumer.NewClient("ws://example.com", consumer.WithHTTPClient(&http.Client{Transport: odd{}})),
	} {
		for m, err := range c.Messages(t.Context()) {
			if err == nil || !strings.HasPrefix(err.Error(), "consumer: ") || strings.Contains(err.Error(), "zz") {
				t.Errorf("%s: %+v, %v", name, m, err)
			}
		}
		if c.Start() == nil || c.Connect() == nil || c.Subscribe("a") == nil || c.Unsubscribe("a") == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c := consumer.NewClient("http://example.com")
	if err := c.Subscribe("a"); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if err := consumer.NewClient("ws://example.com").Subscribe(""); err == nil {
		t.Error("an empty topic")
	}
}

type odd struct{}

func (odd) RoundTrip(*http.Request) (*http.Response, error) { return nil, io.EOF }

// The cause of the context is what ends it, wherever it is.
func TestContext(t *testing.T) {
	reason := errors.New("enough")
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, url := range map[string]string{
		"in a stream":      scripted(t, open("")).URL,
		"before an answer": scripted(t, hang).URL,
		"in the handshake": "ws" + strings.TrimPrefix(scripted(t, hang).URL, "http"),
		"between attempts": scripted(t, status(500)).URL,
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(50*time.Millisecond, func() { cancel(reason) })
		n := 0
		for m, err := range consumer.Subscribe(ctx, url, consumer.WithOnError(func(error) {})) {
			if n++; !errors.Is(err, reason) {
				t.Errorf("%s: %+v, %v", name, m, err)
			}
		}
		if n != 1 {
			t.Errorf("%s: %d elements", name, n)
		}
		for _, err := range consumer.Subscribe(ctx, url) { // from the start
			if !errors.Is(err, reason) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// Nothing is handed over after the context has ended, and what was not comes again.
func TestCancelInTheBody(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		p := start(t)
		c := consumer.NewClient(path(serve(t, p).URL) + "?topic=a")
		c.OnSubscribed(func(string) {
			if p.Stats().Published == 0 {
				for i := range 10 {
					must(t, p.Publish("a", "message", fmt.Sprint(i)))
				}
			}
		})
		var got []string
		for len(got) < 10 {
			ctx, cancel := context.WithCancel(t.Context())
			n := len(got)
			for m, err := range c.Messages(ctx) {
				if err == nil {
					got = append(got, m.Data)
					cancel()
				}
			}
			if cancel(); len(got) != n+1 {
				t.Errorf("%d messages, want 1", len(got)-n)
			}
		}
		if want := []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}; !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
	})
}

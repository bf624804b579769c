package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/usual2970/pushlet"
)

// byName makes the user that a request names its own.
var byName = pushlet.WithIdentity(func(r *http.Request) (string, error) { return r.URL.Query().Get("user"), nil })

// TestPub sends to each kind of audience, from each kind of source.
func TestPub(t *testing.T) {
	t.Parallel()
	s := newServer(t, []pushlet.Option{byName})
	p := start(t, "sub", "ws://"+s.addr+"?user=ann", "-topic", "a", "-topic", "b")
	p.says("following @user", 1)
	p.says("following b", 1)
	for _, c := range []struct {
		input, args, want, answer string
	}{
		{"", "-topic a hello world", "a message hello world", "published 1 message, 1 client of this instance\n"},
		{"", "-topic a -event news -data x", "a news x", "published 1 message, 1 client of this instance\n"},
		{"", "-user ann x", "@user message x", "published 1 message, 1 client of this instance\n"},
		{"", "-all x", "* message x", "published 1 message, 1 client of this instance\n"},
		{"", "-topic nobody -user bob -topic b x", "b message x", "published 3 messages, 1 client of this instance\n"},
		{"", "-topic a -data=", "a message ", "published 1 message, 1 client of this instance\n"},
		{" in \n\n", "-topic a", "a message  in \n             ", "published 1 message, 1 client of this instance\n"},
		{"", "-topic a -json {\"a\":1}", "a message {\"a\":1}", `{"events":[{"published":1,"duplicates":0,"clients":1}]}` + "\n"},
		{"", "-topic a -- -x", "a message -x", "published 1 message, 1 client of this instance\n"},
	} {
		stdout, stderr := runs(t, exitOK, c.input, append([]string{"pub", s.addr}, strings.Fields(c.args)...)...)
		if stdout != c.answer || stderr != "" {
			t.Errorf("%s: printed %q, said %q, want %q", c.args, stdout, stderr, c.answer)
		}
		p.expect(c.want)
	}
	// What has a key of its own is published once, however often it is sent.
	for _, want := range []string{"published 1 message, 1 client", "published 1 message (1 of them before, with the same key), "} {
		stdout, _ := runs(t, exitOK, "", "pub", s.addr, "-topic", "a", "-key", "K", "once")
		if !strings.HasPrefix(stdout, want) {
			t.Errorf("with a key: printed %q, want %q", stdout, want)
		}
	}
	p.expect("a message once")
	s.publish("a", "", "end")
	p.expect("a message end")
}

// TestPubLines: each line is a message as it comes, in order, whatever the batches are.
func TestPubLines(t *testing.T) {
	t.Parallel()
	var requests atomic.Int64
	s := newServer(t, nil, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/push" {
				requests.Add(1)
			}
			next.ServeHTTP(w, r)
		})
	})
	sub := start(t, "sub", s.addr, "-topic", "a", "-raw")
	sub.says("following a", 1)
	pub := start(t, "pub", s.addr, "-topic", "a", "-lines")
	for _, text := range []string{"one", "two"} { // each comes before the next is written
		fmt.Fprintln(pub.stdin, text)
		if got := sub.line(); got != text {
			t.Fatalf("got %q, want %q", got, text)
		}
	}
	const n = 2000
	go func() { // ends with the test's process of pub at the latest
		for i := range n {
			fmt.Fprintln(pub.stdin, i)
		}
		io.WriteString(pub.stdin, "\r\nlast")
		pub.stdin.Close()
	}()
	for i := range n {
		if got := sub.line(); got != fmt.Sprint(i) {
			t.Fatalf("got %q, want %d", got, i)
		}
	}
	if a, b := sub.line(), sub.line(); a != "" || b != "last" {
		t.Errorf("got %q and %q", a, b)
	}
	if got, want := pub.ends(exitOK), "published 2,004 messages, up to 1 client of this instance\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if n := requests.Load(); n > 1000 {
		t.Errorf("%d requests", n)
	}

	// With a key the second run publishes only what the first did not.
	runs(t, exitOK, "x\ny\n", "pub", s.addr, "-topic", "a", "-lines", "-key", "K")
	stdout, _ := runs(t, exitOK, "x\ny\nz\n", "pub", s.addr, "-topic", "a", "-lines", "-key", "K")
	if !strings.Contains(stdout, "published 3 messages (2 of them before") {
		t.Errorf("printed %q", stdout)
	}
	for _, want := range []string{"x", "y", "z"} {
		if got := sub.line(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}

	// An interrupt ends it between requests.
	pub = start(t, "pub", s.addr, "-topic", "a", "-lines")
	fmt.Fprintln(pub.stdin, "before")
	if got := sub.line(); got != "before" {
		t.Errorf("got %q", got)
	}
	pub.interrupt()
	if got := pub.ends(exitOK); !strings.HasPrefix(got, "published 1 message,") {
		t.Errorf("printed %q", got)
	}

	// What was not published is told by its lines.
	_, stderr := runs(t, exitFailed, "x\n", "pub", s.addr, "-topic", "a", "-lines", "-event", "pushlet.x")
	if !strings.Contains(stderr, "line 1: status 400 Bad Request: events[0]: pushlet: reserved name") {
		t.Errorf("said %q", stderr)
	}
}

// faults stands in front of HandlePush and counts requests.
type faults struct {
	requests atomic.Int64
	serve    func(n int64, w http.ResponseWriter, r *http.Request, push http.Handler)
}

func (f *faults) middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/push" {
			next.ServeHTTP(w, r)
			return
		}
		f.serve(f.requests.Add(1), w, r, next)
	})
}

// swallow lets a request through and breaks the connection instead of answering.
func swallow(r *http.Request, push http.Handler) {
	push.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// TestPubRetries: what fails for a while is published once, with the same key each time.
func TestPubRetries(t *testing.T) {
	t.Parallel()
	keys := make(chan string, 10)
	f := &faults{serve: func(n int64, w http.ResponseWriter, r *http.Request, push http.Handler) {
		keys <- r.Header.Get("Idempotency-Key")
		switch n {
		case 1:
			swallow(r, push)
		case 2:
			w.Header().Set("Retry-After", "0")
			http.Error(w, "slowly", http.StatusTooManyRequests)
		case 3:
			http.Error(w, "later", http.StatusServiceUnavailable)
		default:
			push.ServeHTTP(w, r)
		}
	}}
	s := newServer(t, nil, f.middleware)
	sub := start(t, "sub", s.addr, "-topic", "a", "-raw")
	sub.says("following a", 1)
	stdout, stderr := runs(t, exitOK, "", "pub", s.addr, "-topic", "a", "once")
	if !strings.HasPrefix(stdout, "published 1 message (1 of them before") || strings.Count(stderr, "next attempt in") < 2 {
		t.Errorf("printed %q, said %q", stdout, stderr)
	}
	if got := sub.line(); got != "once" {
		t.Errorf("got %q", got)
	}
	s.publish("a", "", "end")
	if got := sub.line(); got != "end" {
		t.Errorf("got %q: published twice", got)
	}
	first := <-keys
	for range f.requests.Load() - 1 {
		if key := <-keys; key != first || key == "" {
			t.Errorf("keys %q and %q", first, key)
		}
	}
}

// TestPubOutcome: the exit code tells what surely was not published from what perhaps was.
func TestPubOutcome(t *testing.T) {
	t.Parallel()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	nobody.Close()
	denied := pushlet.WithPushAuthorize(func(r *http.Request) error {
		switch r.Header.Get("Authorization") {
		case "":
			return fmt.Errorf("%w: who are \x1byou", pushlet.ErrUnauthenticated)
		case "Bearer T1":
			return nil
		}
		return errors.New("not you")
	})
	for name, c := range map[string]struct {
		args   string
		code   int
		stderr string
		serve  func(n int64, w http.ResponseWriter, r *http.Request, push http.Handler)
		tries  int64 // 0: any
	}{
		"nobody there":    {"-retries 1", exitFailed, "connection refused", nil, 0},
		"unauthenticated": {"", exitFailed, `status 401 Unauthorized: pushlet: unauthenticated: who are \x1byou`, nil, 1},
		"forbidden":       {"-token T2", exitFailed, "status 403 Forbidden: not you", nil, 1},
		"invalid":         {"-token T1 -event pushlet.x", exitFailed, "status 400 Bad Request: events[0]: pushlet: reserved name", nil, 1},
		"never answered": {"-token T1 -retries 1", exitUncertain, "perhaps published", func(_ int64, _ http.ResponseWriter, r *http.Request, push http.Handler) {
			swallow(r, push)
		}, 0}, // net/http tries once more by itself
		"late": {"-token T1 -retries 0 -timeout 200ms", exitUncertain, "perhaps published: no answer within 200ms", func(_ int64, _ http.ResponseWriter, r *http.Request, _ http.Handler) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}, 1},
		"bad gateway": {"-token T1 -retries 0", exitUncertain, "perhaps published: status 502", func(_ int64, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			http.Error(w, "", http.StatusBadGateway)
		}, 1},
		"then refused": {"-token T1 -retries 1 -timeout 200ms", exitUncertain, "perhaps published: status 403", func(n int64, w http.ResponseWriter, r *http.Request, _ http.Handler) {
			if n == 1 {
				io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
				return
			}
			http.Error(w, "", http.StatusForbidden)
		}, 2},
		"unavailable": {"-token T1 -retries 1", exitFailed, "status 503", func(_ int64, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			http.Error(w, "", http.StatusServiceUnavailable)
		}, 2},
		"an event fails": {"-token T1 -retries 1", exitFailed, "events[0]: pushlet: unavailable\\x1b", func(_ int64, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			answerJSON(w, http.StatusServiceUnavailable, pushResult{Published: 1, Error: pushlet.ErrUnavailable.Error() + "\x1b"})
		}, 2},
		"an event is uncertain": {"-token T1 -retries 0", exitUncertain, "events[0]: pushlet: perhaps published", func(_ int64, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			answerJSON(w, http.StatusServiceUnavailable, pushResult{Error: pushlet.ErrUncertain.Error()})
		}, 1},
		"another server": {"", exitFailed, "not from HandlePush", func(_ int64, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			io.WriteString(w, "<title>hello</title>")
		}, 1},
		"elsewhere": {"", exitFailed, "status 302 Found: to /login", func(_ int64, w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, "/login", http.StatusFound)
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &faults{serve: c.serve}
			if c.serve == nil {
				f.serve = func(_ int64, w http.ResponseWriter, r *http.Request, push http.Handler) { push.ServeHTTP(w, r) }
			}
			s := newServer(t, []pushlet.Option{denied}, f.middleware)
			addr := s.addr
			if name == "nobody there" {
				addr = nobody.Addr().String()
			}
			stdout, stderr := runs(t, c.code, "", append([]string{"pub", addr, "-topic", "a", "-data", "x"}, strings.Fields(c.args)...)...)
			if stdout != "" || !strings.Contains(stderr, c.stderr) {
				t.Errorf("printed %q, said %q, want %q", stdout, stderr, c.stderr)
			}
			if n := f.requests.Load(); c.tries != 0 && n != c.tries {
				t.Errorf("%d requests, want %d", n, c.tries)
			}
		})
	}
}

func answerJSON(w http.ResponseWriter, status int, results ...pushResult) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"events": results}) // if it fails, nobody listens
}

// TestPubInterrupted: who interrupts a request does not know what has become of it.
func TestPubInterrupted(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{}, 1)
	f := &faults{serve: func(_ int64, _ http.ResponseWriter, r *http.Request, _ http.Handler) {
		io.Copy(io.Discard, r.Body)
		arrived <- struct{}{}
		<-r.Context().Done()
	}}
	s := newServer(t, nil, f.middleware)
	p := start(t, "pub", s.addr, "-topic", "a", "x")
	<-arrived
	p.interrupt()
	p.ends(exitUncertain)
}

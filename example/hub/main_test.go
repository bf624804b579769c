package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/usual2970/pushlet"
)

// patience is how long a test waits for what should happen soon.
const patience = 60 * time.Second

// programEnv makes this a process of the program instead of its test.
const programEnv = "PUSHLET_EXAMPLE_HUB"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		main()
		return
	}
	gin.SetMode(gin.ReleaseMode)
	os.Exit(m.Run())
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve starts p and serves handler, until the test ends, and returns the address.
func serve(t *testing.T, p *pushlet.Pushlet, handler http.Handler) string {
	t.Helper()
	check(t, p.Start())
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(complaints{t}, "", 0)
	server.Start()
	t.Cleanup(func() {
		check(t, p.Stop())
		server.Close()
	})
	return server.URL
}

// complaints fails the test for what net/http says about a handler.
type complaints struct{ t *testing.T }

func (c complaints) Write(b []byte) (int, error) {
	c.t.Errorf("net/http: %s", b)
	return len(b), nil
}

// ask sends a request with a body of JSON, if there is one.
func ask(t *testing.T, method, url, body string, header ...string) (status int, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	check(t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(t, err)
	return resp.StatusCode, string(b)
}

// A stream is a connection to an event stream.
type stream struct {
	t        *testing.T
	body     io.Closer
	lines    *bufio.Scanner
	encoding string // of the body
}

func follow(t *testing.T, url string, header ...string) *stream {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	check(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s answers %s of type %s", url, resp.Status, resp.Header.Get("Content-Type"))
	}
	s := &stream{t: t, body: resp.Body, encoding: resp.Header.Get("Content-Encoding")}
	var body io.Reader = resp.Body
	if s.encoding == "gzip" {
		defer time.AfterFunc(patience, func() { resp.Body.Close() }).Stop()
		body, err = gzip.NewReader(resp.Body)
		check(t, err)
	}
	s.lines = bufio.NewScanner(body)
	s.expect("pushlet.connected", "{")
	return s
}

// next returns the next event; ok is false at the end of the stream.
func (s *stream) next() (name, data string, ok bool) {
	defer time.AfterFunc(patience, func() { s.body.Close() }).Stop()
	name = "message"
	for s.lines.Scan() {
		field, value, _ := strings.Cut(s.lines.Text(), ": ")
		switch field {
		case "event":
			name = value
		case "data":
			data = value
		case "":
			if data != "" {
				return name, data, true
			}
		}
	}
	return "", "", false
}

// expect checks that the next event has this name, and data that begins so.
func (s *stream) expect(name, data string) {
	s.t.Helper()
	gotName, gotData, ok := s.next()
	if !ok {
		s.t.Fatalf("the stream ends before %s %s: %v", name, data, s.lines.Err())
	}
	if gotName != name || !strings.HasPrefix(gotData, data) {
		s.t.Fatalf("got %s %s, want %s %s", gotName, gotData, name, data)
	}
}

const (
	toOne = `{"uids":["u001"],"events":[{"event":"message","data":"hello_world"}]}`
	toAll = `{"events":[{"event":"message","data":"hello_world"}]}`
)

// TestHub runs the program's commands with curl.
func TestHub(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip(err)
	}
	p := newHub("")
	base := serve(t, p, routes(p))
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), curl, append([]string{"-sS"}, args...)...).Output()
		check(t, err)
		return string(out)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, curl, "-sSN", base+"/events?uid=u001")
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	u001 := &stream{t: t, body: out, lines: bufio.NewScanner(out)}
	u001.expect("pushlet.connected", "{")
	u002 := follow(t, base+"/events?uid=u002")
	u002again := follow(t, base+"/events?uid=u002")

	for _, c := range []struct{ body, want string }{
		{toOne, `{"events":[{"published":1,"duplicates":0,"clients":1}]}`},
		{toAll, `{"events":[{"published":1,"duplicates":0,"clients":3}]}`},
		{`{"uids":["u002"],"events":[{"event":"last","data":{"n":1}}]}`, `{"events":[{"published":1,"duplicates":0,"clients":2}]}`},
	} {
		got := run("-X", "POST", "-H", "Content-Type: application/json", "-d", c.body, base+"/push")
		if strings.TrimSpace(got) != c.want {
			t.Errorf("%s is answered with %s, want %s", c.body, got, c.want)
		}
	}
	u001.expect("message", "hello_world")
	u001.expect("message", "hello_world")
	for _, s := range []*stream{u002, u002again} {
		s.expect("message", "hello_world")
		s.expect("last", `{"n":1}`)
	}
	if got := run(base + "/stats"); !strings.HasPrefix(got, "clients=3 sse=3 websocket=0 users=2 ") {
		t.Errorf("/stats says %s", got)
	}
	cancel()
	if err := cmd.Wait(); err == nil {
		t.Error("curl ended by itself")
	}

	// Without the type the body could come from a page of any site.
	if got := run("-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "-d", toAll, base+"/push"); got != "415" {
		t.Errorf("without a Content-Type: %s, want 415", got)
	}
}

// TestPushAuthorize: who may push, with a token and without.
func TestPushAuthorize(t *testing.T) {
	for _, c := range []struct {
		token, from, authorization string
		want                       int
	}{
		{"", "127.0.0.1:1", "", http.StatusOK},
		{"", "[::1]:1", "", http.StatusOK},
		{"", "192.0.2.1:1", "", http.StatusForbidden},
		{"", "", "", http.StatusForbidden},
		{"secret", "127.0.0.1:1", "", http.StatusUnauthorized},
		{"secret", "192.0.2.1:1", "Bearer wrong", http.StatusUnauthorized},
		{"secret", "192.0.2.1:1", "Bearer secret", http.StatusOK},
	} {
		p := newHub(c.token)
		check(t, p.Start())
		r := httptest.NewRequest(http.MethodPost, "/push", strings.NewReader(toAll))
		r.RemoteAddr = c.from
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", c.authorization)
		w := httptest.NewRecorder()
		routes(p).ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%+v: status %d %s", c, w.Code, w.Body)
		}
		check(t, p.Stop())
	}
}

// TestAnswers: the page is there, a guest gets a name, and a user who can be none is refused.
func TestAnswers(t *testing.T) {
	p := newHub("")
	base := serve(t, p, routes(p))
	if status, text := ask(t, http.MethodGet, base, ""); status != http.StatusOK || !strings.Contains(text, "<title>Pushlet") {
		t.Errorf("the page is %d %.60q", status, text)
	}
	follow(t, base+"/events")
	if n := p.Stats().Users; n != 1 {
		t.Errorf("%d users, want 1", n)
	}
	if status, _ := ask(t, http.MethodGet, base+"/events?uid=%0A", ""); status != http.StatusUnauthorized {
		t.Errorf("a uid with a line feed is answered with %d, want 401", status)
	}
	for body, want := range map[string]string{
		`{"uids":[],"events":[{"data":"x"}]}`:      "uids: empty",
		`{"uids":["a",""],"events":[{"data":""}]}`: "uids[1]",
		`{"uid":["a"],"events":[{"data":"x"}]}`:    `unknown field "uid"`,
		`{"uids":["a"]}`:                           "events: missing",
		`{"uids":["a"],"events":[{}]}`:             "events[0].data: missing",
	} {
		status, text := ask(t, http.MethodPost, base+"/push", body)
		var answer struct{ Error string }
		if err := json.Unmarshal([]byte(text), &answer); err != nil || status != http.StatusBadRequest || !strings.Contains(answer.Error, want) {
			t.Errorf("%s is answered with %d %s, want 400 with %q", body, status, text, want)
		}
	}
}

// TestProgram runs the program until it is interrupted.
func TestProgram(t *testing.T) {
	self, err := os.Executable()
	check(t, err)
	cmd := exec.CommandContext(t.Context(), self, "-addr", "127.0.0.1:0", "-every", "10ms")
	cmd.Env = append(os.Environ(), programEnv+"=1", "PUSH_TOKEN=secret")
	var rest bytes.Buffer
	stderr, err := cmd.StderrPipe()
	check(t, err)
	check(t, cmd.Start())
	var base string
	lines := bufio.NewScanner(stderr)
	for base == "" && lines.Scan() {
		_, base, _ = strings.Cut(lines.Text(), "Server started at ")
	}
	s := follow(t, base+"/events?uid=u001")
	var first int
	_, data, _ := s.next()
	if _, err := fmt.Sscanf(data, "hello_world_%d", &first); err != nil {
		t.Fatalf("the first event is %q: %v", data, err)
	}
	s.expect("message", fmt.Sprintf("hello_world_%d", first+1))
	s.expect("message", fmt.Sprintf("hello_world_%d", first+2))
	if status, _ := ask(t, http.MethodPost, base+"/push", toAll); status != http.StatusUnauthorized {
		t.Errorf("a push without the token is answered with %d, want 401", status)
	}
	if status, _ := ask(t, http.MethodPost, base+"/push", toOne, "Authorization", "Bearer secret"); status != http.StatusOK {
		t.Errorf("a push with the token is answered with %d, want 200", status)
	}
	check(t, cmd.Process.Signal(syscall.SIGTERM))
	for ok := true; ok; _, _, ok = s.next() {
	}
	if err := s.lines.Err(); err != nil {
		t.Errorf("the stream ends with %v", err)
	}
	if _, err := io.Copy(&rest, stderr); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, rest.String())
	}
}

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what should happen soon.
const patience = 60 * time.Second

// programEnv makes this a process of the program instead of its test.
const programEnv = "PUSHLET_EXAMPLE_ZONES"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		main()
		return
	}
	log.SetOutput(&logged)
	os.Exit(m.Run())
}

// logged is what the program has said.
var logged lockedBuffer

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain until ", what)
		}
	}
}

// newServer serves the program's routes until the test ends, and returns the address.
func newServer(t *testing.T) string {
	t.Helper()
	z := newZones(0)
	check(t, z.p.Start())
	server := httptest.NewServer(z.routes())
	t.Cleanup(func() {
		check(t, z.p.Stop())
		server.Close()
	})
	return server.URL
}

func get(t *testing.T, url string) (status int, text string) {
	t.Helper()
	resp, err := http.Get(url)
	check(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(t, err)
	return resp.StatusCode, string(b)
}

// send sends what the query says, and returns how many connections that reached.
func send(t *testing.T, base, query string) int {
	t.Helper()
	status, text := get(t, base+"/send?"+query)
	var answer struct{ Clients *int }
	if err := json.Unmarshal([]byte(text), &answer); err != nil || status != http.StatusOK || answer.Clients == nil {
		t.Fatalf("/send?%s answers %d %s", query, status, text)
	}
	return *answer.Clients
}

type event struct{ id, name, data string }

// A stream is a connection to /server.
type stream struct {
	t      *testing.T
	body   io.ReadCloser
	lines  *bufio.Scanner
	client string
	last   string // ID of an event
}

func connect(t *testing.T, base, query, lastEventID string) *stream {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/server?"+query, nil)
	check(t, err)
	if lastEventID != "" {
		req.Header.Set("Last-Event-ID", lastEventID)
	}
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("/server?%s answers %s", query, resp.Status)
	}
	s := &stream{t: t, body: resp.Body, lines: bufio.NewScanner(resp.Body)}
	hello := s.next()
	var data struct{ Client string }
	check(t, json.Unmarshal([]byte(hello.data), &data))
	if s.client = data.Client; hello.name != "pushlet.connected" || s.client == "" {
		t.Fatalf("the stream begins with %v", hello)
	}
	return s
}

// next returns the next event.
func (s *stream) next() (e event) {
	s.t.Helper()
	defer time.AfterFunc(patience, func() { s.body.Close() }).Stop()
	e.name = "message"
	for s.lines.Scan() {
		field, value, _ := strings.Cut(s.lines.Text(), ": ")
		switch field {
		case "id":
			e.id = value
		case "event":
			e.name = value
		case "data":
			e.data = value
		case "":
			if e.data != "" {
				s.last = e.id
				return e
			}
		}
	}
	s.t.Fatal("the stream ended: ", s.lines.Err())
	return e
}

// expect checks the messages that come next. Who comes and goes is left out.
func (s *stream) expect(want ...string) {
	s.t.Helper()
	for _, want := range want {
		e := s.next()
		for e.name == "join" || e.name == "leave" {
			e = s.next()
		}
		var m message
		check(s.t, json.Unmarshal([]byte(e.data), &m))
		if got := fmt.Sprintf("%s to %s: %s", e.name, m.To, m.Msg); got != want {
			s.t.Fatalf("got %q, want %q", got, want)
		}
		if age := time.Since(time.UnixMilli(m.Time)); age < -time.Second || age > 2*patience {
			s.t.Errorf("%q was sent %v ago", want, age)
		}
	}
}

// TestAddressing sends to each kind of address. Three connections: two of red, one of blue.
func TestAddressing(t *testing.T) {
	base := newServer(t)
	ann := connect(t, base, "zone=red&user=ann", "")
	guest := connect(t, base, "zone=red", "")
	blue := connect(t, base, "zone=blue&user=ann&topic=zones/red", "") // which is none of theirs
	for _, c := range []struct {
		query string
		want  int
	}{
		{"zone=red&user=ann&content=to+ann", 1},
		{"zone=blue&user=ann&content=to+the+other+ann", 1},
		{"zone=red&content=to+red&event=news", 2},
		{"zone=green&content=nobody", 0},
		{"zone=red&user=bob&content=nobody", 0},
		{"content=to+all", 3},
	} {
		if n := send(t, base, c.query); n != c.want {
			t.Errorf("/send?%s reaches %d connections, want %d", c.query, n, c.want)
		}
	}
	ann.expect("customEvent to user: to ann", "news to zone: to red", "customEvent to everyone: to all")
	guest.expect("news to zone: to red", "customEvent to everyone: to all")
	blue.expect("customEvent to user: to the other ann", "customEvent to everyone: to all")

	// Without a zone it is the default one.
	plain := connect(t, base, "", "")
	if n := send(t, base, "zone=default&content=hello"); n != 1 {
		t.Errorf("the default zone has %d connections, want 1", n)
	}
	plain.expect("customEvent to zone: hello")
	resp, err := http.PostForm(base+"/send", url.Values{"content": {"by POST"}})
	check(t, err)
	resp.Body.Close()
	plain.expect("customEvent to everyone: by POST")
}

// TestResumes: who was away gets what was sent meanwhile, also to them alone.
func TestResumes(t *testing.T) {
	base := newServer(t)
	ann := connect(t, base, "zone=red&user=ann", "")
	bob := connect(t, base, "zone=red&user=bob", "")
	ann.expectEvent("join", "bob")
	ann.body.Close()
	bob.expectEvent("leave", "ann")
	send(t, base, "zone=red&user=ann&content=mine")
	send(t, base, "zone=red&content=ours")
	connect(t, base, "zone=red&user=ann", ann.last).expect("customEvent to user: mine", "customEvent to zone: ours")
}

// expectEvent waits for an event.
func (s *stream) expectEvent(name, data string) {
	s.t.Helper()
	for e := s.next(); e.name != name || e.data != data; e = s.next() {
	}
}

// TestOnline: a zone is told who comes and goes, and the log which connection it was.
func TestOnline(t *testing.T) {
	base := newServer(t)
	ann := connect(t, base, "zone=red&user=ann", "")
	ann.expectEvent("join", "ann")
	bob := connect(t, base, "zone=red&user=bob", "")
	ann.expectEvent("join", "bob")
	connect(t, base, "zone=red", "")
	other := connect(t, base, "zone=blue&user=carol", "")
	other.expectEvent("join", "carol")
	for query, want := range map[string]string{
		"zone=red":   `{"clients":3,"users":{"ann":1,"bob":1}}`,
		"zone=blue":  `{"clients":1,"users":{"carol":1}}`,
		"zone=green": `{"clients":0,"users":{}}`,
	} {
		if status, text := get(t, base+"/online?"+query); status != http.StatusOK || strings.TrimSpace(text) != want {
			t.Errorf("/online?%s answers %d %s, want %s", query, status, text, want)
		}
	}
	bob.body.Close()
	ann.expectEvent("leave", "bob")
	for _, want := range []string{"connected: " + bob.client + `, user "red/bob"`, "disconnected: " + bob.client + `, user "red/bob": client closed`} {
		eventually(t, "the log has "+want, func() bool { return strings.Contains(logged.String(), want) })
	}
}

func TestAnswers(t *testing.T) {
	base := newServer(t)
	if status, text := get(t, base); status != http.StatusOK || !strings.Contains(text, "<title>Pushlet") {
		t.Errorf("the page is %d %.60q", status, text)
	}
	for path, want := range map[string]string{
		"/server?zone=a/b":                               "zone",
		"/server?user=%0A":                               "user",
		"/server?user=" + strings.Repeat("x", 31):        "user",
		"/online?zone=*":                                 "zone",
		"/send":                                          "content is missing",
		"/send?user=ann&content=x":                       "zone is missing",
		"/send?zone=%20&content=x":                       "zone",
		"/send?zone=red&user=a/b&content=x":              "user",
		"/send?content=x&event=pushlet.gap":              "reserved",
		"/send?content=x&event=a%0Ab":                    "event",
		"/send?content=%zz":                              "invalid URL escape",
		"/send?content=" + strings.Repeat("x", 1<<20/32): "", // is not too long yet
	} {
		status, text := get(t, base+path)
		if want == "" && status == http.StatusOK {
			continue
		}
		if status != http.StatusBadRequest || !strings.Contains(text, want) {
			t.Errorf("%.60s answers %d %q, want 400 with %q", path, status, text, want)
		}
	}
}

// TestProgram runs the program until it is interrupted.
func TestProgram(t *testing.T) {
	self, err := os.Executable()
	check(t, err)
	cmd := exec.CommandContext(t.Context(), self, "-addr", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), programEnv+"=1")
	stderr, err := cmd.StderrPipe()
	check(t, err)
	check(t, cmd.Start())
	var base string
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.Contains(lines.Text(), "To send: ") {
		if _, addr, ok := strings.Cut(lines.Text(), "Server started at "); ok {
			base = addr
		}
	}
	s := connect(t, base, "zone=red&user=ann", "")
	if n := send(t, base, "zone=red&content=hello"); n != 1 {
		t.Errorf("reaches %d connections, want 1", n)
	}
	s.expect("customEvent to zone: hello")
	check(t, cmd.Process.Signal(syscall.SIGINT))
	var rest []string
	for lines.Scan() { // to the end of the process
		rest = append(rest, lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if !slices.ContainsFunc(rest, func(line string) bool { return strings.Contains(line, "disconnected: "+s.client) }) {
		t.Errorf("the log does not say that the connection has ended: %q", rest)
	}
}

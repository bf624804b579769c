package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/usual2970/pushlet/internal/redistest"
)

// patience is how long a test waits for what should happen soon.
const patience = 60 * time.Second

// programEnv makes this a process of the program instead of its test.
const programEnv = "PUSHLET_EXAMPLE_CLUSTER"

// TestMain fails if the tests leave a goroutine behind.
func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		main()
		return
	}
	if err := os.Setenv("PUSHLET_VERIFY", "1"); err != nil { // New looks at it
		panic(err)
	}
	code := m.Run()
	if code == 0 {
		if left := goroutinesLeft(10 * time.Second); len(left) > 0 {
			fmt.Printf("%d goroutines are left:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// goroutinesLeft returns the stacks of goroutines that nobody has ended, once there are
// none or the time is over.
func goroutinesLeft(wait time.Duration) (stacks []string) {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	for deadline := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		all := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
		stacks = stacks[:0]
		for _, stack := range all[1:] { // the first is this one
			if !strings.Contains(stack, "os/signal.loop") {
				stacks = append(stacks, strings.TrimSpace(stack))
			}
		}
		if len(stacks) == 0 || time.Now().After(deadline) {
			return stacks
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A site is a cluster under test.
type site struct {
	*cluster
	t    *testing.T
	base string
}

func newSite(t *testing.T) *site {
	t.Helper()
	redis := redistest.Start(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	c, err := startCluster(listener, redis.Addr(), "127.0.0.1:0", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() {
		if err := c.shutdown(); err != nil {
			t.Error(err)
		}
	})
	s := &site{c, t, "http://" + listener.Addr().String()}
	s.eventually("all instances are ready", func() bool {
		return !slices.ContainsFunc(s.status("").Instances, func(i instanceStatus) bool { return !i.Ready })
	})
	return s
}

func (s *site) eventually(what string, condition func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatal("waited in vain until ", what)
		}
	}
}

// ask returns the status and the text of an answer.
func (s *site) ask(method, url string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, url, nil)
	check(s.t, err)
	resp, err := http.DefaultClient.Do(req)
	check(s.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	check(s.t, err)
	return resp.StatusCode, string(text)
}

func (s *site) post(path string) {
	s.t.Helper()
	if code, text := s.ask(http.MethodPost, s.base+path); code != http.StatusOK {
		s.t.Fatalf("%s answers %d %s", path, code, text)
	}
}

func (s *site) status(client string) (all status) {
	s.t.Helper()
	_, text := s.ask(http.MethodGet, s.base+"/cluster?client="+client)
	check(s.t, json.Unmarshal([]byte(text), &all))
	return all
}

// where returns the instance at which a client is, and the other one.
func (s *site) where(b *browser) (here, other *instance) {
	s.t.Helper()
	for n, i := range s.status(b.client).Instances {
		if i.Here {
			here = s.instances[n]
		} else {
			other = s.instances[n]
		}
	}
	if here == nil || other == nil {
		s.t.Fatalf("client %s is at one of two instances: %v", b.client, s.status(b.client))
	}
	return here, other
}

// A browser follows the topic as an EventSource does: it comes back by itself.
type browser struct {
	s           *site
	name        string
	client      string // as the server calls it
	resumed     bool   // the last connection was
	connected   int    // times
	lastEventID string
	body        io.ReadCloser
	lines       *bufio.Scanner
	last        number
}

func (s *site) browse(name string) *browser {
	s.t.Helper()
	b := &browser{s: s, name: name}
	s.t.Cleanup(b.close)
	if e := b.next(); e.name != "pushlet.connected" {
		s.t.Fatalf("the first event is %v", e)
	}
	return b
}

func (b *browser) close() {
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
}

type event struct{ id, name, data string }

// next returns the next event, of this connection or another.
func (b *browser) next() (e event) {
	b.s.t.Helper()
	defer time.AfterFunc(patience, b.close).Stop()
	for {
		if b.body == nil {
			b.connect()
		}
		e = event{name: "message"}
		for b.lines.Scan() {
			name, value, _ := strings.Cut(b.lines.Text(), ": ")
			switch name {
			case "id":
				e.id = value
			case "event":
				e.name = value
			case "data":
				e.data = value
			case "":
				if e.data == "" {
					continue // a comment, or retry:
				}
				b.lastEventID = e.id
				b.note(e)
				return e
			}
		}
		b.close()
		time.Sleep(20 * time.Millisecond)
	}
}

func (b *browser) connect() {
	b.s.t.Helper()
	query := url.Values{"topic": {topic}, "name": {b.name}}
	b.s.eventually("the load balancer has an instance for "+b.name, func() bool {
		req, err := http.NewRequestWithContext(b.s.t.Context(), http.MethodGet, b.s.base+"/events?"+query.Encode(), nil)
		check(b.s.t, err)
		req.Header.Set("Accept", "text/event-stream")
		if b.lastEventID != "" {
			req.Header.Set("Last-Event-ID", b.lastEventID)
		}
		resp, err := http.DefaultClient.Do(req)
		check(b.s.t, err)
		if resp.StatusCode != http.StatusOK {
			resp.Body.Close()
			return false
		}
		b.body, b.lines = resp.Body, bufio.NewScanner(resp.Body)
		return true
	})
}

func (b *browser) note(e event) {
	b.s.t.Helper()
	switch e.name {
	case "pushlet.connected":
		var hello struct {
			Client  string
			Resumed bool
		}
		check(b.s.t, json.Unmarshal([]byte(e.data), &hello))
		b.client, b.resumed = hello.Client, hello.Resumed
		b.connected++
	case "pushlet.gap":
		b.s.t.Errorf("%s is told of a gap: %s", b.name, e.data)
	}
}

// nextNumber returns the next numbered message, and fails the test if it is not the one
// that should come.
func (b *browser) nextNumber() (n number) {
	b.s.t.Helper()
	e := b.next()
	for e.name != "number" {
		e = b.next()
	}
	check(b.s.t, json.Unmarshal([]byte(e.data), &n))
	want := b.last.N + 1
	for slices.Contains(n.Unsure, want) && want < n.N {
		want++
	}
	if b.last.Run == n.Run && n.N != want {
		b.s.t.Fatalf("%s: after message %d comes %d", b.name, b.last.N, n.N)
	}
	b.last = n
	return n
}

// TestReachesAll: what one instance publishes comes to the clients of both, over both
// protocols, and everybody is online.
func TestReachesAll(t *testing.T) {
	s := newSite(t)
	browsers := []*browser{s.browse("ann"), s.browse("bob")} // in turn, so one at each
	conn, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws"+strings.TrimPrefix(s.base, "http")+"/ws?topic="+topic, nil)
	check(t, err)
	defer conn.Close()
	receive := func() (event, data string) {
		var m struct{ Event, Data string }
		check(t, conn.SetReadDeadline(time.Now().Add(patience)))
		check(t, conn.ReadJSON(&m))
		return m.Event, m.Data
	}
	if event, _ := receive(); event != "pushlet.subscribed" {
		t.Fatalf("the first message is %s", event)
	}
	here, other := s.where(browsers[0])
	if at, _ := s.where(browsers[1]); at != other {
		t.Errorf("both are at instance %s", here.name)
	}
	for _, i := range s.instances {
		want := `{"from":"ann","text":"` + i.name + `","via":"` + i.name + `"}`
		code, text := s.ask(http.MethodGet, "http://"+i.addr+"/send?name=ann&message="+i.name)
		if code != http.StatusOK || text != "Published by instance "+i.name {
			t.Errorf("/send answers %d %s", code, text)
		}
		for _, b := range browsers {
			if e := b.next(); e.name != "message" || e.data != want {
				t.Errorf("%s gets %v, want %s", b.name, e, want)
			}
		}
		if event, data := receive(); event != "message" || data != want {
			t.Errorf("the WebSocket gets %s %s, want %s", event, data, want)
		}
	}
	s.eventually("all are online", func() bool {
		now := s.status("")
		return now.Clients == 3 && now.Users["ann"] == 1 && now.Users["bob"] == 1
	})

	// Where it was when its instance stops, a WebSocket is closed in good order.
	for _, i := range s.instances {
		s.post("/instances/" + i.name + "/stop")
	}
	_, _, err = conn.ReadMessage()
	if !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the WebSocket ends with %v", err)
	}
	if code, text := s.ask(http.MethodGet, s.base+"/send?message=lost"); code != http.StatusServiceUnavailable || !strings.Contains(text, "no instance") {
		t.Errorf("without an instance /send answers %d %s", code, text)
	}
}

// TestMoves stops the instance where a client is, while messages come: the client moves to
// the other one, and misses nothing.
func TestMoves(t *testing.T) {
	s := newSite(t)
	b := s.browse("ann")
	s.post("/stream/start")
	if !s.status("").Streaming {
		t.Error("there is no stream")
	}
	via := map[string]bool{}
	for _, how := range []string{"stop", "kill", "kill", "stop"} {
		for range 5 {
			via[b.nextNumber().Via] = true
		}
		here, other := s.where(b)
		connected := b.connected
		s.post("/instances/" + here.name + "/" + how)
		for range 5 {
			b.nextNumber()
		}
		for b.connected == connected {
			b.nextNumber() // those that were on their way
		}
		b.nextNumber()
		if at, _ := s.where(b); at != other {
			t.Errorf("after %s of instance %s the client is at %s", how, here.name, at.name)
		}
		if !b.resumed {
			t.Error("not resumed")
		}
		s.post("/instances/" + here.name + "/start")
	}
	if !via["A"] || !via["B"] {
		t.Errorf("not all instances have published: %v", via)
	}

	// A stream that is started again begins anew.
	run := b.last.Run
	s.post("/stream/start")
	for b.nextNumber().Run == run {
	}
	if b.last.N != 1 {
		t.Errorf("the new stream begins with %d", b.last.N)
	}
	s.post("/stream/stop")
	if s.status("").Streaming {
		t.Error("the stream goes on")
	}
}

// TestAnswers: the page is there, and what makes no sense is refused.
func TestAnswers(t *testing.T) {
	s := newSite(t)
	if code, text := s.ask(http.MethodGet, s.base); code != http.StatusOK || !strings.Contains(text, "<title>Pushlet") {
		t.Errorf("the page is %d %.60q", code, text)
	}
	for _, path := range []string{"/instances/C/stop", "/instances/A/burn", "/stream/burn"} {
		if code, _ := s.ask(http.MethodPost, s.base+path); code != http.StatusNotFound {
			t.Errorf("%s answers %d", path, code)
		}
	}
	// An instance whose port was taken in the meantime.
	s.post("/instances/A/stop")
	listener, err := net.Listen("tcp", s.instances[0].addr)
	check(t, err)
	if code, text := s.ask(http.MethodPost, s.base+"/instances/A/start"); code != http.StatusInternalServerError || !strings.Contains(text, "in use") {
		t.Errorf("start on a port that is taken answers %d %s", code, text)
	}
	listener.Close()
	s.post("/instances/A/start")
	s.eventually("it is ready again", func() bool { return s.status("").Instances[0].Ready })
}

// program prepares a process of the program, with nobody at REDIS_ADDR.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), programEnv+"=1", fmt.Sprintf("REDIS_ADDR=127.0.0.1:%d", redistest.FreePort(t)))
	return cmd
}

// TestProgram runs the whole program with a Redis of its own, until it is interrupted.
func TestProgram(t *testing.T) {
	if _, err := exec.LookPath("redis-server"); err != nil && os.Getenv("PUSHLET_REQUIRE_REDIS") == "" {
		t.Skip(err)
	}
	cmd := program(t, "-addr", "127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	check(t, err)
	check(t, cmd.Start())
	said := map[string]string{}
	lines := bufio.NewScanner(stderr)
	for len(said) < 4 && lines.Scan() {
		for _, what := range []string{"Redis at ", "Load balancer at http://", "Instance A at http://", "Instance B at http://"} {
			if _, addr, ok := strings.Cut(lines.Text(), what); ok {
				said[what] = addr
			}
		}
	}
	go io.Copy(io.Discard, stderr) // ends with the process
	s := &site{t: t, base: "http://" + said["Load balancer at http://"]}
	b := s.browse("ann")
	s.post("/stream/start")
	for range 3 {
		b.nextNumber()
	}
	check(t, cmd.Process.Signal(syscall.SIGINT))
	for b.lines.Scan() { // to the end of the stream
	}
	if err := b.lines.Err(); err != nil {
		t.Errorf("the stream ends with %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for what, addr := range said {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			t.Errorf("somebody still listens: %s%s", what, addr)
		}
	}
}

// TestProgramSaysWhatIsWrong: it ends with status 1, and the reason.
func TestProgramSaysWhatIsWrong(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer listener.Close()
	for _, c := range []struct{ addr, path, want string }{
		{"127.0.0.1:0", t.TempDir(), "no redis-server in the PATH"},
		{listener.Addr().String(), os.Getenv("PATH"), "in use"},
	} {
		cmd := program(t, "-addr", c.addr)
		cmd.Env = append(cmd.Env, "PATH="+c.path)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), c.want) {
			t.Errorf("ended with %v:\n%s", err, out)
		}
	}
}

// TestRedis: one that ends at once is reported with what it said.
func TestRedis(t *testing.T) {
	redis := redistest.Start(t)
	t.Setenv("REDIS_ADDR", redis.Addr())
	addr, end, err := findRedis(t.Context())
	check(t, err)
	end()
	if addr != redis.Addr() || !redis.Running() {
		t.Errorf("found %s, and %s runs: %t", addr, redis.Addr(), redis.Running())
	}
	path, err := exec.LookPath("echo")
	if err != nil {
		t.Skip(err)
	}
	if _, _, err := startRedis(context.Background(), path); err == nil || !strings.Contains(err.Error(), "--port") {
		t.Errorf("with a server that ends at once: %v", err)
	}
}

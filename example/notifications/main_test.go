package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet/internal/redistest"
)

// patience is how long a test waits for what should happen soon.
const patience = 60 * time.Second

// binary is the program, which TestMain builds.
var binary string

func TestMain(m *testing.M) {
	os.Exit(build(m.Run))
}

func build(run func() int) int {
	dir, err := os.MkdirTemp("", "notifications")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "notifications")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return run()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// settingsOf is the environment for a Redis, and a free port.
func settingsOf(redis *redistest.Server, more ...string) []string {
	_, port, _ := net.SplitHostPort(redis.Addr())
	return append([]string{"REDIS_PORT=" + port, "SSE_HOST=127.0.0.1", "SSE_PORT=0"}, more...)
}

// A program is a running process.
type program struct {
	t     *testing.T
	cmd   *exec.Cmd
	base  string
	read  chan struct{} // closed when all that it printed is in lines
	mu    sync.Mutex    // guards lines
	lines strings.Builder
}

// startProgram runs the program until the test ends.
func startProgram(t *testing.T, env ...string) *program {
	t.Helper()
	g := &program{t: t, cmd: exec.Command(binary), read: make(chan struct{})}
	g.cmd.Env = append(os.Environ(), env...)
	stderr, err := g.cmd.StderrPipe()
	check(t, err)
	check(t, g.cmd.Start())
	listening := make(chan string, 1)
	go func() {
		defer close(g.read)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			g.mu.Lock()
			g.lines.WriteString(lines.Text() + "\n")
			g.mu.Unlock()
			if _, after, ok := strings.Cut(lines.Text(), "Listening at "); ok {
				base, _, _ := strings.Cut(after, ",")
				listening <- base
			}
		}
	}()
	t.Cleanup(func() {
		g.cmd.Process.Kill()
		<-g.read
		g.cmd.Wait()
		if t.Failed() {
			t.Logf("%s printed:\n%s", g.base, g.log())
		}
	})
	select {
	case g.base = <-listening:
	case <-g.read:
		t.Fatalf("it ended before it listened:\n%s", g.log())
	case <-time.After(patience):
		t.Fatalf("it does not listen:\n%s", g.log())
	}
	return g
}

// log returns what it has printed.
func (g *program) log() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lines.String()
}

// do sends a request with these headers, names and values in turn.
func (g *program) do(method, path string, header ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.base+path, nil)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return http.DefaultClient.Do(req)
}

// ask returns an answer, without the text if it is a stream.
func (g *program) ask(method, path string, header ...string) (status int, h http.Header, text string) {
	g.t.Helper()
	resp, err := g.do(method, path, header...)
	check(g.t, err)
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") != "text/event-stream" {
		b, err := io.ReadAll(resp.Body)
		check(g.t, err)
		text = string(b)
	}
	return resp.StatusCode, resp.Header, text
}

type event struct{ id, name, data string }

// A stream is what an EventSource reads.
type stream struct {
	t     *testing.T
	body  io.ReadCloser
	lines *bufio.Scanner
	id    string // of the last event
}

// follow opens a stream and reads its first event.
func (g *program) follow(path, lastEventID string) (s *stream, hello string) {
	g.t.Helper()
	header := []string{"Accept", "text/event-stream"}
	if lastEventID != "" {
		header = append(header, "Last-Event-ID", lastEventID)
	}
	resp, err := g.do(http.MethodGet, path, header...)
	check(g.t, err)
	g.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		g.t.Fatalf("%s answers %s", path, resp.Status)
	}
	s = &stream{t: g.t, body: resp.Body, lines: bufio.NewScanner(resp.Body)}
	e := s.next()
	if e.name != "pushlet.connected" {
		g.t.Fatalf("%s begins with %v", path, e)
	}
	return s, e.data
}

func (s *stream) next() event {
	s.t.Helper()
	defer time.AfterFunc(patience, func() { s.body.Close() }).Stop()
	e := event{name: "message"}
	for s.lines.Scan() {
		name, value, _ := strings.Cut(s.lines.Text(), ": ")
		switch name {
		case "id":
			e.id = value
		case "event":
			e.name = value
		case "data":
			e.data = value
		case "":
			if e.data != "" {
				s.id = e.id
				return e
			}
		}
	}
	s.t.Fatalf("the stream has ended: %v", s.lines.Err())
	return e
}

// expect reads notifications with these messages, all for a user.
func (s *stream) expect(user int64, messages ...string) {
	s.t.Helper()
	for _, want := range messages {
		e := s.next()
		var got map[string]any
		if err := json.Unmarshal([]byte(e.data), &got); err != nil || e.name != "message" || len(got) != 3 {
			s.t.Fatalf("%v, want a notification: %v", e, err)
		}
		if got["user_id"] != float64(user) || got["message"] != want {
			s.t.Fatalf("%v, want %q for user %d", e, want, user)
		}
		if _, err := time.Parse(time.RFC3339, fmt.Sprint(got["created_at"])); err != nil {
			s.t.Errorf("%v: %v", e, err)
		}
	}
}

// redisCLI runs a command of Redis as a sender does.
func redisCLI(t *testing.T, server *redistest.Server, db int, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("redis-cli"); err != nil {
		client := server.Client(func(o *redis.Options) { o.DB = db })
		command := make([]any, len(args))
		for i, a := range args {
			command[i] = a
		}
		answer, err := client.Do(t.Context(), command...).Result()
		check(t, err)
		return fmt.Sprint(answer)
	}
	_, port, _ := net.SplitHostPort(server.Addr())
	out, err := exec.Command("redis-cli", append([]string{"-p", port, "-n", strconv.Itoa(db)}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("redis-cli %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// send publishes a message, and expects that so many instances hear it.
func send(t *testing.T, server *redistest.Server, instances, user int, message string) {
	t.Helper()
	payload := fmt.Sprintf(`{"user_id":%d,"message":%q}`, user, message)
	if got := redisCLI(t, server, 0, "PUBLISH", "notifications", payload); got != strconv.Itoa(instances) {
		t.Errorf("PUBLISH answers %s, want %d", got, instances)
	}
}

// TestNotifications: of two instances each connection gets what is for its user, once, and
// nothing else, from the first message on.
func TestNotifications(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := startProgram(t, settingsOf(server)...), startProgram(t, settingsOf(server)...)
	type connection struct {
		user int64
		*stream
	}
	var all []connection
	for _, c := range []struct {
		at   *program
		path string
		user int64
	}{
		{a, "/sse?user_id=1", 1}, {a, "/sse?user_id=1&topic=news", 1}, {b, "/sse?user_id=01", 1}, {b, "/sse", 1},
		{a, "/sse?user_id=2", 2}, {b, "/sse?user_id=2", 2},
		{b, "/sse?user_id=9007199254740993", 9007199254740993},
	} {
		s, hello := c.at.follow(c.path, "")
		if !strings.Contains(hello, `"topics":["@user"]`) {
			t.Errorf("%s: it follows %s", c.path, hello)
		}
		all = append(all, connection{c.user, s})
	}

	want := make(map[int64][]string)
	for i := range 20 {
		user, message := 1+i%3, fmt.Sprintf("消息 <%d>", i) // some for user 3, who is not there
		send(t, server, 2, user, message)
		want[int64(user)] = append(want[int64(user)], message)
	}
	for _, bad := range []string{
		``, `{"user_id":1,"message":"secret"`, `"secret"`, `null`, `[1]`, `{"message":"secret"}`, `{"user_id":"1","message":"secret"}`,
		`{"user_id":0,"message":"secret"}`, `{"user_id":-1,"message":"secret"}`, `{"user_id":1.5,"message":"secret"}`,
		`{"user_id":1,"message":["secret"]}`, `{"user_id":1,"message":"secret","created_at":"secret"}`,
		`{"user_id":1,"message":"secret","created_at":""}`, `{"user_id":1,"message":"secret","created_at":1704110400}`,
	} {
		redisCLI(t, server, 0, "PUBLISH", "notifications", bad)
	}
	for _, user := range []int{1, 2} {
		data := fmt.Sprintf(`{"user_id":%d,"message":"ingested","created_at":"2024-01-01T12:00:00Z"}`, user)
		redisCLI(t, server, 1, "XADD", "notifications:ingest", "*", "user", strconv.Itoa(user), "data", data)
	}
	for _, c := range all {
		if c.user < 3 {
			c.expect(c.user, append(slices.Clip(want[c.user]), "ingested")...)
		}
	}
	for _, user := range []int{1, 2, 9007199254740993} {
		send(t, server, 2, user, "the end")
	}
	for _, c := range all {
		if c.user < 3 {
			c.expect(c.user, "the end")
		} else if e := c.next(); !strings.HasPrefix(e.data, `{"user_id":9007199254740993,"message":"the end"`) {
			t.Errorf("user %d gets %v", c.user, e)
		}
	}
	if log := a.log() + b.log(); strings.Count(log, "left out") != 14 || strings.Contains(log, "secret") {
		t.Errorf("14 were left out, and none of their contents logged; the log:\n%s", log)
	}
}

// TestResume: who comes back, to the other instance, gets what was missed.
func TestResume(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := startProgram(t, settingsOf(server)...), startProgram(t, settingsOf(server)...)
	watcher, _ := b.follow("/sse?user_id=5", "")
	for _, fromURL := range []bool{false, true} {
		s, _ := a.follow("/sse?user_id=5", "")
		send(t, server, 2, 5, "before")
		s.expect(5, "before")
		s.body.Close()
		send(t, server, 2, 5, "missed 1")
		send(t, server, 2, 6, "not yours")
		send(t, server, 2, 5, "missed 2")
		watcher.expect(5, "before", "missed 1", "missed 2")
		path, header := "/sse?user_id=5", s.id
		if fromURL {
			path, header = path+"&lastEventId="+s.id, ""
		}
		s, hello := b.follow(path, header)
		if !strings.Contains(hello, `"resumed":true`) {
			t.Errorf("it begins with %s", hello)
		}
		s.expect(5, "missed 1", "missed 2")
		send(t, server, 2, 5, "after")
		s.expect(5, "after")
		watcher.expect(5, "after")
	}
}

// TestOtherChannel: services with other channels do not see each other's users.
func TestOtherChannel(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	alerts := startProgram(t, settingsOf(server, "SSE_REDIS_CHANNEL=alerts {all}")...)
	other := startProgram(t, settingsOf(server)...)
	s1, _ := alerts.follow("/sse", "")
	s2, _ := other.follow("/sse", "")
	redisCLI(t, server, 0, "PUBLISH", "alerts {all}", `{"user_id":1,"message":"alert"}`)
	send(t, server, 1, 1, "notification")
	redisCLI(t, server, 1, "XADD", "alerts {all}:ingest", "*", "user", "1", "data", `{"user_id":1,"message":"more","created_at":"2024-01-01T12:00:00Z"}`)
	s1.expect(1, "alert", "more")
	s2.expect(1, "notification")
}

// TestAnswers: everything but streams.
func TestAnswers(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	g := startProgram(t, settingsOf(server, "SSE_ALLOWED_ORIGINS=https://a.example, https://b.example:8443")...)
	for _, query := range []string{"user_id=", "user_id=0", "user_id=-1", "user_id=%2B1", "user_id=x", "user_id=1.5", "user_id=1e3",
		"user_id=99999999999999999999", "user_id=1&user_id=2", "user_id=1%00", "user_id=%zz"} {
		status, _, text := g.ask(http.MethodGet, "/sse?"+query)
		if status != http.StatusBadRequest || !strings.Contains(text, "positive integer") && query != "user_id=%zz" {
			t.Errorf("%s: %d %q, want 400 and why", query, status, text)
		}
	}
	for path, want := range map[string]string{"/": "<title>Pushlet: notifications</title>", "/ready": "ready\n", "/other": "404 page not found\n"} {
		status, _, text := g.ask(http.MethodGet, path)
		if (status == http.StatusOK) != (path != "/other") || !strings.Contains(text, want) {
			t.Errorf("%s: %d %q, want %q", path, status, text, want)
		}
	}
	for origin, want := range map[string]string{
		"https://a.example": "https://a.example", "https://b.example:8443": "https://b.example:8443", "https://c.example": "", "": "",
	} {
		for _, method := range []string{http.MethodGet, http.MethodOptions} {
			status, h, _ := g.ask(method, "/sse?user_id=3", "Origin", origin)
			if got := h.Get("Access-Control-Allow-Origin"); status >= 300 || got != want {
				t.Errorf("%s from %q: %d, Access-Control-Allow-Origin is %q, want %q", method, origin, status, got, want)
			}
		}
	}
	g = startProgram(t, settingsOf(server, "SSE_ALLOWED_ORIGINS=*")...)
	if _, h, _ := g.ask(http.MethodGet, "/sse", "Origin", "https://c.example"); h.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("with * the headers are %v", h)
	}
}

// TestStops: signals end it, and its streams, with exit status 0.
func TestStops(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	for _, signal := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		g := startProgram(t, settingsOf(server)...)
		s, _ := g.follow("/sse", "")
		check(t, g.cmd.Process.Signal(signal))
		if _, err := io.ReadAll(s.body); err != nil {
			t.Errorf("%v: the stream ends with %v", signal, err)
		}
		<-g.read
		if err := g.cmd.Wait(); err != nil {
			t.Errorf("%v: %v", signal, err)
		}
	}
}

// TestDoesNotStart: what is wrong is said on stderr, and the exit status is 1.
func TestDoesNotStart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Password("right"), redistest.ACLUser("app", "secret", "~* &other +@all"))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { taken.Close() })
	_, takenPort, err := net.SplitHostPort(taken.Addr().String())
	check(t, err)
	free := strconv.Itoa(redistest.FreePort(t))
	for name, c := range map[string]struct{ env, want string }{
		"no port":           {"SSE_PORT=http", `SSE_PORT: "http" is not a number from 0 to 65535`},
		"a port too large":  {"SSE_PORT=65536", `SSE_PORT: "65536" is not`},
		"no host":           {"SSE_HOST=no such host", `SSE_HOST, SSE_PORT: listen tcp`},
		"a port in use":     {"SSE_PORT=" + takenPort, "address already in use"},
		"no port of Redis":  {"REDIS_PORT=0", `REDIS_PORT: "0" is not a number from 1 to 65535`},
		"no Redis":          {"REDIS_PORT=" + free, "redis at 127.0.0.1:" + free + ": dial tcp"},
		"no database":       {"REDIS_MAIN_DB=-1", `REDIS_MAIN_DB: "-1" is not`},
		"no such database":  {"REDIS_PASSWORD=right\nREDIS_MAIN_DB=99", "DB index is out of range"},
		"no password":       {"REDIS_PASSWORD=", "NOAUTH"},
		"wrong password":    {"REDIS_PASSWORD=wrong", "WRONGPASS"},
		"wrong user":        {"REDIS_PASSWORD=right\nREDIS_USERNAME=nobody", "WRONGPASS"},
		"forbidden channel": {"REDIS_PASSWORD=secret\nREDIS_USERNAME=app", "NOPERM"},
		"no origin":         {"SSE_ALLOWED_ORIGINS=https://a.example/", `SSE_ALLOWED_ORIGINS: "https://a.example/" is not an origin`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stderr bytes.Buffer
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, binary)
			cmd.Env = append(append(os.Environ(), settingsOf(server)...), strings.Split(c.env, "\n")...)
			cmd.Stderr = &stderr
			var exit *exec.ExitError
			if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("it ended with %v, want exit status 1", err)
			}
			if got := stderr.String(); !strings.Contains(got, c.want) || strings.Contains(got, "Listening at") {
				t.Errorf("it says %q, want %q", got, c.want)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	got, err := readSettings(func(string) string { return "" })
	want := settings{addr: "0.0.0.0:8085", channel: "notifications", redisAddr: "127.0.0.1:6379", redisDB: 1}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("without an environment: %+v, %v, want %+v", got, err, want)
	}
	env := map[string]string{
		"SSE_HOST": "::1", "SSE_PORT": "80", "SSE_REDIS_CHANNEL": "c", "SSE_ALLOWED_ORIGINS": "https://a.example, *",
		"REDIS_HOST": "redis", "REDIS_PORT": "1234", "REDIS_USERNAME": "u", "REDIS_PASSWORD": "p", "REDIS_MAIN_DB": "0",
	}
	got, err = readSettings(func(name string) string { return env[name] })
	want = settings{"[::1]:80", "c", []string{"https://a.example", "*"}, "redis:1234", "u", "p", 0}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

func TestCreatedAt(t *testing.T) {
	t.Parallel()
	for _, given := range []string{"2024-01-01T12:00:00Z", "2024-01-01T12:00:00.5+08:00"} {
		push, err := convert(`{"message":"m","created_at":"` + given + `","user_id":7}`)
		check(t, err)
		if got, want := push.Events[0].Data, `{"user_id":7,"message":"m","created_at":"`+given+`"}`; got != want || !slices.Equal(push.Users, []string{"7"}) {
			t.Errorf("%v %s, want %s", push.Users, got, want)
		}
	}
	before := time.Now().Truncate(time.Millisecond)
	push, err := convert(`{"user_id":7,"message":"m"}`)
	check(t, err)
	var got struct {
		CreatedAt time.Time `json:"created_at"`
	}
	check(t, json.Unmarshal([]byte(push.Events[0].Data), &got))
	if got.CreatedAt.Before(before) || got.CreatedAt.After(time.Now()) {
		t.Errorf("%v was put in", got.CreatedAt)
	}
}

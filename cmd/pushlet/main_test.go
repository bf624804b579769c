package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
)

// patience is how long a test waits for what should happen soon.
const patience = 60 * time.Second

// programEnv makes this a process of the program instead of its test.
const programEnv = "PUSHLET_TEST_PROGRAM"

// TestMain runs the program, or all tests with the server's own checks of its invariants; then it
// fails if they leave a goroutine behind.
func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		main()
	}
	if err := os.Setenv("PUSHLET_VERIFY", "1"); err != nil { // pushlet.New looks at it
		panic(err)
	}
	code := m.Run()
	if left := goroutinesLeft(10 * time.Second); code == 0 && len(left) > 0 {
		fmt.Printf("%d goroutines are left:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
		code = 1
	}
	os.Exit(code)
}

// goroutinesLeft returns the stacks of goroutines that nobody has ended, once there are none or
// the time is over.
func goroutinesLeft(wait time.Duration) (stacks []string) {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	for deadline := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		all := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
		stacks = slices.DeleteFunc(all[1:], func(s string) bool { return strings.Contains(s, "os/signal.loop") }) // the first is this one
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

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain until ", what)
		}
	}
}

// A server is a Pushlet on a port of this machine.
type server struct {
	t    *testing.T
	p    *pushlet.Pushlet
	http *httptest.Server
	addr string // host:port

	mu    sync.Mutex
	conns []net.Conn
}

// newServer serves until the test ends. Each middleware stands in front of those before it.
func newServer(t *testing.T, options []pushlet.Option, middleware ...func(http.Handler) http.Handler) *server {
	t.Helper()
	options = append([]pushlet.Option{pushlet.WithPushAuthorize(pushlet.AllowPush), pushlet.WithRetry(20 * time.Millisecond)}, options...)
	p := pushlet.New(options...)
	check(t, p.Start())
	mux := http.NewServeMux()
	mux.HandleFunc("/events", p.HandleSSE)
	mux.HandleFunc("/ws", p.HandleWebSocket)
	mux.HandleFunc("/push", p.HandlePush)
	var h http.Handler = mux
	for _, m := range middleware {
		h = m(h)
	}
	s := &server{t: t, p: p, http: httptest.NewUnstartedServer(h)}
	s.http.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.conns = append(s.conns, conn)
		}
	}
	s.http.Start()
	s.addr = s.http.Listener.Addr().String()
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		s.http.Close()
	})
	return s
}

// cut breaks all connections.
func (s *server) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		conn.Close()
	}
	s.conns = nil
}

func (s *server) publish(topic, event, data string) {
	s.t.Helper()
	check(s.t, s.p.Publish(topic, event, data))
}

// A process is the program while it runs.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	out    *os.File // stdout is read from it
	stderr lockedBuffer
}

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

// program is the program, not yet started, which does not outlive the test.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), programEnv+"=1", "TERM=xterm", "NO_COLOR=", "PUSHLET_TOKEN=",
		"GORACE=atexit_sleep_ms=0") // the race detector's default is to wait for a second
	dieWithParent(cmd)
	return cmd
}

// start starts the program with pipes.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: program(t, args...)}
	var err error
	p.stdin, err = p.cmd.StdinPipe()
	check(t, err)
	r, w, err := os.Pipe()
	check(t, err)
	p.out, p.stdout = r, bufio.NewReader(r)
	p.cmd.Stdout, p.cmd.Stderr = w, &p.stderr
	check(t, p.cmd.Start())
	check(t, w.Close())
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		r.Close()
	})
	return p
}

// line returns the next line of the standard output.
func (p *process) line() string {
	p.t.Helper()
	check(p.t, p.out.SetReadDeadline(time.Now().Add(patience)))
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		p.t.Fatalf("standard output: %v after %q; standard error:\n%s", err, line, p.stderr.String())
	}
	return strings.TrimSuffix(line, "\n")
}

// says waits until the standard error has a text n times.
func (p *process) says(text string, n int) {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for strings.Count(p.stderr.String(), text) < n {
		if time.Now().After(deadline) {
			p.t.Fatalf("waited in vain for %q; standard error:\n%s", text, p.stderr.String())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// ends waits for the end and checks the exit code. It returns the rest of the standard output.
func (p *process) ends(code int) (rest string) {
	p.t.Helper()
	check(p.t, p.out.SetReadDeadline(time.Now().Add(patience)))
	b, err := io.ReadAll(p.stdout)
	check(p.t, err)
	_ = p.cmd.Wait() // the code says it
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("exit code %d (%v), want %d; standard output:\n%s\nstandard error:\n%s", got, p.cmd.ProcessState, code, b, p.stderr.String())
	}
	return string(b)
}

func (p *process) interrupt() {
	p.t.Helper()
	check(p.t, p.cmd.Process.Signal(syscall.SIGINT))
}

// runs runs the program to its end, with that input, and returns what it has printed.
func runs(t *testing.T, code int, input string, args ...string) (stdout, stderr string) {
	t.Helper()
	p := start(t, args...)
	_, err := io.WriteString(p.stdin, input)
	check(t, err)
	check(t, p.stdin.Close())
	stdout = p.ends(code)
	return stdout, p.stderr.String()
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"", exitUsage, "", "pushlet bench"},
		{"help", exitOK, "pushlet bench", ""},
		{"-h", exitOK, "pushlet sub", ""},
		{"help sub", exitOK, "-fail-on-gap", ""},
		{"pub -h", exitOK, "-lines", ""},
		{"help nothing", exitUsage, "", `no command "nothing"`},
		{"version", exitOK, "pushlet ", ""},
		{"sup", exitUsage, "", `no command "sup"`},
		{"sub", exitUsage, "", "the URL is missing"},
		{"sub localhost -nothing", exitUsage, "", "not defined: -nothing"},
		{"sub ftp://localhost", exitUsage, "", `scheme "ftp"`},
		{"sub http://user:secret@%zz", exitUsage, "", "URL: "},
		{"sub localhost -topic=", exitUsage, "", "topic"},
		{"sub localhost more", exitUsage, "", "too many arguments"},
		{"sub localhost -count 0", exitUsage, "", "-count"},
		{"sub localhost -for -1s", exitUsage, "", "-for"},
		{"sub localhost -json -raw", exitUsage, "", "-json and -raw"},
		{"sub localhost -since a=1-0", exitUsage, "", "-last-event-id"},
		{"sub ws://localhost -last-event-id x", exitUsage, "", "-since TOPIC=ID"},
		{"sub ws://localhost -since a", exitUsage, "", "TOPIC=ID"},
		{"sub localhost -header secret", exitUsage, "", "-header"},
		{"pub localhost hello", exitUsage, "", "to whom"},
		{"pub localhost -all -topic a hello", exitUsage, "", "-all is everyone"},
		{"pub localhost -topic a -data x hello", exitUsage, "", "only one"},
		{"pub localhost -topic a -lines hello", exitUsage, "", "-lines"},
		{"pub ws://localhost -topic a hello", exitUsage, "", `scheme "ws"`},
		{"help bench", exitOK, "-connect-rate", ""},
		{"bench localhost -n 0", exitUsage, "", "-n"},
		{"bench localhost -topic a -topics 2", exitUsage, "", "-topics"},
		{"bench localhost -no-publish -push localhost", exitUsage, "", "-no-publish"},
		{"bench localhost -n 10000000", exitFailed, "", "file descriptors"},
	} {
		if c.stderr == "file descriptors" && fileLimit() == 0 {
			continue
		}
		stdout, stderr := runs(t, c.code, "", strings.Fields(c.args)...)
		if !strings.Contains(stdout, c.stdout) || c.stdout == "" && stdout != "" {
			t.Errorf("pushlet %s: standard output %q, want %q", c.args, stdout, c.stdout)
		}
		if !strings.Contains(stderr, c.stderr) || c.stderr == "" && stderr != "" {
			t.Errorf("pushlet %s: standard error %q, want %q", c.args, stderr, c.stderr)
		}
		if strings.Contains(stderr, "secret") {
			t.Errorf("pushlet %s: a secret in %q", c.args, stderr)
		}
	}
}

package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// programEnv makes this a process of the program instead of its test.
const programEnv = "PUSHLET_EXAMPLE_BROWSER"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), programEnv+"=1")
	return cmd
}

// start runs the program until the test ends, and returns its address.
func start(t *testing.T) (cmd *exec.Cmd, base string) {
	t.Helper()
	cmd = program(t, "-addr", "127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if _, base, ok := strings.Cut(lines.Text(), "Server started at "); ok {
			go io.Copy(io.Discard, stderr) // ends with the process
			return cmd, base
		}
	}
	t.Fatal("the program ended before it served")
	return nil, ""
}

func get(t *testing.T, url string) (kind, text string) {
	t.Helper()
	resp, err := http.Get(url)
	check(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(t, err)
	return resp.Header.Get("Content-Type"), string(b)
}

func TestAnswers(t *testing.T) {
	_, base := start(t)
	for path, want := range map[string][2]string{
		"/":            {"text/html", `import { Pushlet } from "/pushlet.js"`},
		"/plain.html":  {"text/html", "new EventSource("},
		"/style.css":   {"text/css", "prefers-color-scheme"},
		"/pushlet.js":  {"text/javascript", "Pushlet"},
		"/main.go":     {"text/plain", "404"},
		"/nothing.css": {"text/plain", "404"},
	} {
		if kind, text := get(t, base+path); !strings.HasPrefix(kind, want[0]) || !strings.Contains(text, want[1]) {
			t.Errorf("%s answers %s, %.60q; want %s with %q", path, kind, text, want[0], want[1])
		}
	}
}

// TestProgram runs the program until it is told to end, while a stream is open.
func TestProgram(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		cmd, base := start(t)
		stream, err := http.Get(base + "/events?topic=news")
		check(t, err)
		resp, err := http.Post(base+"/push", "application/json", strings.NewReader(`{"topics":["news"],"events":[{"data":"hello"}]}`))
		check(t, err)
		answer, err := io.ReadAll(resp.Body)
		check(t, err)
		resp.Body.Close()
		if !strings.Contains(string(answer), `"published":1`) || !strings.Contains(string(answer), `"clients":1`) {
			t.Errorf("/push answers %s %s", resp.Status, answer)
		}
		check(t, cmd.Process.Signal(signal))
		got, err := io.ReadAll(stream.Body)
		stream.Body.Close()
		if err != nil || !strings.Contains(string(got), "data: hello\n") {
			t.Errorf("%v: the stream had %q, and ended with %v", signal, got, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v", signal, err)
		}
	}
}

// TestCannotListen: a port in use, and what is no address.
func TestCannotListen(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer listener.Close()
	for addr, want := range map[string]string{
		listener.Addr().String(): "address already in use",
		"localhost":              "missing port",
		"localhost:http-or-so":   "unknown port",
	} {
		out, err := program(t, "-addr", addr).CombinedOutput()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("-addr %s: ended with %v, want exit status 1", addr, err)
		}
		if !strings.Contains(string(out), want) || strings.Contains(string(out), "started") {
			t.Errorf("-addr %s: printed %q, want %q", addr, out, want)
		}
	}
}

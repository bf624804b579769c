package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// A screen is the other side of a terminal on which the program runs.
type screen struct {
	t      *testing.T
	master *os.File
	seen   strings.Builder
}

// openTerminal returns a terminal of that width, and its other side.
func openTerminal(t *testing.T, columns int) (s *screen, terminal *os.File) {
	t.Helper()
	ioctl := func(f *os.File, request uintptr, argument unsafe.Pointer) {
		t.Helper()
		raw, err := f.SyscallConn()
		check(t, err)
		var errno syscall.Errno
		check(t, raw.Control(func(fd uintptr) { _, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(argument)) }))
		if errno != 0 {
			t.Fatal(errno)
		}
	}
	fd, err := syscall.Open("/dev/ptmx", syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx") // non-blocking, so that it has deadlines
	t.Cleanup(func() { master.Close() })
	var number, locked uint32
	ioctl(master, syscall.TIOCSPTLCK, unsafe.Pointer(&locked))
	ioctl(master, syscall.TIOCGPTN, unsafe.Pointer(&number))
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	check(t, err)
	t.Cleanup(func() { terminal.Close() })
	size := [4]uint16{24, uint16(columns)}
	ioctl(terminal, syscall.TIOCSWINSZ, unsafe.Pointer(&size))
	return &screen{t: t, master: master}, terminal
}

// until reads until the text has come.
func (s *screen) until(text string) {
	s.t.Helper()
	s.untilTimes(text, 1)
}

// untilTimes reads until the text has come n times.
func (s *screen) untilTimes(text string, n int) {
	s.t.Helper()
	check(s.t, s.master.SetReadDeadline(time.Now().Add(patience)))
	for b := make([]byte, 4096); strings.Count(s.seen.String(), text) < n; {
		k, err := s.master.Read(b)
		s.seen.Write(b[:k])
		if err != nil {
			s.t.Fatalf("%v: %q has not come: %q", err, text, s.seen.String())
		}
	}
}

// TestTerminal: on a terminal there are colours, and nothing that a server sends reaches it raw.
func TestTerminal(t *testing.T) {
	t.Parallel()
	const attack = "\x1b]0;owned\a\x1b[2J\u009b2J\x00end"
	for _, c := range []struct {
		args    []string
		env     string
		colours bool
		want    string
	}{
		{nil, "", true, `x\x1b]0;owned\x07\x1b[2J\u009b2J\x00end`},
		{nil, "NO_COLOR=1", false, `x\x1b]0;owned\x07\x1b[2J\u009b2J\x00end`},
		{nil, "TERM=dumb", false, `x\x1b]0;owned\x07\x1b[2J\u009b2J\x00end`},
		{[]string{"-raw"}, "", true, `x\x1b]0;owned\x07\x1b[2J\u009b2J\x00end`},
		{[]string{"-json"}, "", true, `x\u001b]0;owned\u0007\u001b[2J\u009b2J\u0000end`},
	} {
		s := newServer(t, nil)
		screen, terminal := openTerminal(t, 80)
		cmd := program(t, append([]string{"sub", s.addr, "-topic", "a", "-count", "1"}, c.args...)...)
		cmd.Env = append(cmd.Env, c.env)
		cmd.Stdout, cmd.Stderr = terminal, terminal
		check(t, cmd.Start())
		screen.until("following a")
		s.publish("a", "", "x"+attack)
		screen.until(c.want)
		check(t, cmd.Wait())
		got := screen.seen.String()
		if colours := strings.Contains(got, "\x1b["); colours != c.colours {
			t.Errorf("%v %s: colours in %q: %v", c.args, c.env, got, colours)
		}
		for _, raw := range []string{"\x1b]", "\x1b[2J", "\a", "\u009b", "\x00"} {
			if strings.Contains(got, raw) {
				t.Errorf("%v %s: %q is raw in %q", c.args, c.env, raw, got)
			}
		}
	}
}

// TestColoursGoWithTheStream: the standard error on a terminal does not make the output one.
func TestColoursGoWithTheStream(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	screen, terminal := openTerminal(t, 80)
	cmd := program(t, "sub", s.addr, "-topic", "a", "-count", "1")
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, terminal
	check(t, cmd.Start())
	screen.until("following a")
	s.publish("a", "", "x")
	check(t, cmd.Wait())
	if strings.Contains(out.String(), "\x1b") || !strings.Contains(screen.seen.String(), "\x1b[") {
		t.Errorf("output %q, screen %q", out.String(), screen.seen.String())
	}
}

// TestNoTerminal: what is a character device need not be a terminal.
func TestNoTerminal(t *testing.T) {
	t.Parallel()
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer null.Close()
	if _, ok := terminalWidth(null); ok {
		t.Error("the null device is a terminal")
	}
	_, terminal := openTerminal(t, 123)
	if columns, ok := terminalWidth(terminal); !ok || columns != 123 {
		t.Errorf("a terminal has %d columns, %v", columns, ok)
	}
}

// TestPubTyped: who types a message is told how to end it.
func TestPubTyped(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	for _, typed := range []string{"hello\n\x04", ""} {
		screen, terminal := openTerminal(t, 80)
		cmd := program(t, "pub", s.addr, "-topic", "a")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
		check(t, cmd.Start())
		screen.until("then Ctrl-D")
		want := exitOK
		if typed == "" {
			want = exitFailed
			check(t, cmd.Process.Signal(syscall.SIGINT))
		} else {
			_, err := screen.master.WriteString(typed)
			check(t, err)
			screen.until("published 1 message")
		}
		_ = cmd.Wait() // the code says it
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Errorf("typed %q: exit code %d, want %d: %q", typed, code, want, screen.seen.String())
		}
	}
}

// TestBenchOnTerminal: the progress is one line that is written over, and the table has colours.
func TestBenchOnTerminal(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	const columns = 50
	screen, terminal := openTerminal(t, columns)
	cmd := program(t, "bench", s.addr, "-n", "5", "-for", "1h")
	cmd.Stdout, cmd.Stderr = terminal, terminal
	check(t, cmd.Start())
	screen.until("s  connected 5/5")
	screen.until("published 1")
	screen.untilTimes(eraseLine, 3)
	progress := screen.seen.String()
	check(t, cmd.Process.Signal(syscall.SIGINT))
	screen.until("out of order")
	if strings.Contains(progress, "\n") || strings.Count(progress, "\r") < 3 {
		t.Errorf("the progress is %q", progress)
	}
	for _, line := range strings.Split(progress, "\r") {
		if line = strings.TrimSuffix(line, eraseLine); len(line) >= columns {
			t.Errorf("%q is too long for the screen", line)
		}
	}
	table := screen.seen.String()[len(progress):]
	if !strings.Contains(table, "\r"+eraseLine+"\x1b[1msse") {
		t.Errorf("the table does not take the place of the progress: %q", table)
	}
	check(t, cmd.Wait())
}

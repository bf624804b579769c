package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
)

// A console is the three standard streams.
type console struct {
	stdin          io.Reader
	typed          bool // somebody types the input
	stdout, stderr *stream
}

func newConsole() *console {
	_, typed := terminalWidth(os.Stdin)
	return &console{stdin: os.Stdin, typed: typed, stdout: newStream(os.Stdout), stderr: newStream(os.Stderr)}
}

// A stream is where output goes. It is safe for concurrent use.
type stream struct {
	file     *os.File
	terminal bool // that obeys escape sequences
	colours  bool

	mu      sync.Mutex
	passing bool // a line that will be written over is on the screen
}

func newStream(f *os.File) *stream {
	_, terminal := terminalWidth(f)
	terminal = terminal && os.Getenv("TERM") != "dumb"
	return &stream{file: f, terminal: terminal, colours: terminal && os.Getenv("NO_COLOR") == ""}
}

// Write writes b as it is, below nothing that passes.
func (s *stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	return s.file.Write(b)
}

// clear removes the line that passes. It is called with mu held.
func (s *stream) clear() {
	if s.passing {
		s.passing = false
		_, _ = s.file.WriteString("\r" + eraseLine)
	}
}

const eraseLine = "\x1b[K" // from the cursor on

// A style is what a terminal calls SGR.
type style string

const (
	dim    style = "2"
	bold   style = "1"
	cyan   style = "36"
	green  style = "32"
	yellow style = "33"
	alarm  style = "1;31" // bold and red
)

// paint returns text in a style, if there are colours.
func (s *stream) paint(as style, text string) string {
	if !s.colours || text == "" {
		return text
	}
	return "\x1b[" + string(as) + "m" + text + "\x1b[0m"
}

// complain writes a line, or lines, to the standard error. What may come from elsewhere in it is
// escaped.
func (c *console) complain(format string, args ...any) {
	text := escapeLines(fmt.Sprintf(format, args...))
	_, _ = fmt.Fprintln(c.stderr, c.stderr.paint(alarm, text)) // if that fails nobody can be told
}

// note writes a line about the state of things to the standard error.
func (c *console) note(as style, format string, args ...any) {
	_, _ = fmt.Fprintln(c.stderr, c.stderr.paint(as, escape(fmt.Sprintf(format, args...))))
}

// printJSON writes a value as one line. Characters that a terminal might obey are escaped as JSON
// has it, so that the value remains the same.
func (c *console) printJSON(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	line := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	_, err := c.stdout.Write(append(escapeJSON(line), '\n'))
	return err
}

// escapeJSON escapes what encoding/json leaves as it is. All of it can only be within strings.
func escapeJSON(line []byte) []byte {
	if !bytes.ContainsFunc(line, isHarmful) {
		return line
	}
	out := make([]byte, 0, len(line)+16)
	for _, r := range string(line) {
		if isHarmful(r) {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = append(out, string(r)...)
		}
	}
	return out
}

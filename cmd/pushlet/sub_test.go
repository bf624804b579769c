package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/usual2970/pushlet"
)

// TestSub follows two topics over each protocol while connections are cut.
func TestSub(t *testing.T) {
	t.Parallel()
	for scheme, lines := range map[string][]string{
		"":      {"message one", "news two", "message three", "message line 1\n             line 2"},
		"ws://": {"a message one", "b news two", "a message three", "* message line 1\n             line 2"},
	} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, nil)
			p := start(t, "sub", "-topic", "a", scheme+s.addr, "-topic=b", "-reconnect", "10ms")
			p.says("following b", 1)
			s.publish("a", "", "one")
			s.publish("b", "news", "two")
			for _, want := range lines[:2] {
				p.expect(want)
			}
			s.cut()
			p.says("connection lost: ", 1)
			s.publish("a", "", "three")
			check(t, s.p.PublishToAll("", "line 1\nline 2"))
			p.expect(lines[2])
			p.expect(lines[3])
			p.says("connected again to ", 1)
			p.interrupt()
			if rest := p.ends(exitOK); rest != "" {
				t.Errorf("there is more: %q", rest)
			}
		})
	}
}

var clockPattern = regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d\d\d $`)

// expect checks the message that comes next, which may have several lines.
func (p *process) expect(want string) {
	p.t.Helper()
	got := p.line()
	for range strings.Count(want, "\n") {
		got += "\n" + p.line()
	}
	if len(got) < len(lineIndent) || !clockPattern.MatchString(got[:len(lineIndent)]) || got[len(lineIndent):] != want {
		p.t.Errorf("got %q, want a time and %q", got, want)
	}
}

// TestSubJSON: a line of JSON for each message and gap, exactly as it was published.
func TestSubJSON(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	const data = "\x1b]0;title\a <b>\u009b2J \u202e\u2028\t\"\\\n新闻"
	for _, url := range []string{s.addr, "ws://" + s.addr} {
		args := []string{"sub", url, "-topic", "a", "-json", "-count", "1", "-quiet"}
		if strings.HasPrefix(url, "ws") {
			args = append(args, "-since", "a=1-0")
		} else {
			args = append(args, "-last-event-id", "nonsense")
		}
		p := start(t, args...)
		if gap := p.line(); !strings.HasPrefix(gap, `{"gap":{"topics":["`) {
			t.Errorf("%s: the gap is %s", url, gap)
		}
		var got struct{ Topic, Event, Data, ID, Time string }
		line := ""
		s.publish("a", "", data)
		for {
			line = p.line()
			got.Data = ""
			check(t, json.Unmarshal([]byte(line), &got))
			if got.Data != "" {
				break // the other topic's gap is before it
			}
		}
		if got.Event != "message" || got.Data != data || got.ID == "" {
			t.Errorf("%s: got %s", url, line)
		}
		if isWS := strings.HasPrefix(url, "ws"); (got.Topic == "a") != isWS || (got.Time != "") != isWS {
			t.Errorf("%s: topic and time of %s", url, line)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return isHarmful(r) }) {
			t.Errorf("%s: raw control characters in %q", url, line)
		}
		p.ends(exitOK)
		if said := p.stderr.String(); said != "" {
			t.Errorf("%s: -quiet says %q", url, said)
		}
		eventually(t, "it is gone", func() bool { return s.p.Stats().Clients == 0 })
	}
}

// TestSubEscapes: what a server sends cannot forge a line, or reach a terminal, even by way of a pipe.
func TestSubEscapes(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	p := start(t, "sub", "ws://"+s.addr, "-topic", "a", "-count", "1")
	p.says("following a", 1)
	s.publish("a", "ev\x1b[2Jent", "x\x1b[31m\u009b\u202e\ty\r\n00:00:00.000 b message forged \x7f")
	p.expect(`a ev\x1b[2Jent x\x1b[31m\u009b\u202e` + "\ty\\r\n             " + `00:00:00.000 b message forged \x7f`)
	p.ends(exitOK)
}

func TestSubRaw(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	p := start(t, "sub", s.addr, "-topic", "a", "-raw", "-event", "x", "-event", "y", "-last-event-id", "nonsense", "-count", "2")
	p.says("gap", 1)
	s.publish("a", "x", "one\x1b")
	s.publish("a", "z", "left out")
	s.publish("a", "y", "two")
	if got, want := p.ends(exitOK), "one\x1b\ntwo\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSubGap(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	for _, args := range [][]string{
		{s.addr, "-last-event-id", "nonsense"},
		{"ws://" + s.addr, "-since", "a=1-0"},
	} {
		stdout, stderr := runs(t, exitLost, "", append([]string{"sub", "-topic", "a", "-fail-on-gap"}, args...)...)
		if !strings.Contains(stdout, "gap ") || !strings.Contains(stderr, "messages were lost: gap ") {
			t.Errorf("%v: printed %q, said %q", args, stdout, stderr)
		}
	}
}

// TestSubRefused: what is final ends it.
func TestSubRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t, []pushlet.Option{pushlet.WithAuthorize(func(r *http.Request, topic string) error {
		if topic == "public" || r.Header.Get("Authorization") == "Bearer T1" {
			return nil
		}
		return errors.New("not for \x1b[31myou")
	})})
	for _, url := range []string{s.addr, "ws://" + s.addr, "ws://" + s.addr + "?topic=b"} {
		_, stderr := runs(t, exitFailed, "", "sub", url, "-topic", "a", "-reconnect", "10ms")
		if !strings.Contains(stderr, `not for \x1b[31myou`) {
			t.Errorf("%s: said %q", url, stderr)
		}
	}
	// One topic is enough to stay.
	p := start(t, "sub", "ws://"+s.addr, "-topic", "public", "-topic", "a")
	p.says("not for ", 1)
	p.says("following public", 1)
	s.publish("public", "", "x")
	p.expect("public message x")

	p = start(t, "sub", "ws://"+s.addr, "-topic", "a", "-token", "T1")
	p.says("following a", 1)
	_, stderr := runs(t, exitFailed, "", "sub", s.addr+"/nothing")
	if !strings.Contains(stderr, "404") {
		t.Errorf("/nothing: said %q", stderr)
	}
}

// TestSubHeaders: the headers of each attempt.
func TestSubHeaders(t *testing.T) {
	t.Parallel()
	got := make(chan http.Header, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header
		w.WriteHeader(http.StatusNoContent) // the end
	}))
	t.Cleanup(srv.Close)
	addr := srv.Listener.Addr().String()
	for _, c := range []struct {
		url, want string
		args      []string
		env       string
	}{
		{addr, "Bearer T1", []string{"-token", "T1"}, "T2"},
		{addr, "Bearer T2", nil, "T2"},
		{addr, "Basic eA==", []string{"-header", "authorization:  Basic eA== ", "-token", "T1"}, ""},
		{"http://ann:secret@" + addr, "Basic YW5uOnNlY3JldA==", nil, ""},
		{"ws://ann:secret@" + addr, "Basic YW5uOnNlY3JldA==", nil, ""},
	} {
		cmd := program(t, append([]string{"sub", "-header", "X-A: 1", c.url, "-header", "x-a:2"}, c.args...)...)
		cmd.Env = append(cmd.Env, "PUSHLET_TOKEN="+c.env)
		out, err := cmd.CombinedOutput()
		if err == nil || strings.Contains(string(out), "secret") {
			t.Errorf("%s: ended with %v and %s", c.url, err, out)
		}
		h := <-got
		if h.Get("Authorization") != c.want || strings.Join(h["X-A"], " ") != "1 2" {
			t.Errorf("%v %s: Authorization %q, X-A %q", c.args, c.url, h["Authorization"], h["X-A"])
		}
	}
}

// TestSubTime: -for ends well if all is well.
func TestSubTime(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	runs(t, exitOK, "", "sub", s.addr, "-for", "3s")
	_, stderr := runs(t, exitFailed, "", "sub", s.addr, "-for", "300ms", "-count", "1")
	if !strings.Contains(stderr, "0 of 1 messages") {
		t.Errorf("said %q", stderr)
	}
	s.http.Listener.Close()
	_, stderr = runs(t, exitFailed, "", "sub", s.addr, "-for", "300ms")
	if !strings.Contains(stderr, "no connection within") {
		t.Errorf("said %q", stderr)
	}
	p := start(t, "sub", s.addr)
	p.says("no connection: ", 1)
	p.interrupt()
	p.ends(exitOK)
}

// TestSubDefaultTopic: over both protocols it is the same.
func TestSubDefaultTopic(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	for _, url := range []string{s.addr, "ws://" + s.addr} {
		p := start(t, "sub", url, "-raw", "-count", "1")
		p.says("following default", 1)
		s.publish("default", "", "x")
		if got := p.ends(exitOK); got != "x\n" {
			t.Errorf("%s: got %q", url, got)
		}
	}
}

// TestSubPipe: when nobody reads any more it ends without a word.
func TestSubPipe(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	for _, format := range []string{"-raw", "-json", "-fail-on-gap"} {
		p := start(t, "sub", s.addr, "-topic", "a", format)
		p.says("following a", 1)
		s.publish("a", "", "x")
		p.line()
		before := p.stderr.String()
		check(t, p.out.Close())
		s.publish("a", "", "y")
		_ = p.cmd.Wait()
		if code, said := p.cmd.ProcessState.ExitCode(), strings.TrimPrefix(p.stderr.String(), before); code != 0 || strings.Contains(said, "pipe") {
			t.Errorf("%s: exit code %d, said %q", format, code, said)
		}
		eventually(t, "it is gone", func() bool { return s.p.Stats().Clients == 0 })
	}
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/pushlettest"
)

func TestStore(t *testing.T) {
	open := func(t *testing.T, path string) *store {
		t.Helper()
		s, err := openStore(path, keep, maxAge)
		if err != nil {
			t.Fatal(err)
		}
		s.db.NoSync = true // it is a test
		return s
	}
	closeOnce := func(s *store) {
		if s.db.Path() != "" { // it is open
			if err := s.close(); err != nil {
				t.Error(err)
			}
		}
	}
	pushlettest.TestHistory(t,
		func(t *testing.T) pushlet.History {
			s := open(t, filepath.Join(t.TempDir(), "test.db"))
			t.Cleanup(func() { closeOnce(s) })
			return s
		},
		pushlettest.HistoryReopen(func(t *testing.T, h pushlet.History) pushlet.History {
			path := h.(*store).db.Path()
			closeOnce(h.(*store))
			s := open(t, path)
			t.Cleanup(func() { closeOnce(s) })
			return s
		}),
		pushlettest.HistoryTrim(func(t *testing.T, h pushlet.History, a pushlet.Audience, n int) {
			if err := trim(h.(*store), a, n); err != nil {
				t.Fatal(err)
			}
		}))
}

// trim removes the oldest messages of an audience that are too many.
func trim(s *store, a pushlet.Audience, keep int) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		key := keyOf(a)
		log := tx.Bucket(messagesBucket).Bucket(key)
		if log == nil {
			return nil
		}
		return changeCount(tx, key, log, 0, keep)
	})
}

// TestPrune: what is too old goes, also the newest.
func TestPrune(t *testing.T) {
	s, err := openStore(filepath.Join(t.TempDir(), "test.db"), 3, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.close() }()
	now := time.UnixMilli(1_800_000_000_000)
	id := func(ago time.Duration) string { return fmt.Sprintf("%d-1500000000001", now.Add(-ago).UnixMilli()) }
	a, b := pushlet.Audience{Topic: "a"}, pushlet.Audience{User: "a"}
	newest := id(10 * time.Minute)
	for _, m := range []pushlet.Message{
		{ID: id(90 * time.Minute), Audience: b}, {ID: id(70 * time.Minute), Audience: a}, {ID: id(30 * time.Minute), Audience: a}, {ID: newest, Audience: a},
	} {
		if err := s.Append(t.Context(), []pushlet.Message{m}); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(a pushlet.Audience, want int) {
		t.Helper()
		if got, err := s.After(t.Context(), a, "", 100); err != nil || len(got) != want {
			t.Errorf("%d messages for %v, %v; want %d", len(got), a, err, want)
		}
		if id, err := s.Newest(t.Context()); err != nil || id != newest {
			t.Errorf("Newest returns %s, %v", id, err)
		}
	}
	expect(a, 3)
	expect(b, 1)
	for range 2 {
		if err := s.prune(now); err != nil {
			t.Fatal(err)
		}
		expect(a, 2)
		expect(b, 0)
	}
	for i := range 3 { // the count is still right
		newest = id(time.Duration(5-i) * time.Minute)
		if err := s.Append(t.Context(), []pushlet.Message{{ID: newest, Audience: a}}); err != nil {
			t.Fatal(err)
		}
	}
	expect(a, 3)
	if err := s.prune(now.Add(2 * time.Hour)); err != nil {
		t.Fatal(err)
	}
	expect(a, 0)
}

// A program is the example, built and started.
type program struct {
	t    *testing.T
	exe  string
	db   string
	url  string
	cmd  *exec.Cmd
	next int
}

func (p *program) start() {
	p.t.Helper()
	addr := "127.0.0.1:0"
	if p.url != "" {
		addr = strings.TrimPrefix(p.url, "http://") // the browser comes back there
	}
	p.cmd = exec.Command(p.exe, "-addr", addr, "-db", p.db)
	var problems bytes.Buffer
	p.cmd.Stderr = &problems
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = p.cmd.Wait()
		p.t.Fatalf("it has not started: %v\n%s", err, problems.String())
	}
	p.url = strings.TrimSpace(line)
}

func (p *program) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	_ = p.cmd.Wait()
}

// send publishes the next messages.
func (p *program) send(n int) {
	p.t.Helper()
	for range n {
		p.next++
		resp, err := http.PostForm(p.url+"/send", url.Values{"message": {fmt.Sprint(p.next)}})
		if err != nil {
			p.t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			p.t.Fatalf("sending: status %d", resp.StatusCode)
		}
	}
}

// A reader is what a browser's EventSource is.
type reader struct {
	t      *testing.T
	p      *program
	cursor string
	lines  *bufio.Scanner
	close  func()
	got    []string
}

func (r *reader) connect() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.p.url+"/events?topic=news", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resumes := r.cursor != ""
	if resumes {
		req.Header.Set("Last-Event-ID", r.cursor)
	}
	resp, err := http.DefaultClient.Do(req) //nolint:bodyclose // r.close does
	if err != nil {
		r.t.Fatal(err)
	}
	r.close = func() { cancel(); resp.Body.Close() }
	r.lines = bufio.NewScanner(resp.Body)
	event, data := r.next()
	if event != "pushlet.connected" || strings.Contains(data, `"resumed":true`) != resumes {
		r.t.Fatalf("first event %s %s", event, data)
	}
}

// next reads an event; "" is the end of the stream.
func (r *reader) next() (event, data string) {
	id := ""
	for r.lines.Scan() {
		name, value, _ := strings.Cut(r.lines.Text(), ": ")
		switch name {
		case "id":
			id = value
		case "event":
			event = value
		case "data":
			data = value
		case "":
			if event != "" {
				r.cursor = id
				return event, data
			}
		}
	}
	return "", ""
}

// read reads messages, up to one.
func (r *reader) read(last int) {
	r.t.Helper()
	for len(r.got) == 0 || r.got[len(r.got)-1] != fmt.Sprint(last) {
		event, data := r.next()
		if event != "message" {
			r.t.Fatalf("event %q %s after %q, want message %d", event, data, r.got, last)
		}
		r.got = append(r.got, data)
	}
}

// TestKill kills the program, and starts it again: a client gets every message exactly once.
func TestKill(t *testing.T) {
	p := &program{t: t, exe: build(t), db: filepath.Join(t.TempDir(), "history.db")}
	p.start()
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	p.send(1) // with an empty file the log begins anew
	r := &reader{t: t, p: p, got: []string{"1"}}
	r.connect()
	p.send(10)
	r.read(11)

	// Killed with the client there, which has read but a part of what was sent.
	p.send(20)
	r.read(18)
	p.kill()
	r.close()
	p.start()
	r.connect()
	r.read(31)

	// The client is away: messages before the end, and after it.
	r.close()
	p.send(15)
	p.kill()
	p.start()
	p.send(15)
	r.connect()
	p.send(5)
	r.read(66)

	// Several times while the client is away, once in an orderly way.
	r.close()
	for range 3 {
		p.send(3)
		p.kill()
		p.start()
	}
	p.send(1)
	r.connect()
	r.read(76)
	r.close()

	want := make([]string, 76)
	for i := range want {
		want[i] = fmt.Sprint(i + 1)
	}
	if !slices.Equal(r.got, want) {
		t.Errorf("got %q, want %q", r.got, want)
	}
}

// TestKillWhileSending kills the program in the midst of it: what was acknowledged arrives,
// and of the others none twice.
func TestKillWhileSending(t *testing.T) {
	p := &program{t: t, exe: build(t), db: filepath.Join(t.TempDir(), "history.db")}
	p.start()
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	p.send(1)
	r := &reader{t: t, p: p}
	r.connect()
	var acknowledged []string
	for round := range 5 {
		const senders = 4
		var mu sync.Mutex
		var all sync.WaitGroup
		for sender := range senders {
			all.Go(func() {
				for i := 0; ; i++ {
					text := fmt.Sprintf("%d %d %d", round, sender, i)
					resp, err := http.PostForm(p.url+"/send", url.Values{"message": {text}})
					if err != nil {
						return // killed
					}
					resp.Body.Close()
					if resp.StatusCode == http.StatusNoContent {
						mu.Lock()
						acknowledged = append(acknowledged, text)
						mu.Unlock()
					}
				}
			})
		}
		for range 20 {
			event, data := r.next()
			if event != "message" {
				t.Fatalf("event %q %s", event, data)
			}
			r.got = append(r.got, data)
		}
		p.kill()
		all.Wait()
		r.close()
		p.start()
		r.connect()
	}
	p.send(1)
	r.read(2)
	r.close()
	seen := make(map[string]int)
	last := make(map[string]int)
	for _, text := range r.got[:len(r.got)-1] {
		seen[text]++
		var round, sender, i int
		if _, err := fmt.Sscan(text, &round, &sender, &i); err != nil {
			t.Fatal(err)
		}
		from := fmt.Sprint(round, " ", sender)
		if seen[text] > 1 || i < last[from] {
			t.Errorf("%q came again, or late", text)
		}
		last[from] = i
	}
	for _, text := range acknowledged {
		if seen[text] == 0 {
			t.Errorf("%q was acknowledged and never came", text)
		}
	}
	if len(acknowledged) < 50 {
		t.Errorf("only %d were acknowledged", len(acknowledged))
	}
}

// build returns the path of the program.
func build(t *testing.T) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "history")
	if out, err := exec.Command("go", "build", "-o", exe, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return exe
}

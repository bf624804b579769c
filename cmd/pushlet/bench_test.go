package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/usual2970/pushlet"
)

// runsBench runs bench to its end and returns what it has found.
func runsBench(t *testing.T, code int, args ...string) (r result, stderr string) {
	t.Helper()
	stdout, stderr := runs(t, code, "", append([]string{"bench", "-json", "-quiet", "-settle", "1m"}, args...)...)
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("%v: %q; standard error:\n%s", err, stdout, stderr)
	}
	return r, stderr
}

// counts are what a bench with nothing to complain about has found.
func (r result) counts() string {
	return fmt.Sprintf("opened %d failed %d reconnects %d, published %d of %d, received %d of %d, lost %d doubled %d out of order %d",
		r.Connections.Opened, r.Connections.Failed, r.Connections.Reconnects, *r.Published, *r.Planned,
		r.Deliveries.Received, *r.Deliveries.Expected, *r.Lost, *r.Doubled, *r.OutOfOrder)
}

// TestBench: hundreds of connections over each protocol get everything.
func TestBench(t *testing.T) {
	t.Parallel()
	withToken := func(r *http.Request) error {
		if r.Header.Get("Authorization") != "Bearer T1" || r.Header.Get("X-A") != "1" {
			return errors.New("who are you")
		}
		return nil
	}
	s := newServer(t, []pushlet.Option{
		pushlet.WithAuthorize(func(r *http.Request, _ string) error { return withToken(r) }),
		pushlet.WithPushAuthorize(withToken),
	})
	for _, scheme := range []string{"", "ws://"} {
		r, _ := runsBench(t, exitOK, scheme+s.addr, "-n", "300", "-connect-rate", "0", "-rate", "40", "-for", "500ms",
			"-size", "1000", "-token", "T1", "-header", "X-A: 1")
		want := "opened 300 failed 0 reconnects 0, published 20 of 20, received 6000 of 6000, lost 0 doubled 0 out of order 0"
		if got := r.counts(); got != want {
			t.Errorf("%s: %s, want %s", scheme, got, want)
		}
		for name, ms := range map[string]millis{"connect": r.ConnectMS, "publish": *r.PublishMS, "delivery": *r.DeliveryMS} {
			if ms.P50 <= 0 || ms.P50 > ms.P90 || ms.P90 > ms.P99 || ms.P99 > ms.Max || ms.Max > patience.Seconds()*1000 {
				t.Errorf("%s: %s: %v", scheme, name, ms)
			}
		}
	}
	r, _ := runsBench(t, exitOK, s.addr, "-n", "50", "-topics", "7", "-rate", "210", "-for", "300ms", "-token", "T1", "-header", "X-A: 1")
	// 63 messages, 9 for each topic, of which the first has 8 connections and the others 7.
	want := "opened 50 failed 0 reconnects 0, published 63 of 63, received 450 of 450, lost 0 doubled 0 out of order 0"
	if got := r.counts(); got != want {
		t.Errorf("topics: %s, want %s", got, want)
	}
	_, stderr := runs(t, exitFailed, "", "bench", s.addr, "-n", "3", "-header", "X-A: 1")
	if !strings.Contains(stderr, "cannot publish to http://"+s.addr+"/push: status 403 Forbidden: who are you") {
		t.Errorf("said %q", stderr)
	}
}

// TestBenchTable is what a person sees.
func TestBenchTable(t *testing.T) {
	t.Parallel()
	s := newServer(t, []pushlet.Option{pushlet.WithMaxClients(5)})
	stdout, stderr := runs(t, exitFailed, "", "bench", "ws://"+s.addr, "-n", "8", "-for", "100ms")
	for _, want := range []string{
		"websocket ws://" + s.addr + "/ws\n", "\nconnect  ", "\npublish  ", "\ndelivery ", "\nconnections   5 of 8 in ",
		"\nfailed        3\n", "\npublished     1 of 1\n", "\ndeliveries    5 of 5, ", "\nlost          0\n", "\nfailed 3 × status 503 Service Unavailable",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout+stderr, "\x1b") || !strings.Contains(stderr, "3 of 8 connections failed") {
		t.Errorf("printed %q, said %q", stdout, stderr)
	}
	// Where nobody is, there is nothing to measure.
	s.http.Listener.Close()
	_, stderr = runs(t, exitFailed, "", "bench", s.addr, "-n", "2", "-no-publish", "-for", "1h")
	if !strings.Contains(stderr, "2 of 2 connections failed") {
		t.Errorf("said %q", stderr)
	}
}

// TestBenchReconnects cuts all connections, that of the publisher too, in the middle.
func TestBenchReconnects(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"", "ws://"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			var s *server
			f := &faults{serve: func(n int64, w http.ResponseWriter, r *http.Request, push http.Handler) {
				push.ServeHTTP(w, r)
				if n == 2 { // the first was to see whether it works
					if err := s.p.PublishToAll("", "of others"); err != nil {
						t.Error(err)
					}
					s.cut()
				}
			}}
			s = newServer(t, []pushlet.Option{byName}, f.middleware)
			r, _ := runsBench(t, exitOK, scheme+s.addr+"?user=ann", "-n", "20", "-rate", "20", "-for", "2s")
			want := "opened 20 failed 0 reconnects 20, published 40 of 40, received 800 of 800, lost 0 doubled 0 out of order 0"
			if got := r.counts(); got != want || len(r.Connections.Breaks) == 0 || r.Gaps != 0 || scheme == "" && r.Others != 20 {
				t.Errorf("%s, breaks %v, others %d, gaps %d, want %s", got, r.Connections.Breaks, r.Others, r.Gaps, want)
			}
		})
	}
}

// TestBenchInterrupted: it ends early, and tells what it has found.
func TestBenchInterrupted(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	p := start(t, "bench", s.addr, "-n", "5", "-for", "1h")
	eventually(t, "it publishes", func() bool { return s.p.Stats().Published > 5 })
	p.interrupt()
	if got := p.ends(exitOK); !strings.Contains(got, "\nlost          0\n") {
		t.Errorf("printed %q", got)
	}
	p = start(t, "bench", "ws://"+s.addr, "-n", "1000", "-connect-rate", "5", "-json")
	eventually(t, "it connects", func() bool { return s.p.Stats().WebSocket > 1 })
	p.interrupt()
	if got := p.ends(exitOK); !strings.Contains(got, `"interrupted":true`) {
		t.Errorf("printed %q", got)
	}
	eventually(t, "all are gone", func() bool { return s.p.Stats().Clients == 0 })
}

// TestSecondInterrupt: who is in a hurry does not wait for a server that does not answer.
func TestSecondInterrupt(t *testing.T) {
	t.Parallel()
	f := &faults{serve: func(n int64, w http.ResponseWriter, r *http.Request, push http.Handler) {
		if n == 1 {
			push.ServeHTTP(w, r)
			return
		}
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}}
	s := newServer(t, nil, f.middleware)
	p := start(t, "bench", s.addr, "-n", "2", "-timeout", "1h", "-for", "1h")
	eventually(t, "it waits for an answer", func() bool { return f.requests.Load() == 2 })
	ended := make(chan struct{})
	go func() { // ends with the process, at the end of the test at the latest
		defer close(ended)
		_ = p.cmd.Wait() // the code says how
	}()
	eventually(t, "it has ended", func() bool {
		_ = p.cmd.Process.Signal(syscall.SIGINT) // it may have ended
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
	if code := p.cmd.ProcessState.ExitCode(); code != -1 {
		t.Errorf("exit code %d, want an end by the signal", code)
	}
}

// TestBenchPublishFails: what bench cannot do is a failure, also where nobody knows the outcome.
func TestBenchPublishFails(t *testing.T) {
	t.Parallel()
	f := &faults{serve: func(n int64, w http.ResponseWriter, r *http.Request, push http.Handler) {
		if n > 3 {
			http.Error(w, "", http.StatusNotImplemented)
			return
		}
		push.ServeHTTP(w, r)
	}}
	s := newServer(t, nil, f.middleware)
	r, stderr := runsBench(t, exitFailed, s.addr, "-n", "3")
	if *r.Lost != 0 || *r.Published < 2 || !strings.Contains(stderr, "publishing has failed: status 501") {
		t.Errorf("%s, said %q", r.counts(), stderr)
	}
	f = &faults{serve: func(_ int64, _ http.ResponseWriter, r *http.Request, push http.Handler) { swallow(r, push) }}
	s = newServer(t, nil, f.middleware)
	_, stderr = runs(t, exitFailed, "", "bench", s.addr, "-n", "3")
	if !strings.Contains(stderr, "perhaps published") {
		t.Errorf("said %q", stderr)
	}
}

// TestBenchListens: without publishing it counts what others publish.
func TestBenchListens(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	p := start(t, "bench", s.addr, "-n", "5", "-no-publish", "-for", "1h", "-topic", "a")
	eventually(t, "it counts", func() bool {
		s.publish("a", "", "x")
		said := p.stderr.String()
		return strings.Contains(said, "deliveries ") && !strings.HasSuffix(said, "deliveries 0 (0/s)\n")
	})
	p.interrupt()
	got := p.ends(exitOK)
	if !strings.Contains(got, "\nconnections   5 of 5 in ") || !strings.Contains(got, "\ndeliveries    ") || strings.Contains(got, "lost") {
		t.Errorf("printed %q", got)
	}
}

// A badServer speaks as much of both protocols as bench needs, and does with messages what it likes.
type badServer struct {
	// deliver returns what the client gets for the n-th message, counted from the first of the run.
	deliver func(client, n int, data string) []string

	mu       sync.Mutex
	clients  []chan string
	messages int
}

func (s *badServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/push" {
		s.push(w, r)
		return
	}
	in := make(chan string, 1000)
	s.mu.Lock()
	s.clients = append(s.clients, in)
	s.mu.Unlock()
	if r.URL.Path == "/events" {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "event: pushlet.connected\ndata: {}\n\n")
		for w.(http.Flusher).Flush(); ; w.(http.Flusher).Flush() {
			select {
			case data := <-in:
				fmt.Fprintf(w, "data: %s\n\n", data)
			case <-r.Context().Done():
				return
			}
		}
	}
	up := websocket.Upgrader{}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	gone := make(chan struct{})
	go func() { // ends with the connection
		defer close(gone)
		for _, _, err := conn.NextReader(); err == nil; _, _, err = conn.NextReader() {
		}
	}()
	defer conn.Close()
	send := func(event, data string) {
		_ = conn.WriteJSON(map[string]string{"topic": "bench", "event": event, "data": data}) // gone says if it fails
	}
	for send("pushlet.subscribed", ""); ; {
		select {
		case data := <-in:
			send("bench", data)
		case <-gone:
			return
		}
	}
}

func (s *badServer) push(w http.ResponseWriter, r *http.Request) {
	var body pushBody
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	results := make([]pushResult, len(body.Events))
	for i, e := range body.Events {
		for c, client := range s.clients {
			for _, data := range s.deliver(c, s.messages, e.Data) {
				client <- data
			}
		}
		if len(s.clients) > 0 {
			s.messages++
		}
		results[i] = pushResult{Published: 1, Clients: len(s.clients)}
	}
	answerJSON(w, http.StatusOK, results...)
}

// TestBenchFaults: one message of one connection that is lost, doubled or late is noticed.
func TestBenchFaults(t *testing.T) {
	t.Parallel()
	for fault, c := range map[string]struct {
		code    int
		want    string
		deliver func(n int, data string) []string // for one client
	}{
		"none": {exitOK, "received 50 of 50, lost 0 doubled 0 out of order 0", func(_ int, data string) []string { return []string{data} }},
		"lost": {exitLost, "received 49 of 50, lost 1 doubled 0 out of order 0", func(n int, data string) []string {
			if n == 4 {
				return nil
			}
			return []string{data}
		}},
		"the last lost": {exitLost, "received 49 of 50, lost 1 doubled 0 out of order 0", func(n int, data string) []string {
			if n == 9 {
				return nil
			}
			return []string{data}
		}},
		"doubled": {exitLost, "received 50 of 50, lost 0 doubled 1 out of order 0", func(n int, data string) []string {
			if n == 4 {
				return []string{data, data}
			}
			return []string{data}
		}},
		"late": {exitLost, "received 50 of 50, lost 0 doubled 0 out of order 1", later()},
	} {
		for _, scheme := range []string{"", "ws://"} {
			t.Run(fault+" "+scheme, func(t *testing.T) {
				t.Parallel()
				deliver := c.deliver
				if fault == "late" {
					deliver = later()
				}
				bad := &badServer{deliver: func(client, n int, data string) []string {
					if client == 3 {
						return deliver(n, data)
					}
					return []string{data}
				}}
				srv := httptest.NewServer(bad)
				t.Cleanup(srv.Close)
				args := []string{scheme + srv.Listener.Addr().String(), "-n", "5", "-rate", "50", "-for", "200ms"}
				if strings.Contains(fault, "lost") {
					args = append(args, "-settle", "3s") // it waits in vain
				}
				r, stderr := runsBench(t, c.code, args...)
				if got := r.counts(); !strings.HasSuffix(got, c.want) {
					t.Errorf("%s, want %s", got, c.want)
				}
				if (c.code == exitOK) != (stderr == "") {
					t.Errorf("said %q", stderr)
				}
			})
		}
	}
}

// later holds back one message until after the next.
func later() func(n int, data string) []string {
	held := ""
	return func(n int, data string) []string {
		switch n {
		case 4:
			held = data
			return nil
		case 5:
			return []string{data, held}
		}
		return []string{data}
	}
}

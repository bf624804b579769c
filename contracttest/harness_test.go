package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// This file plays the part of LaunchDarkly's harness, with real sockets: it drives the running
// service, sends streams, and takes the callbacks. The cases are in files with the names that
// they have there: tests_basic_parsing.go is basic_parsing_test.go, and so on, in the same order.

// patience is how long a test waits for what must come. Only a failure uses it up.
const patience = 30 * time.Second

// startService runs the service until the test is over, and returns its URL.
func startService(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	served := make(chan error, 1)
	go func() { served <- serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-served)
	})
	return "http://" + l.Addr().String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// An answer is one of the service.
type answer struct {
	status         int
	location, body string
}

// ask sends JSON, or nothing.
func ask(t testing.TB, method, url string, v any) answer {
	t.Helper()
	var text []byte
	if v != nil {
		var err error
		text, err = json.Marshal(v)
		must(t, err)
	}
	req, err := http.NewRequest(method, url, bytes.NewReader(text))
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return answer{resp.StatusCode, resp.Header.Get("Location"), string(b)}
}

// params are what a stream is made with, by the names of the protocol.
type params map[string]any

// atOnce makes a client come back as soon as it can.
var atOnce = params{"initialDelayMs": 0}

// with returns p and more.
func (p params) with(name string, value any) params {
	more := params{name: value}
	for k, v := range p {
		more[k] = v
	}
	return more
}

// A subject is a client in the service, seen from the harness: what it asks for, and what it
// reports. Its methods belong to the test's goroutine.
type subject struct {
	t     testing.TB
	url   string // of the harness: the stream is at /stream
	addr  string
	mux   *http.ServeMux
	conns chan *conn
	told  chan message // in the order of their numbers

	mu      sync.Mutex
	next    int // number of the next message
	pending map[int]message

	location string // in the service
}

// A conn is a request for a stream, which is answered with one.
type conn struct {
	*http.Request
	body   string
	chunks chan string
	cut    chan func() // how the handler ends
}

// prepare starts what the client will talk to. A case may handle more paths before create.
func prepare(t testing.TB) *subject {
	t.Helper()
	s := &subject{
		t:       t,
		mux:     http.NewServeMux(),
		conns:   make(chan *conn, 1000),
		told:    make(chan message, 10_000),
		next:    1,
		pending: map[int]message{},
	}
	srv := httptest.NewUnstartedServer(s.mux)
	srv.Listener = meteredListener{srv.Listener, arrivals}
	srv.Start()
	t.Cleanup(srv.Close)
	s.url, s.addr = srv.URL, srv.Listener.Addr().String()
	s.mux.HandleFunc("/stream", s.stream)
	s.mux.HandleFunc("POST /callback/{number}", s.callback)
	return s
}

// create makes the client, whose stream is at /stream if p does not say otherwise.
func (s *subject) create(service string, p params) {
	s.t.Helper()
	if p["streamUrl"] == nil {
		p = p.with("streamUrl", s.url+"/stream")
	}
	made := ask(s.t, http.MethodPost, service+"/", p.with("callbackUrl", s.url+"/callback").with("tag", s.t.Name()))
	if made.status != http.StatusCreated || made.location == "" {
		s.t.Fatalf("%+v", made)
	}
	s.location = made.location
	s.t.Cleanup(func() {
		if a := ask(s.t, http.MethodDelete, s.location, nil); a.status != http.StatusNoContent {
			s.t.Errorf("DELETE: %+v", a)
		}
	})
}

// begin makes a client that has a connection.
func begin(t testing.TB, service string, p params) (*subject, *conn) {
	t.Helper()
	s := prepare(t)
	s.create(service, p)
	return s, s.accept()
}

func (s *subject) command(command any) (status int) {
	s.t.Helper()
	return ask(s.t, http.MethodPost, s.location, command).status
}

// stream answers with what the test sends.
func (s *subject) stream(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client has gone
	}
	c := &conn{Request: r, body: string(b), chunks: make(chan string), cut: make(chan func(), 1)}
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	rc := http.NewResponseController(w)
	if rc.Flush() != nil {
		return
	}
	s.conns <- c
	for {
		select {
		case text := <-c.chunks:
			io.WriteString(w, text)
			if rc.Flush() != nil {
				return
			}
			arrivals.wait(ends{r.RemoteAddr, s.addr})
		case end := <-c.cut:
			end()
			return
		case <-r.Context().Done():
			return
		}
	}
}

// send sends chunks, each when the client has read the one before.
func (c *conn) send(t testing.TB, chunks ...string) {
	t.Helper()
	for _, text := range chunks {
		select {
		case c.chunks <- text:
		case <-c.Context().Done():
			t.Fatal("the client has left")
		}
	}
}

// end ends the stream in good order, abort in the midst of it.
func (c *conn) end()   { c.cut <- func() {} }
func (c *conn) abort() { c.cut <- func() { panic(http.ErrAbortHandler) } }

// accept waits for a connection.
func (s *subject) accept() *conn {
	s.t.Helper()
	return await(s.t, "a connection", s.conns)
}

func await[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v = <-c:
	case <-timer.C:
		t.Fatalf("waiting for %s: not within %v", what, patience)
	}
	return v
}

// callback takes a message. The protocol lets them arrive in any order.
func (s *subject) callback(w http.ResponseWriter, r *http.Request) {
	var m message
	n, err := strconv.Atoi(r.PathValue("number"))
	if err == nil {
		err = json.NewDecoder(r.Body).Decode(&m)
	}
	if err == nil && m.Kind != "event" && m.Kind != "error" || m.Kind == "event" && m.Event == nil {
		err = fmt.Errorf("message %+v", m)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, twice := s.pending[n]; err == nil && (twice || n < s.next) {
		err = fmt.Errorf("number %d came twice", n)
	}
	if err != nil {
		s.t.Error(err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.pending[n] = m
	for ; ; s.next++ {
		m, ok := s.pending[s.next]
		if !ok {
			break
		}
		delete(s.pending, s.next)
		s.told <- m
	}
	w.WriteHeader(http.StatusAccepted)
}

// expect waits for events and nothing else. A want without a type is a "message".
func (s *subject) expect(want ...event) {
	s.t.Helper()
	for _, want := range want {
		if want.Type == "" {
			want.Type = "message"
		}
		m := await(s.t, fmt.Sprintf("event %.200q", want), s.told)
		if m.Kind != "event" {
			s.t.Fatalf("%s %q, want event %.200q", m.Kind, m.Error, want)
		}
		if *m.Event != want { // which may be large
			s.t.Errorf("event %.200q of %d bytes, want %.200q of %d", *m.Event, len(m.Event.Data), want, len(want.Data))
		}
	}
}

// expectError waits for an error, and returns its text.
func (s *subject) expectError() string {
	s.t.Helper()
	m := await(s.t, "an error", s.told)
	if m.Kind != "error" || m.Error == "" {
		s.t.Fatalf("%s %.200q %q, want an error", m.Kind, m.Event, m.Error)
	}
	return m.Error
}

// nothing fails the test if something was reported that it did not take.
func (s *subject) nothing() {
	s.t.Helper()
	if len(s.told) > 0 {
		m := <-s.told
		s.t.Errorf("%s %.200q %q was not expected", m.Kind, m.Event, m.Error)
	}
}

// A parsing is what a client makes of chunks.
type parsing struct {
	name   string
	chunks []string
	want   []event
}

// run sends the chunks, and then an event that shows that nothing is left over.
func (p parsing) run(t *testing.T, service string) {
	t.Run(p.name, func(t *testing.T) {
		s, c := begin(t, service, atOnce)
		c.send(t, p.chunks...)
		s.expect(p.want...)
		id := ""
		if len(p.want) > 0 {
			id = p.want[len(p.want)-1].ID
		}
		c.send(t, "data: clean\n\n")
		s.expect(event{Data: "clean", ID: id})
		s.nothing()
	})
}

// pieces cuts a text.
func pieces(text string, size int) (chunks []string) {
	for b := range slices.Chunk([]byte(text), size) {
		chunks = append(chunks, string(b))
	}
	return chunks
}

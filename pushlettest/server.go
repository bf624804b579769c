package pushlettest

import (
	"bytes"
	"context"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
)

// URL is where a Server is, for [Server.HTTPClient].
const URL = "http://pushlet.test"

// A Server is an http.Server in memory. Its methods are safe for concurrent use; those
// that can fail the test belong to the test's goroutine.
type Server struct {
	// Immutable.
	t        testing.TB
	settings settings
	listener *listener
	web      *http.Client
	busy     sync.WaitGroup // handlers, and connections until net/http has done with them

	// Guarded by mu.
	mu      sync.Mutex
	port    int
	clients []*Client
	conns   map[*conn]struct{} // of everybody
}

// An Option changes a setting: of one client, or of all if it is given to [NewServer] or
// [Serve].
type Option func(*settings)

type settings struct {
	header  http.Header
	timeout time.Duration
	buffer  int
}

// with returns the settings changed by options.
func (s settings) with(options []Option) settings {
	s.header = s.header.Clone()
	for _, o := range options {
		o(&s)
	}
	return s
}

// WithHeader sets a header of the client's requests, such as Authorization, Cookie or
// Origin. Of several with one name the last counts.
func WithHeader(name, value string) Option {
	return func(s *settings) { s.header.Set(name, value) }
}

// WithTimeout sets how long a client waits for what a test wants before the test fails.
// The default is 10 seconds; in a synctest bubble these are seconds of fake time.
func WithTimeout(d time.Duration) Option {
	return func(s *settings) { s.timeout = d }
}

// WithBuffer sets how many bytes may be on their way in each direction of a connection,
// at least 1. The default is 4096. The server can write so much to a client that does
// not read.
func WithBuffer(bytes int) Option {
	return func(s *settings) { s.buffer = max(1, bytes) }
}

// NewServer serves handler to clients in memory until the test is over. Then its
// connections are cut, and it waits for its handlers. In a synctest bubble make it, and
// the Pushlet, inside. Stop the Pushlet in a t.Cleanup that comes before NewServer, so that it
// is done after: a client that is stalled keeps Stop waiting.
func NewServer(t testing.TB, handler http.Handler, options ...Option) *Server {
	t.Helper()
	s := &Server{
		t:        t,
		settings: settings{http.Header{}, 10 * time.Second, 4 << 10}.with(options),
		listener: newListener(),
		port:     1023,
		conns:    make(map[*conn]struct{}),
	}
	s.web = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := s.dial(ctx, s.settings.buffer)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		DisableKeepAlives: true,
	}}
	said := &serverLog{t: t}
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.busy.Add(1) // not from zero: its connection is counted
			defer s.busy.Done()
			handler.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          log.New(said, "", 0),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.busy.Add(1)
			case http.StateHijacked, http.StateClosed:
				s.busy.Done()
			}
		},
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(s.listener) // until Close
	}()
	t.Cleanup(func() {
		_ = s.listener.Close()
		<-served
		s.DropAll()
		_ = srv.Close() // those that were accepted just now
		s.busy.Wait()
		said.end()
	})
	return s
}

// Serve starts p and serves it until the test is over: HandleSSE at /events and
// HandleWebSocket at /ws. Then the connections are cut and p is stopped; the test fails if
// that does not go well.
func Serve(t testing.TB, p *pushlet.Pushlet, options ...Option) *Server {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatalf("pushlettest: Start: %v", err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Errorf("pushlettest: Stop: %v", err)
		}
	})
	mux := http.NewServeMux()
	mux.HandleFunc("/events", p.HandleSSE)
	mux.HandleFunc("/ws", p.HandleWebSocket)
	return NewServer(t, mux, options...)
}

// HTTPClient returns a client for the other handlers of an application; the paths follow
// [URL]. It has no headers of its own, and a connection for each request.
func (s *Server) HTTPClient() *http.Client { return s.web }

// DropAll cuts every connection now; see [Client.Drop].
func (s *Server) DropAll() {
	s.mu.Lock()
	clients := s.clients
	for c := range s.conns {
		c.drop()
	}
	clear(s.conns)
	s.mu.Unlock()
	for _, c := range clients {
		c.Drop()
	}
}

// dial opens a connection.
func (s *Server) dial(ctx context.Context, buffer int) (*conn, error) {
	s.mu.Lock()
	s.port++
	port := s.port
	s.mu.Unlock()
	c, err := s.listener.dial(ctx, port, buffer)
	if err != nil {
		return nil, err
	}
	c.onClose = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
	}
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	return c, nil
}

// A serverLog is what net/http reports, as a handler that panics, until the test is over.
type serverLog struct {
	mu   sync.Mutex
	t    testing.TB
	over bool
}

func (l *serverLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.t.Logf("pushlettest: %s", bytes.TrimSpace(b))
	}
	return len(b), nil
}

func (l *serverLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
}

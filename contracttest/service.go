package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
)

// capabilities are the optional features that the harness may test. README.md says why others
// are not among them.
var capabilities = []string{
	"bom",
	"empty-or-missing-location",
	"headers",
	"last-event-id",
	"payload-size-stress-testable",
	"post",
	"read-timeout",
	"report",
	"restart",
	"server-directed-shutdown-request",
}

// A service makes and ends streams as the harness asks for them.
type service struct {
	quit func() // for DELETE /; does not wait

	mu      sync.Mutex
	streams map[string]*stream // nil: closed
	made    int
}

func newService(quit func()) *service {
	return &service{quit: quit, streams: map[string]*stream{}}
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.status)
	mux.HandleFunc("POST /{$}", s.create)
	mux.HandleFunc("DELETE /{$}", s.stop)
	mux.HandleFunc("POST /streams/{id}", s.command)
	mux.HandleFunc("DELETE /streams/{id}", s.end)
	return mux
}

func (s *service) status(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"name": "pushlet-consumer", "capabilities": capabilities}) // it fails if the harness has gone
}

func (s *service) create(w http.ResponseWriter, r *http.Request) {
	var p parameters
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	st, err := startStream(p)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id, ok := s.add(st)
	if !ok {
		st.close()
		http.Error(w, "stopped", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Location", fmt.Sprintf("http://%s/streams/%s", r.Host, id))
	w.WriteHeader(http.StatusCreated)
}

func (s *service) add(st *stream) (id string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams == nil {
		return "", false
	}
	s.made++
	id = strconv.Itoa(s.made)
	s.streams[id] = st
	return id, true
}

func (s *service) stop(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusNoContent)
	s.quit()
}

func (s *service) command(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	st := s.streams[r.PathValue("id")]
	s.mu.Unlock()
	if st == nil {
		http.NotFound(w, r)
		return
	}
	var c struct {
		Command string `json:"command"`
	}
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	switch c.Command {
	case "listen": // it receives events of every type as it is
	case "restart":
		st.restart()
	default:
		http.Error(w, fmt.Sprintf("unknown command %q", c.Command), http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

func (s *service) end(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	s.mu.Lock()
	st := s.streams[id]
	delete(s.streams, id)
	s.mu.Unlock()
	if st == nil {
		http.NotFound(w, r)
		return
	}
	st.close()
	w.WriteHeader(http.StatusNoContent)
}

// close ends all streams. There will be no others.
func (s *service) close() {
	s.mu.Lock()
	all := s.streams
	s.streams = nil
	s.mu.Unlock()
	for _, st := range all {
		st.close()
	}
}

package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/gorilla/websocket"
)

// bare is the baseline for connecting and leaving: the shortest net/http handlers
// that keep a connection and send one event. There is nothing to publish.
type bare struct {
	open     atomic.Int64
	upgrader websocket.Upgrader
}

func newBare() *bare { return &bare{} }

func (b *bare) serve(l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/events", b.events)
	mux.HandleFunc("/ws", b.webSocket)
	return http.Serve(l, mux)
}

func (b *bare) events(w http.ResponseWriter, r *http.Request) {
	b.open.Add(1)
	defer b.open.Add(-1)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	io.WriteString(w, firstSSE) // a failure shows in the flush
	if err := http.NewResponseController(w).Flush(); err != nil {
		return // the client has left
	}
	<-r.Context().Done()
}

func (b *bare) webSocket(w http.ResponseWriter, r *http.Request) {
	conn, err := b.upgrader.Upgrade(w, r, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: bare:", err)
		return
	}
	defer conn.Close()
	b.open.Add(1)
	defer b.open.Add(-1)
	if err := conn.WriteMessage(websocket.BinaryMessage, firstWebSocket); err != nil {
		return // the client has left
	}
	for {
		if _, _, err := conn.ReadMessage(); err != nil {
			return
		}
	}
}

func (b *bare) publish(int, string) error { return fmt.Errorf("the bare server does not publish") }

func (b *bare) clients() int { return int(b.open.Load()) }

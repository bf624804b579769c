// Command dual_protocol pushes the same messages over Server-Sent Events and over
// WebSocket, and serves a page that shows both arriving.
//
//	go run example/dual_protocol.go
//
// Then open http://localhost:8080, or use nothing but curl:
//
//	curl -N 'http://localhost:8080/events?topic=news'
//	curl 'http://localhost:8080/send?topic=news&message=hello'
//
// Everybody may send here. A real application calls Publish from its own code, or behind
// its own login.
package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/usual2970/pushlet"
)

//go:embed dual_protocol.html
var page []byte

func main() {
	addr := flag.String("addr", ":8080", "`address` to listen on")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second signal ends the program at once

	if err := run(ctx, *addr); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends, and returns nil if that is why it ended.
func run(ctx context.Context, addr string) error {
	p := pushlet.New()
	if err := p.Start(); err != nil {
		return err
	}
	defer p.Stop()

	mux := http.NewServeMux()

	// Pushlet in three lines: a handler for each protocol ...
	mux.HandleFunc("/events", p.HandleSSE)   // new EventSource("/events?topic=news")
	mux.HandleFunc("/ws", p.HandleWebSocket) // {"action":"subscribe","topic":"news"}

	mux.HandleFunc("/send", func(w http.ResponseWriter, r *http.Request) {
		topic := cmp.Or(r.FormValue("topic"), "default")

		// ... and Publish, which reaches the clients of both.
		err := p.Publish(topic, r.FormValue("event"), r.FormValue("message"))
		answer(w, err, "Message sent")
	})

	mux.HandleFunc("/broadcast", func(w http.ResponseWriter, r *http.Request) {
		err := p.PublishToAll(r.FormValue("event"), r.FormValue("message"))
		answer(w, err, "Message sent to all")
	})

	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(page)
	})

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err // most likely the port is in use
	}
	host := browserHost(listener.Addr())
	log.Println("Server started at http://" + host)
	log.Println("SSE endpoint: http://" + host + "/events")
	log.Println("WebSocket endpoint: ws://" + host + "/ws")

	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1) // room for one, so that its goroutine always ends
	go func() { served <- server.Serve(listener) }()

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}

	log.Println("Server stopping")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// In this order: the server waits for open requests, and a stream is one until Pushlet ends it.
	return errors.Join(p.Shutdown(ctx), server.Shutdown(ctx))
}

// answer says text, or why a message was refused.
func answer(w http.ResponseWriter, err error, text string) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Write([]byte(text))
}

// browserHost is addr as one types it into a browser on this machine.
func browserHost(addr net.Addr) string {
	if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return fmt.Sprintf("localhost:%d", tcp.Port)
	}
	return addr.String()
}

// Command zones puts connections into zones, and sends to one user, to a zone or to everyone,
// with a page to try it.
//
//	go run ./example/zones
//
// Then open http://localhost:8080 in a few tabs, or use nothing but curl:
//
//	curl -N 'http://localhost:8080/server?zone=red&user=ann'
//	curl 'http://localhost:8080/send?zone=red&user=ann&content=hello'   one user
//	curl 'http://localhost:8080/send?zone=red&content=hello'            a zone
//	curl 'http://localhost:8080/send?content=hello'                     everyone
//
// A zone is a topic, and a user belongs to a zone: ann of red is not ann of blue.
//
// Everybody may call themselves what they like here, and send. So it is for this machine
// alone, unless -addr says otherwise. A real application takes the user from a login.
package main

import (
	"context"
	_ "embed"
	"encoding/json"
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

//go:embed index.html
var page []byte

func main() {
	addr := flag.String("addr", "localhost:8080", "`address` to listen on")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second signal ends the program at once

	if err := run(ctx, *addr); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends, and returns nil if that is why it ended.
func run(ctx context.Context, addr string) error {
	z := newZones(2 * time.Second)
	if err := z.p.Start(); err != nil {
		return err
	}
	defer z.p.Stop()

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err // most likely the port is in use
	}
	host := browserHost(listener.Addr())
	log.Println("Server started at http://" + host)
	log.Println("Event stream: http://" + host + "/server?zone=red&user=ann")
	log.Println("To send: http://" + host + "/send?zone=red&user=ann&content=hello")

	server := &http.Server{Handler: z.routes(), ReadHeaderTimeout: 10 * time.Second}
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
	return errors.Join(z.p.Shutdown(ctx), server.Shutdown(ctx))
}

func (z *zones) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/server", z.serve)
	mux.HandleFunc("/send", z.send)
	mux.HandleFunc("GET /online", z.online)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(page)
	})
	return mux
}

// serve is the event stream: GET /server?zone=…&user=…
func (z *zones) serve(w http.ResponseWriter, r *http.Request) {
	where, err := placeOf(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	z.p.HandleSSE(w, where.request(r))
}

// send publishes: /send?zone=…&user=…&content=… and, if it is not to be customEvent, &event=…
// The answer says how many connections of this process follow what it was sent to. None is
// no error: who comes back gets what was missed.
func (z *zones) send(w http.ResponseWriter, r *http.Request) {
	push, err := pushOf(r, time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	results, err := z.p.Push(r.Context(), push)
	if err == nil {
		err = results[0].Err
	}
	switch {
	case errors.Is(err, pushlet.ErrNotStarted), errors.Is(err, pushlet.ErrClosed):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case err != nil: // such as an event with a name of the library's own
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		answer(w, map[string]int{"clients": results[0].Clients})
	}
}

// online says who is in a zone: GET /online?zone=…
func (z *zones) online(w http.ResponseWriter, r *http.Request) {
	where, err := placeOf(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	here, err := z.members(r.Context(), where.zone)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	answer(w, here)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // if it fails, nobody listens
}

// browserHost is addr as one types it into a browser on this machine.
func browserHost(addr net.Addr) string {
	if tcp, ok := addr.(*net.TCPAddr); ok && (tcp.IP.IsUnspecified() || tcp.IP.IsLoopback()) {
		return fmt.Sprintf("localhost:%d", tcp.Port)
	}
	return addr.String()
}

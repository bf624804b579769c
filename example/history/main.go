// History is a server whose clients resume after it was killed: it keeps the messages in a
// bbolt file, without Redis.
//
//	go run .                 # http://localhost:8080
//
// Open the page, kill the process with kill -9, and start it again: the page goes on where
// it was, with what was sent in the meantime.
package main

import (
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

//go:embed index.html
var page []byte

const (
	keep   = 10_000             // messages of each topic
	maxAge = 7 * 24 * time.Hour // of a message
)

func main() {
	addr := flag.String("addr", "localhost:8080", "where to listen")
	path := flag.String("db", "history.db", "the file for the messages")
	flag.Parse()
	if err := run(*addr, *path); err != nil {
		log.Fatal(err)
	}
}

func run(addr, path string) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	history, err := openStore(path, keep, maxAge)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, history.close()) }()

	p := pushlet.New(
		pushlet.WithHistoryStore(history),
		pushlet.WithHistory(keep, 16<<20, maxAge), // how far back a client may resume
	)
	if err := p.Start(); err != nil {
		return err
	}
	defer p.Stop()

	mux := http.NewServeMux()
	mux.HandleFunc("/events", p.HandleSSE)
	mux.HandleFunc("/send", func(w http.ResponseWriter, r *http.Request) {
		topic := r.FormValue("topic")
		if topic == "" {
			topic = "news"
		}
		err := p.PublishContext(r.Context(), topic, "message", r.FormValue("message"))
		switch {
		case errors.Is(err, pushlet.ErrUncertain), errors.Is(err, pushlet.ErrUnavailable), errors.Is(err, pushlet.ErrOverloaded):
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadRequest)
		default: // it is in the file
			w.WriteHeader(http.StatusNoContent)
		}
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(page)
	})

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", listener.Addr())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(p.Shutdown(ctx), server.Shutdown(ctx))
}

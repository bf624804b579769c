// Command browser serves pages that show the client for browsers, js/pushlet.js: many topics on
// one connection, over WebSocket or EventSource, resumed after every break, shared by all tabs;
// and a page that does without it, with the browser's own EventSource and WebSocket.
//
//	go run ./example/browser
//
// Then open http://localhost:8080 in a few tabs. Everybody may publish here, so it is for this
// machine alone, unless -addr says otherwise.
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/usual2970/pushlet"
)

//go:embed index.html plain.html style.css
var pages embed.FS

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
	p := pushlet.New(pushlet.WithPushAuthorize(pushlet.AllowPush))
	if err := p.Start(); err != nil {
		return err
	}
	defer p.Stop()

	mux := http.NewServeMux()
	mux.HandleFunc("/ws", p.HandleWebSocket)
	mux.HandleFunc("/events", p.HandleSSE)
	mux.HandleFunc("/push", p.HandlePush) // {"topics":["news"],"events":[{"data":"hello"}]}
	mux.HandleFunc("/pushlet.js", p.HandleClientJS)
	mux.Handle("/", http.FileServerFS(pages)) // the pages

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err // most likely the port is in use
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	log.Println("Server started at http://" + listener.Addr().String())

	served := make(chan error, 1) // room for one, so that its goroutine always ends
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	deadline, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(p.Shutdown(deadline), server.Shutdown(deadline)) // in this order
}

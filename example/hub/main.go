// Command hub pushes to users from a server that is built with gin: an event stream for each
// user, an endpoint where other programs push, and a simulated event every five seconds.
//
//	cd example/hub && go run .
//
// Then open http://localhost:8080, or use nothing but curl:
//
//	curl -N 'http://localhost:8080/events?uid=u001'
//	curl -X POST -H 'Content-Type: application/json' -d '{"uids":["u001"],"events":[{"event":"message","data":"hello_world"}]}' http://localhost:8080/push
//	curl -X POST -H 'Content-Type: application/json' -d '{"events":[{"event":"message","data":"hello_world"}]}' http://localhost:8080/push
//	curl http://localhost:8080/stats
//
// The first push is for one user, the second for everyone.
//
// Who may push: with PUSH_TOKEN in the environment, who sends it as a bearer token (curl -H
// 'Authorization: Bearer …'). Without it, programs on this machine. That is no protection
// where a proxy on the same machine passes requests on, so set the token there.
//
// This is a module of its own, so that gin is not a requirement of Pushlet.
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

	"github.com/gin-gonic/gin"

	"github.com/usual2970/pushlet"
)

//go:embed index.html
var page []byte

func main() {
	addr := flag.String("addr", "localhost:8080", "`address` to listen on")
	every := flag.Duration("every", 5*time.Second, "how often there is a simulated event; 0: never")
	flag.Parse()
	gin.SetMode(gin.ReleaseMode)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second signal ends the program at once

	if err := run(ctx, *addr, *every, os.Getenv("PUSH_TOKEN")); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends, and returns nil if that is why it ended.
func run(ctx context.Context, addr string, every time.Duration, token string) error {
	p := newHub(token)
	if err := p.Start(); err != nil {
		return err
	}
	defer p.Stop()

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err // most likely the port is in use
	}
	log.Println("Server started at http://" + browserHost(listener.Addr()))

	simulated := make(chan struct{})
	go func() { defer close(simulated); simulate(ctx, p, every) }() // ends with ctx

	server := &http.Server{Handler: routes(p), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1) // room for one, so that its goroutine always ends
	go func() { served <- server.Serve(listener) }()

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}

	log.Println("Server stopping")
	<-simulated
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// In this order: the server waits for open requests, and a stream is one until Pushlet ends it.
	return errors.Join(p.Shutdown(ctx), server.Shutdown(ctx))
}

// simulate sends everyone an event every so often, until ctx ends.
func simulate(ctx context.Context, p *pushlet.Pushlet, every time.Duration) {
	if every <= 0 {
		return
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for i := 1; ; i++ {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if err := p.PublishToAll("message", fmt.Sprintf("hello_world_%d", i)); err != nil {
			log.Println("simulated event:", err)
		}
	}
}

// browserHost is addr as one types it into a browser on this machine.
func browserHost(addr net.Addr) string {
	if tcp, ok := addr.(*net.TCPAddr); ok && (tcp.IP.IsUnspecified() || tcp.IP.IsLoopback()) {
		return fmt.Sprintf("localhost:%d", tcp.Port)
	}
	return addr.String()
}

// Contracttest is the test service for LaunchDarkly's SSE contract tests: over HTTP it makes
// clients of the package consumer, and reports what they receive. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"
)

func main() {
	port := flag.Int("port", 8000, "the port of localhost to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	// Not on all interfaces: whoever can reach the service has it send any request.
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", fmt.Sprintf("localhost:%d", *port))
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("listening on http://%s", l.Addr())
	if err := serve(ctx, l); err != nil {
		log.Fatal(err)
	}
}

// serve runs a service on l until ctx is done, or a client of the service has stopped it. No
// stream is left then.
func serve(ctx context.Context, l net.Listener) error {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	s := newService(quit)
	defer s.close()
	srv := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }() // ends with Shutdown, or with l
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := srv.Shutdown(ctx) // answers what it was asked
	if served := <-served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

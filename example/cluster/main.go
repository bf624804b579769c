// Command cluster runs two instances of an application, and a load balancer in front of
// them, with a page that shows what a client sees when an instance is stopped.
//
//	go run ./example/cluster
//
// Then open http://localhost:8080, or use nothing but curl:
//
//	curl -N 'http://localhost:8080/events?topic=demo&name=ann'
//	curl 'http://localhost:8080/send?message=hello'
//
// The instances share the Redis at REDIS_ADDR, or localhost:6379. If none answers there the
// program starts a redis-server of its own, and ends it when it ends.
//
// Here everything runs in one process, so that one command is enough. The instances know
// nothing of each other but what Redis tells them: each has a Pushlet, a port and
// connections of its own.
//
// Everybody who reaches the load balancer may send, and stop instances. So it is for this
// machine alone, unless -addr says otherwise.
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
)

//go:embed index.html
var page []byte

const (
	defaultAddr = "localhost:8080"

	// topic is what everybody follows here.
	topic = "demo"
)

func main() {
	addr := flag.String("addr", defaultAddr, "`address` of the load balancer; the instances then get free ports")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if err := run(ctx, *addr); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends, and returns nil if that is why it ended.
func run(ctx context.Context, addr string) (err error) {
	// First, before there is anything to end.
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err // most likely the port is in use
	}
	defer listener.Close()

	redis, endRedis, err := findRedis(ctx)
	if err != nil {
		return err
	}
	defer endRedis() // last, when nobody needs it any more
	log.Println("Redis at", redis)

	ports := []string{"localhost:8081", "localhost:8082"}
	if addr != defaultAddr {
		ports = []string{"localhost:0", "localhost:0"}
	}
	c, err := startCluster(listener, redis, ports...)
	if err != nil {
		return err
	}
	log.Println("Load balancer at http://" + browserHost(listener.Addr()))
	for _, i := range c.instances {
		log.Printf("Instance %s at http://%s", i.name, i.addr)
	}

	select {
	case err = <-c.served:
	case <-ctx.Done():
	}
	log.Println("Stopping")
	return errors.Join(err, c.shutdown())
}

// A cluster is the instances and the load balancer.
type cluster struct {
	instances []*instance
	balancer  *balancer
	counter   counter
	server    *http.Server // the load balancer's
	served    chan error   // why it ended by itself; holds one
}

// startCluster starts an instance at each of the addresses, and the load balancer.
func startCluster(listener net.Listener, redis string, addrs ...string) (*cluster, error) {
	c := &cluster{served: make(chan error, 1)}
	for n, addr := range addrs {
		i := newInstance(string(rune('A'+n)), addr, redis)
		if err := i.start(); err != nil {
			return nil, errors.Join(fmt.Errorf("instance %s: %w", i.name, err), c.shutdown())
		}
		c.instances = append(c.instances, i)
	}
	c.balancer = &balancer{instances: c.instances}
	c.server = &http.Server{Handler: c.routes(), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := c.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			c.served <- err
		}
	}()
	return c, nil
}

// shutdown ends everything.
func (c *cluster) shutdown() error {
	c.counter.stop()
	ended := make(chan error, len(c.instances))
	for _, i := range c.instances {
		go func() { ended <- i.stop() }()
	}
	var errs []error
	for range c.instances {
		errs = append(errs, <-ended)
	}
	if c.server != nil {
		// The streams have ended with the instances. What is left are connections that a
		// browser has opened in case it needs them.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if c.server.Shutdown(ctx) != nil {
			errs = append(errs, c.server.Close())
		}
	}
	return errors.Join(errs...)
}

// browserHost is addr as one types it into a browser on this machine.
func browserHost(addr net.Addr) string {
	if tcp, ok := addr.(*net.TCPAddr); ok && (tcp.IP.IsUnspecified() || tcp.IP.IsLoopback()) {
		return fmt.Sprintf("localhost:%d", tcp.Port)
	}
	return addr.String()
}

package main

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
)

// A balancer hands requests to the instances in turn.
type balancer struct {
	instances []*instance
	turn      atomic.Uint32
}

// next returns the instance whose turn it is, nil if none runs. One that is not ready,
// because it does not hear Redis, is taken only if there is no other. A load balancer that
// is a program of its own finds this out by asking for /ready now and then.
func (b *balancer) next() (*instance, *service) {
	turn := int(b.turn.Add(1))
	var second *instance
	var unready *service
	for k := range b.instances {
		i := b.instances[(turn+k)%len(b.instances)]
		s := i.now.Load()
		switch {
		case s == nil:
		case s.pushlet.Ready() == nil:
			return i, s
		case second == nil:
			second, unready = i, s
		}
	}
	return second, unready
}

func (b *balancer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i, _ := b.next()
	if i == nil {
		http.Error(w, "no instance is running", http.StatusServiceUnavailable)
		return
	}
	i.proxy.ServeHTTP(w, r)
}

// A proxy is the load balancer's way to one instance.
type proxy struct {
	httputil.ReverseProxy
	transport *http.Transport

	mu    sync.Mutex
	conns map[*proxyConn]struct{} // to the instance
}

func newProxy(addr string) *proxy {
	p := &proxy{conns: make(map[*proxyConn]struct{})}
	p.transport = &http.Transport{DialContext: p.dial}
	p.ReverseProxy = httputil.ReverseProxy{
		Transport:     p.transport,
		FlushInterval: -1, // each event at once
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: addr})
			r.Out.Host = r.In.Host // Pushlet compares it with the origin of the page
			r.SetXForwarded()
		},
		ErrorLog: log.New(io.Discard, "", 0), // it would tell of the streams that break
	}
	return p
}

// A proxyConn is a connection that can be cut.
type proxyConn struct {
	net.Conn
	of *proxy
}

func (p *proxy) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := &proxyConn{conn, p}
	p.mu.Lock()
	p.conns[c] = struct{}{}
	p.mu.Unlock()
	return c, nil
}

func (c *proxyConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// cut breaks all connections to the instance. What is on its way is lost.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Conn.Close()
	}
}

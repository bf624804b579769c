package main

import (
	"context"
	"math"
	"net"
	"net/http"
	"sync"
)

// A meter counts the bytes on their way to clients of this process, so that a test can wait
// until one has read what was sent: what comes next is then another read.
type meter struct {
	mu    sync.Mutex
	more  sync.Cond // some have arrived
	onWay map[ends]int
}

// ends are the addresses of a connection. That of the client alone may be used again.
type ends struct{ client, server string }

func endsOf(client, server net.Addr) ends { return ends{client.String(), server.String()} }

// arrivals is installed in TestMain.
var arrivals = newMeter()

func newMeter() *meter {
	m := &meter{onWay: map[ends]int{}}
	m.more.L = &m.mu
	return m
}

// install has the connections of a transport counted.
func (m *meter) install(t *http.Transport) {
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &clientEnd{c, m}, nil
	}
}

func (m *meter) add(e ends, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onWay[e] += n
	m.more.Broadcast()
}

// close is for a client that will read no more.
func (m *meter) close(e ends) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onWay[e] = math.MinInt / 2 // whatever is still sent
	m.more.Broadcast()
}

// wait returns when the client has read all, or has closed.
func (m *meter) wait(e ends) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.onWay[e] > 0 {
		m.more.Wait()
	}
}

type clientEnd struct {
	net.Conn
	m *meter
}

func (c *clientEnd) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.m.add(endsOf(c.LocalAddr(), c.RemoteAddr()), -n)
	return n, err
}

func (c *clientEnd) Close() error {
	err := c.Conn.Close()
	c.m.close(endsOf(c.LocalAddr(), c.RemoteAddr()))
	return err
}

// A meteredListener is where a server counts what it sends.
type meteredListener struct {
	net.Listener
	m *meter
}

func (l meteredListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &serverEnd{c, l.m}, nil
}

type serverEnd struct {
	net.Conn
	m *meter
}

func (c *serverEnd) Write(b []byte) (int, error) {
	c.m.add(endsOf(c.RemoteAddr(), c.LocalAddr()), len(b))
	return c.Conn.Write(b)
}

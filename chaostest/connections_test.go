package chaostest

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/usual2970/pushlet/internal/redistest"
)

// Connections between instances and Redis that break, fall silent or are slow.

// A link is a proxy in front of a Redis, with faults on demand.
type link struct {
	t     testing.TB
	proxy *toxiproxy.Proxy
}

// newLink starts a proxy to addr. It ends with the test.
func newLink(t testing.TB, addr string) *link {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	l := &link{t, toxiproxy.NewProxy(server, "redis", "127.0.0.1:0", addr)}
	must(t, l.proxy.Start())
	t.Cleanup(l.proxy.Stop)
	return l
}

// client returns a client that comes through the proxy.
func (l *link) client() *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: l.proxy.Listen})
	l.t.Cleanup(func() { c.Close() })
	return c
}

// poison adds a toxic, see toxiproxy, with attributes in JSON, to what goes down to the
// instance or up to Redis.
func (l *link) poison(toxic, direction, attributes string) {
	l.t.Helper()
	_, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
		`{"name":"%s %s","type":"%[1]s","stream":"%[2]sstream","attributes":{%[3]s}}`, toxic, direction, attributes)))
	must(l.t, err)
}

// cure removes all toxics.
func (l *link) cure() { l.proxy.Toxics.ResetToxics(l.t.Context()) }

// connect lets connections through; else they are cut, and refused.
func (l *link) connect(up bool) {
	l.t.Helper()
	if up {
		must(l.t, l.proxy.Start())
	} else {
		l.proxy.Stop()
	}
}

// pointTo cuts all connections and leads new ones elsewhere.
func (l *link) pointTo(addr string) {
	l.t.Helper()
	must(l.t, l.proxy.Update(&toxiproxy.Proxy{Listen: l.proxy.Listen, Upstream: addr, Enabled: true}))
}

// killAll has Redis close all connections, again and again.
func killAll(server *redistest.Server) {
	admin := server.Client()
	for range int(lasts(2, 5)) {
		for _, kind := range []string{"pubsub", "normal"} {
			admin.ClientKillByFilter(context.Background(), "TYPE", kind, "SKIPME", "yes")
		}
		time.Sleep(lasts(700*time.Millisecond, 2*time.Second))
	}
}

// TestConnections has faults of the connections of one instance and of all. None can lose
// anything.
func TestConnections(t *testing.T) {
	t.Parallel()
	// refused: messages cannot be published meanwhile; down: an instance is not ready; slow: some
	// messages take that long.
	type fault struct {
		name                 string
		begin, end           func(*link)
		refused, down, short bool
		slow                 time.Duration
		meanwhile            func(*redistest.Server) // nil: wait
	}
	cure := (*link).cure
	toxic := func(toxic, attributes string, directions ...string) func(*link) {
		return func(l *link) {
			for _, direction := range directions {
				l.poison(toxic, direction, attributes)
			}
		}
	}
	for _, f := range []fault{
		{name: "down", begin: func(l *link) { l.connect(false) }, end: func(l *link) { l.connect(true) }, refused: true, down: true, short: true},
		{name: "reset", begin: toxic("reset_peer", `"timeout":50`, "down"), end: cure, refused: true, down: true, short: true},
		{name: "silence", begin: toxic("timeout", `"timeout":0`, "up", "down"), end: cure, refused: true},
		{name: "silence of Redis", begin: toxic("timeout", `"timeout":0`, "down"), end: cure, refused: true, short: true},
		{name: "silence of the instance", begin: toxic("timeout", `"timeout":0`, "up"), end: cure, refused: true},
		{name: "slow close", begin: toxic("slow_close", `"delay":1500`, "up", "down"), end: cure, meanwhile: killAll},
		{name: "latency", begin: toxic("latency", `"latency":500,"jitter":300`, "up", "down"), end: cure, slow: 400 * time.Millisecond, short: true},
		{name: "bandwidth", begin: toxic("bandwidth", `"rate":20`, "up", "down"), end: cure, slow: 200 * time.Millisecond},
		{name: "limit", begin: toxic("limit_data", `"bytes":3000`, "down"), end: cure, down: true, short: true},
		{name: "limit of the instance", begin: toxic("limit_data", `"bytes":3000`, "up"), end: cure},
	} {
		if testing.Short() && !f.short {
			continue
		}
		for _, all := range []bool{true, false} {
			if testing.Short() && !all && f.name != "silence of Redis" {
				continue
			}
			t.Run(fmt.Sprintf("%s/all=%t", f.name, all), func(t *testing.T) {
				t.Parallel()
				server := redistest.Start(t)
				var links []*link
				w := newWorld(t, settings{whole: true, redis: func(int) redis.UniversalClient {
					links = append(links, newLink(t, server.Addr()))
					return links[len(links)-1].client()
				}})
				hit := links
				if !all {
					hit = links[:1]
				}
				w.run(func() {
					for range int(lasts(1, 2)) {
						for _, l := range hit {
							f.begin(l)
						}
						if f.meanwhile != nil {
							f.meanwhile(server)
						} else {
							time.Sleep(lasts(2500*time.Millisecond, 8*time.Second))
						}
						for _, l := range hit {
							f.end(l)
						}
						time.Sleep(lasts(0, 3*time.Second))
					}
				})
				s := w.during()
				if f.refused && s.refused+s.uncertain == 0 {
					t.Errorf("all was published: %v", s)
				}
				if f.down && !w.noticed() {
					t.Error("no instance has lost its connection")
				}
				if d := w.delay(); d < f.slow {
					t.Errorf("nearly all messages came within %v", d)
				}
			})
		}
	}
}

// TestHalfOpen lets all connections to Redis fall silent for good, as a router does that
// forgets them, while new ones work.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var now atomic.Pointer[link] // new connections go there
	now.Store(newLink(t, server.Addr()))
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, now.Load().proxy.Listen)
	}
	w := newWorld(t, settings{whole: true, redis: func(int) redis.UniversalClient {
		c := redis.NewClient(&redis.Options{Dialer: dial})
		t.Cleanup(func() { c.Close() })
		return c
	}})
	w.run(func() {
		for range int(lasts(1, 3)) {
			old := now.Swap(newLink(t, server.Addr()))
			before := w.logs("connection lost")
			old.poison("timeout", "up", `"timeout":0`)
			old.poison("timeout", "down", `"timeout":0`)
			w.eventually("all instances notice", func() bool { return w.logs("connection lost") >= before+len(w.instances) })
			w.ready()
			w.allHave("a message", got, w.since())
		}
	})
}

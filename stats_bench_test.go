package pushlet

import (
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// What it costs to be watched.

// deliveredForBench is Stats().Delivered without asking the broker.
func deliveredForBench(p *Pushlet) (n uint64) {
	for _, w := range p.flusher.workers {
		n += w.delivered.Load()
	}
	return n + p.counters.delivered.Load()
}

// BenchmarkFanOutWatched is a fan-out to 1,000 clients without the socket, until all is
// delivered, when somebody reads the statistics ten times a second, and with the hook for
// what is undelivered.
func BenchmarkFanOutWatched(b *testing.B) {
	const clients = 1000
	data := strings.Repeat("x", 100)
	hook := WithHooks(Hooks{OnUndelivered: func(Undelivered) {}})
	for _, test := range []struct {
		name    string
		stats   time.Duration // how often; 0: never
		options []Option
	}{
		{"by=nobody", 0, []Option{unbounded}},
		{"by=Stats", 100 * time.Millisecond, []Option{unbounded}},
		{"by=OnUndelivered", 0, []Option{unbounded, hook}},
	} {
		b.Run(test.name, func(b *testing.B) {
			p := startForBench(b, test.options...)
			for range clients {
				attachForBench(b, p, formBinary, "topic")
			}
			end, ended := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(ended)
				if test.stats == 0 {
					return
				}
				every := time.NewTicker(test.stats)
				defer every.Stop()
				for {
					select {
					case <-every.C:
						_ = p.Stats()
					case <-end:
						return
					}
				}
			}()
			before := deliveredForBench(p)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				_ = p.Publish("topic", "message", data)
			}
			for deliveredForBench(p)-before < uint64(b.N*clients) {
				runtime.Gosched()
			}
			b.StopTimer()
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*clients), "ns/delivery")
			close(end)
			<-ended
		})
	}
}

// BenchmarkCensus is what Stats costs with 250,000 clients. Command is one of its commands to
// the broker, and a look at the clients that it lists: held-ns is for how long it holds up the
// broker, which is the first part. Stats as a whole holds up nobody.
func BenchmarkCensus(b *testing.B) {
	const clients = 250_000
	p := New()
	p.cfg.verify, p.broker.verify = false, false
	for range clients { // the broker does not run yet
		c := newClient(Client{ID: "x"}, formBinary, nullTransport{}, p.env, time.Now())
		p.broker.apply(&attach{client: c, topics: []string{"topic"}})
	}
	p.broker.handOver()
	b.Run("command", func(b *testing.B) {
		answer := make(chan gauges, 1)
		g := gauges{clients: make([]*client, 0, censusClients)}
		var held []time.Duration
		for b.Loop() {
			cmd := &census{answer: answer, from: g.next % heartbeatBuckets, clients: g.clients[:0]}
			begin := time.Now()
			p.broker.apply(cmd)
			held = append(held, time.Since(begin))
			g = <-answer
			for _, c := range g.clients { // as Stats does; the caches are cold after it
				c.depth()
			}
		}
		slices.Sort(held)
		b.ReportMetric(float64(held[len(held)/2].Nanoseconds()), "held-ns")
		b.ReportMetric(float64(held[len(held)*99/100].Nanoseconds()), "held-p99-ns")
	})
	if err := p.Start(); err != nil {
		b.Fatal(err)
	}
	defer p.Stop()
	p.counters.webSocket.Add(clients)
	b.Run("Stats", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = p.Stats()
		}
	})
}

package pushlet

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// nullTransport takes everything at once.
type nullTransport struct{}

func (nullTransport) tryWrite(_ *socketWriter, b []byte) (int, error) { return len(b), nil }
func (nullTransport) write(b []byte) (int, error)                     { return len(b), nil }
func (nullTransport) check(bool) Reason                               { return "" }
func (nullTransport) endWrite()                                       {}
func (nullTransport) close()                                          {}

func startForBench(b *testing.B, options ...Option) *Pushlet {
	b.Helper()
	p := New(options...)
	p.cfg.verify, p.broker.verify = false, false
	if err := p.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Stop() })
	return p
}

// attachForBench adds a client of topic that has no connection.
func attachForBench(b *testing.B, p *Pushlet, form form, topic string) {
	b.Helper()
	c := newClient(Client{ID: newClientID()}, form, nullTransport{}, p.env, time.Now())
	p.broker.send(&attach{client: c, topics: []string{topic}})
	b.Cleanup(func() { p.broker.send(&detach{c, time.Now()}) })
}

// BenchmarkPublishNobody is a publish to a topic that nobody follows: 2 allocations
// are the message, with history's copy of it, and the broker's place for it.
func BenchmarkPublishNobody(b *testing.B) {
	data := strings.Repeat("x", 100)
	for _, publishers := range []int{1, 8} {
		b.Run(fmt.Sprintf("publishers=%d", publishers), func(b *testing.B) {
			p := startForBench(b)
			b.ReportAllocs()
			b.SetParallelism(publishers)
			if publishers == 1 {
				for b.Loop() {
					_ = p.Publish("nobody", "message", data)
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_ = p.Publish("nobody", "message", data)
				}
			})
		})
	}
}

// unbounded is a queue that is never full. Where the workers get no time of the machine a
// client would else lose messages, and who waits until all are delivered would wait for ever.
var unbounded = WithQueue(math.MaxInt, math.MaxInt)

// BenchmarkFanOut is what a delivery costs without the socket.
func BenchmarkFanOut(b *testing.B) {
	data := strings.Repeat("x", 100)
	for i, name := range []string{formSSE: "sse", formSSEJSON: "json", formBinary: "binary"} {
		for _, clients := range []int{1, 1000} {
			b.Run(fmt.Sprintf("form=%s/clients=%d", name, clients), func(b *testing.B) {
				p := startForBench(b, unbounded)
				for range clients {
					attachForBench(b, p, form(i), "topic")
				}
				before := p.Stats().Delivered
				b.ReportAllocs()
				for b.Loop() {
					_ = p.Publish("topic", "message", data)
				}
				for p.Stats().Delivered-before < uint64(b.N*clients) {
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*clients), "ns/delivery")
			})
		}
	}
}

// BenchmarkQueue is what a message costs in one client's queue: offered, and taken off again
// with those beside it.
func BenchmarkQueue(b *testing.B) {
	for _, waiting := range []int{1, 16} {
		b.Run(fmt.Sprintf("waiting=%d", waiting), func(b *testing.B) {
			c := newClient(Client{}, formBinary, nullTransport{}, New().env, time.Now())
			var l lane
			text := make([]byte, 200)
			var spans [256]span
			for i := range spans {
				spans[i] = l.put(1, text)
			}
			scratch := make([]byte, 0, gatherSize)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				c.offer(nil, spans[i%len(spans)])
				if i++; i%waiting == 0 {
					for step := stepMore; step == stepMore; {
						chunk, _ := c.peek(scratch)
						step, _ = c.wrote(len(chunk))
					}
				}
			}
		})
	}
}

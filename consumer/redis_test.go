package consumer_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/consumer"
	"github.com/usual2970/pushlet/internal/redistest"
)

// Instances behind a load balancer: each connection may reach another one, and one is stopped on the
// way. All comes once and in order.
func TestInstances(t *testing.T) {
	const messages = 600
	both(t, func(t *testing.T, path func(string) string) {
		redis := redistest.Start(t)
		var sites [3]*pushlet.Pushlet
		for i := range sites {
			client := redis.Client()
			t.Cleanup(func() { client.Close() })
			sites[i] = start(t, pushlet.WithRedis(client), pushlet.WithHistory(100_000, 1<<30, time.Hour))
			for deadline := time.Now().Add(patience); sites[i].Ready() != nil; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal(sites[i].Ready())
				}
			}
		}
		var turn atomic.Int64
		next := func() (p *pushlet.Pushlet) {
			for p == nil || p.Ready() != nil {
				p = sites[turn.Add(1)%int64(len(sites))]
			}
			return p
		}
		mux := http.NewServeMux()
		mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) { next().HandleSSE(w, r) })
		mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) { next().HandleWebSocket(w, r) })
		srv := httptest.NewServer(mux)
		defer srv.Close()
		c := cut(t, srv.URL, func() int { return 500 + rand.IntN(10_000) })
		l := listen(t, path(c.url), quickly, consumer.WithTopics("a", "b"))
		l.subscribed("a", "b")
		logs := []int{0, 1, 2}
		for i := range messages {
			if i == messages/2 {
				must(t, sites[0].Stop())
			}
			p, data := sites[1+i%2], fmt.Sprint(i)
			switch i % 3 {
			case 0:
				must(t, p.Publish("a", "message", data))
			case 1:
				must(t, p.Publish("b", "message", data))
			default:
				must(t, p.PublishToAll("message", data))
			}
		}
		for range messages {
			m := l.next()
			var i int
			if _, err := fmt.Sscan(m.Data, &i); m.Gap != nil || err != nil || i != logs[i%3] {
				t.Fatalf("message %+v, gap %v, want one of %v", m, m.Gap, logs)
			}
			logs[i%3] += 3
		}
		l.stop()
		_ = l.end()
	})
}

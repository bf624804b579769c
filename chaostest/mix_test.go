package chaostest

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet/internal/redistest"
)

// TestMix has faults of all kinds that lose nothing, at random.
func TestMix(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.AppendOnly("always"))
	var links []*link
	w := newWorld(t, settings{whole: true, redis: func(int) redis.UniversalClient {
		links = append(links, newLink(t, server.Addr()))
		return links[len(links)-1].client()
	}})
	rng := w.random(4)
	upTo := func(d time.Duration) { time.Sleep(time.Duration(rng.Int64N(int64(d)))) }
	kill := func(kind string) {
		must(t, server.Client().ClientKillByFilter(t.Context(), "TYPE", kind, "SKIPME", "yes").Err())
	}
	poison := func(toxic, attributes string) {
		hit := links[:1+rng.IntN(len(links))]
		directions := [][]string{{"up"}, {"down"}, {"up", "down"}}[rng.IntN(3)]
		for _, l := range hit {
			for _, direction := range directions {
				l.poison(toxic, direction, attributes)
			}
		}
		upTo(3 * time.Second)
		for _, l := range hit {
			l.cure()
		}
	}
	faults := []func(){
		func() { kill("pubsub") },
		func() { kill("normal") },
		func() { must(t, server.Client().ScriptFlush(t.Context()).Err()) },
		func() { poison("timeout", `"timeout":0`) },
		func() { poison("latency", `"latency":200,"jitter":150`) },
		func() { poison("limit_data", `"bytes":2000`) },
		func() {
			l := links[rng.IntN(len(links))]
			l.connect(false)
			upTo(1500 * time.Millisecond)
			l.connect(true)
		},
		func() {
			in := w.instances[rng.IntN(len(w.instances))].(*local)
			in.end()
			upTo(500 * time.Millisecond)
			in.begin()
		},
		func() {
			server.Kill()
			upTo(500 * time.Millisecond)
			server.Restart()
		},
		func() {
			server.Pause()
			upTo(3 * time.Second)
			server.Continue()
		},
	}
	w.run(func() {
		for end := time.Now().Add(lasts(5*time.Second, 90*time.Second)); time.Now().Before(end); upTo(time.Second) {
			faults[rng.IntN(len(faults))]()
		}
	})
}

package chaostest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/internal/redistest"
)

// What a single Redis may do without being down: cut subscriptions, lose its data or its
// scripts, and stop for a while.

// clientsOf returns what makes a client of a server for each instance.
func clientsOf(server *redistest.Server) func(int) redis.UniversalClient {
	return func(int) redis.UniversalClient { return server.Client() }
}

// must fails the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// again calls f every so often for a time.
func again(every, all time.Duration, f func()) {
	for end := time.Now().Add(all); time.Now().Before(end); time.Sleep(every) {
		f()
	}
}

// TestPubSubKill cuts all subscriptions, again and again.
func TestPubSubKill(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client()
	w := newWorld(t, settings{redis: clientsOf(server), whole: true})
	killed := int64(0)
	w.run(func() {
		again(100*time.Millisecond, lasts(2*time.Second, 10*time.Second), func() {
			n, err := admin.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Result()
			must(t, err)
			killed += n
		})
	})
	if killed < 10 {
		t.Errorf("only %d subscriptions were cut", killed)
	}
}

// TestOutputBufferLimit cuts subscriptions that do not take the bursts fast enough: none
// may have more than 64 KB to read.
func TestOutputBufferLimit(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client()
	w := newWorld(t, settings{redis: clientsOf(server), whole: true})
	w.run(func() {
		must(t, admin.ConfigSet(t.Context(), "client-output-buffer-limit", "pubsub 64kb 0 0").Err())
		again(200*time.Millisecond, lasts(2*time.Second, 10*time.Second), func() {
			var burst sync.WaitGroup
			for i := range 20 {
				burst.Go(func() {
					in := w.instances[i%len(w.instances)]
					w.publish(in, w.names[i%len(w.names)], 20<<10, 5*time.Second)
				})
			}
			burst.Wait()
		})
		must(t, admin.ConfigSet(t.Context(), "client-output-buffer-limit", "pubsub 32mb 8mb 60").Err())
	})
	if n := w.logs("connection lost"); n < 3 {
		t.Errorf("only %d subscriptions were cut", n)
	}
}

// TestSmallHistory cuts all subscriptions where there is little history, or none: clients
// that were away for long are told, and so are all when an instance was.
func TestSmallHistory(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{5, 0} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			admin := server.Client()
			w := newWorld(t, settings{redis: clientsOf(server), reasons: []string{"trimmed"},
				options: []pushlet.Option{pushlet.WithHistory(limit, 1<<20, time.Hour)}})
			kill := func() { must(t, admin.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err()) }
			w.run(func() {
				again(100*time.Millisecond, lasts(2*time.Second, 15*time.Second), kill)
				// It takes more than the history at once for anything to be missing.
				for end := time.Now().Add(20 * time.Second); !w.counted("trimmed") && time.Now().Before(end); {
					again(50*time.Millisecond, 500*time.Millisecond, kill)
				}
			})
			w.expectGap("trimmed")
		})
	}
}

// TestFlush deletes all data while everything runs.
func TestFlush(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client()
	w := newWorld(t, settings{redis: clientsOf(server), reasons: []string{"restarted"}})
	w.run(func() {
		for range int(lasts(3, 12)) {
			must(t, admin.FlushAll(t.Context()).Err())
			time.Sleep(lasts(700*time.Millisecond, time.Second))
		}
		again(50*time.Millisecond, lasts(300*time.Millisecond, 2*time.Second), func() {
			must(t, admin.FlushAll(t.Context()).Err())
		})
	})
	w.expectGap("restarted")
}

// TestScriptFlush deletes the scripts, which are to be loaded again.
func TestScriptFlush(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client()
	for _, acks := range []bool{false, true} {
		t.Run(fmt.Sprintf("acks=%t", acks), func(t *testing.T) {
			s := settings{redis: clientsOf(server), whole: true}
			if acks { // another way to call the script; there is no replica to acknowledge
				s.options = []pushlet.Option{pushlet.WithReplicaAcks(1, time.Millisecond), pushlet.WithRedisPrefix("acks")}
				s.unacked = true
			}
			w := newWorld(t, s)
			w.run(func() {
				again(30*time.Millisecond, lasts(time.Second, 5*time.Second), func() {
					must(t, admin.ScriptFlush(t.Context()).Err())
				})
			})
		})
	}
}

// TestQuiet has faults after which nothing is published that would show what is missing.
// Clients must get it, or be told, nevertheless.
func TestQuiet(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client()
	w := newWorld(t, settings{redis: clientsOf(server), reasons: []string{"restarted"}})
	w.run(func() {
		for range int(lasts(2, 10)) {
			w.hush(true)
			must(t, admin.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err())
			since := w.since()
			for _, topic := range append([]string{everybody}, w.names...) {
				w.publish(w.instances[0], topic, 10, patience)
			}
			w.allHave("the message", got, since)
			since = w.since()
			must(t, admin.FlushAll(t.Context()).Err())
			w.allHave("a gap", gap, since)
			w.hush(false)
			time.Sleep(lasts(100*time.Millisecond, time.Second))
		}
	})
}

// TestPause stops the process of Redis for a time, which leaves all connections open. It
// goes on as if nothing had been.
func TestPause(t *testing.T) {
	t.Parallel()
	pauses := []time.Duration{3 * time.Second, 12 * time.Second}
	if testing.Short() {
		pauses = pauses[:1]
	}
	for _, d := range pauses {
		t.Run(fmt.Sprint(d), func(t *testing.T) {
			server := redistest.Start(t)
			w := newWorld(t, settings{redis: clientsOf(server), whole: true})
			w.run(func() {
				server.Pause()
				time.Sleep(d)
				server.Continue()
			})
			if s := w.during(); s.refused+s.uncertain == 0 {
				t.Error("all messages were published")
			}
		})
	}
}

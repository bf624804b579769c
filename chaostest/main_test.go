// Package chaostest tests the distributed mode with faults: instances and Redis servers
// that are killed, connections that break or fall silent, failovers and lost data, all
// under load. Each test is a run of a [world]; what its clients got is checked message by
// message, see [history].
//
// With -short the faults are few and last for seconds. Without it the tests take about ten
// minutes: go test -race -count=1 -timeout 30m ./... A run that failed is repeated, as far as its
// random choices go, with PUSHLET_CHAOS_SEED; with PUSHLET_CHAOS_DUMP it leaves all that
// has happened in a file of that directory. The tests skip where there is no
// redis-server, unless PUSHLET_REQUIRE_REDIS=1.
package chaostest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestMain runs all tests with the library's own checks of its invariants, and fails if
// they leave a goroutine behind. In a process that [process] has started it is an
// instance instead.
func TestMain(m *testing.M) {
	if err := os.Setenv("PUSHLET_VERIFY", "1"); err != nil { // New looks at it
		panic(err)
	}
	redis.SetLogger(silence{}) // it has much to say here
	if addr := os.Getenv(childEnv); addr != "" {
		os.Exit(beInstance(addr))
	}
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
	if !asked { // they wait more than they work
		if err := flag.Set("test.parallel", "3"); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	if code == 0 {
		if left := goroutinesLeft(10 * time.Second); len(left) > 0 {
			fmt.Printf("%d goroutines are left:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// silence is a logger for go-redis.
type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// goroutinesLeft returns the stacks of goroutines that nobody has ended, once there are
// none or the time is over. Those of toxiproxy do not count: some wait for ever where a
// toxic has ended a connection that still had something to read.
func goroutinesLeft(wait time.Duration) (stacks []string) {
	for deadline := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		all := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
		stacks = stacks[:0]
		for _, stack := range all[1:] { // the first is this one
			if !strings.Contains(stack, "Shopify/toxiproxy") && !strings.Contains(stack, "os/signal.loop") {
				stacks = append(stacks, strings.TrimSpace(stack))
			}
		}
		if len(stacks) == 0 || time.Now().After(deadline) {
			return stacks
		}
	}
}

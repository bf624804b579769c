package consumer_test

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain runs all tests with the server's own checks of its invariants, and fails if they
// leave a goroutine behind.
func TestMain(m *testing.M) {
	if err := os.Setenv("PUSHLET_VERIFY", "1"); err != nil { // pushlet.New looks at it
		panic(err)
	}
	code := m.Run()
	if left := goroutinesLeft(10 * time.Second); code == 0 && len(left) > 0 {
		fmt.Printf("%d goroutines are left:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
		code = 1
	}
	os.Exit(code)
}

// goroutinesLeft returns the stacks of goroutines that nobody has ended, once there are
// none or the time is over.
func goroutinesLeft(wait time.Duration) (stacks []string) {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	for deadline := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		all := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
		stacks = stacks[:0]
		for _, stack := range all[1:] { // the first is this one
			if !strings.Contains(stack, "testing.runFuzzing") && !strings.Contains(stack, "os/signal.loop") {
				stacks = append(stacks, strings.TrimSpace(stack))
			}
		}
		if len(stacks) == 0 || time.Now().After(deadline) {
			return stacks
		}
	}
}

package main

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails if the tests leave a goroutine behind.
func TestMain(m *testing.M) {
	arrivals.install(http.DefaultTransport.(*http.Transport))
	code := m.Run()
	if left := goroutinesLeft(10 * time.Second); code == 0 && left != "" {
		fmt.Printf("goroutines are left:\n\n%s\n", left)
		code = 1
	}
	os.Exit(code)
}

// goroutinesLeft returns the stacks of goroutines that nobody has ended, once there are none
// or the time is over.
func goroutinesLeft(wait time.Duration) string {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	for deadline := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		// The first stack is this one's.
		_, others, _ := strings.Cut(string(buf[:runtime.Stack(buf, true)]), "\n\n")
		if others == "" || time.Now().After(deadline) {
			return others
		}
	}
}

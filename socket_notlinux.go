//go:build !linux

package pushlet

import (
	"syscall"
	"time"
)

// setUserTimeout and unsentBytes are known only for Linux. Elsewhere a peer that
// vanished is noticed by TCP's own retransmission limit or the write timeout.
func setUserTimeout(syscall.RawConn, time.Duration) {}

func unsentBytes(syscall.RawConn) int { return -1 }

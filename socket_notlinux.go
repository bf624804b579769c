//go:build !linux || 386 || s390x

package pushlet

import "syscall"

// socketInfoOf knows something only on Linux, and there not where package syscall cannot
// ask. Elsewhere a peer that vanished is noticed by TCP's own retransmission limit, an
// unanswered ping or the write timeout.
func socketInfoOf(syscall.RawConn) socketInfo { return socketInfo{} }

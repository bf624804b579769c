package pushlet

import (
	"syscall"
	"time"
	"unsafe"
)

// From <netinet/tcp.h> and <asm-generic/ioctls.h>; package syscall lacks them.
const (
	tcpUserTimeout = 18
	siocOutQ       = 0x5411
)

// setUserTimeout has the kernel drop a connection whose peer acknowledges nothing for
// the time d: so a peer that vanished is noticed although we only write to it.
func setUserTimeout(raw syscall.RawConn, d time.Duration) {
	if raw == nil || d <= 0 {
		return
	}
	// It is a help, not a need: where it fails, the write timeout remains.
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(d.Milliseconds()))
	})
}

// unsentBytes returns how many bytes in the socket the peer has not acknowledged, or
// -1 if that is not known.
func unsentBytes(raw syscall.RawConn) int {
	n := int32(-1)
	_ = raw.Control(func(fd uintptr) {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, siocOutQ, uintptr(unsafe.Pointer(&n))) //nolint:gosec // ioctl takes a pointer
		if errno != 0 {
			n = -1
		}
	})
	return int(n)
}

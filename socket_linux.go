//go:build !386 && !s390x

package pushlet

import (
	"encoding/binary"
	"syscall"
	"time"
	"unsafe"
)

// From <asm-generic/ioctls.h>; package syscall lacks it.
const siocOutQ = 0x5411

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

// Where struct tcp_info of <linux/tcp.h> has what we need.
const (
	tcpInfoRetransmits = 2  // uint8: times the oldest segment was sent again
	tcpInfoUnacked     = 24 // uint32: segments that were sent and not acknowledged
	tcpInfoLastAckRecv = 56 // uint32: milliseconds since something was acknowledged
	tcpInfoSize        = 60 // up to there; the kernel leaves out the rest
)

// unackedFor returns for how long the peer has acknowledged nothing although something was
// sent, and sent again; zero if nothing is on the way, or it is not known. A peer whose
// window is closed is sent nothing, so it does not count.
func unackedFor(raw syscall.RawConn) time.Duration {
	var info [tcpInfoSize]byte
	size := uint32(len(info))
	ok := false
	_ = raw.Control(func(fd uintptr) {
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, syscall.TCP_INFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // getsockopt takes pointers
		ok = errno == 0 && size == tcpInfoSize
	})
	if !ok || info[tcpInfoRetransmits] == 0 || binary.NativeEndian.Uint32(info[tcpInfoUnacked:]) == 0 {
		return 0
	}
	return time.Duration(binary.NativeEndian.Uint32(info[tcpInfoLastAckRecv:])) * time.Millisecond
}

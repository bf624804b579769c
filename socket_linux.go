//go:build !386 && !s390x

package pushlet

import (
	"encoding/binary"
	"syscall"
	"time"
	"unsafe"
)

// socketInfoOf asks the kernel for TCP_INFO; all is zero if it does not say.
func socketInfoOf(socket syscall.RawConn) (info socketInfo) {
	if socket == nil {
		return info
	}
	// struct tcp_info of <linux/tcp.h>, up to what we need. A kernel that knows less
	// fills in less.
	var b [148]byte
	size := uint32(len(b))
	_ = socket.Control(func(fd uintptr) {
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, syscall.TCP_INFO,
			uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // getsockopt takes pointers
		if errno != 0 {
			clear(b[:])
		}
	})
	ne := binary.NativeEndian
	info.retransmits = int(b[2])
	info.unacked = int(ne.Uint32(b[24:]))
	info.sinceAck = time.Duration(ne.Uint32(b[56:])) * time.Millisecond
	info.acked = ne.Uint64(b[120:])
	info.unsent = int(ne.Uint32(b[144:]))
	return info
}

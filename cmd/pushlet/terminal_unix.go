//go:build linux || darwin || freebsd

package main

import (
	"os"
	"syscall"
	"unsafe"
)

// terminalWidth reports whether f is a terminal, and how many columns it has, 0 if it does not
// know. A terminal is what has a window: /dev/null is a character device, but has none.
func terminalWidth(f *os.File) (columns int, terminal bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, false
	}
	var size struct{ rows, columns, x, y uint16 }
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size))) //nolint:gosec // the kernel writes four uint16 there
	})
	if err != nil || errno != 0 {
		return 0, false
	}
	return int(size.columns), true
}

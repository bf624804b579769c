//go:build linux || darwin || freebsd

package main

import "syscall"

const (
	errNoPorts = syscall.EADDRNOTAVAIL
	errNoFiles = syscall.EMFILE
)

// fileLimit is how many files and sockets the process may have open, 0 if that is not known. (Go
// has raised it to what the system allows.)
func fileLimit() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	const most = 1 << 30
	if limit.Cur > most {
		return most
	}
	return int(limit.Cur)
}

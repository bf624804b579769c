//go:build !(linux || darwin || freebsd)

package main

import "errors"

// No error of this system is known to mean one of these.
var (
	errNoPorts = errors.New("no local ports")
	errNoFiles = errors.New("too many open files")
)

// fileLimit is not known here.
func fileLimit() int { return 0 }

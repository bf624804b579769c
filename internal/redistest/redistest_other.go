//go:build !linux

package redistest

import (
	"os/exec"
	"syscall"
)

// The numbers of macOS and the BSDs. Windows has neither them nor Redis.
const (
	sigstop = syscall.Signal(17)
	sigcont = syscall.Signal(19)
)

// dieWithParent would have the process killed with the test binary; that is for Linux.
func dieWithParent(*exec.Cmd) {}

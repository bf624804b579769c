package main

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the process killed when the thread that starts it ends: however the test
// dies, it leaves no program behind that connects for ever.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

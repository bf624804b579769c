//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// apart keeps Ctrl-C from reaching the process: it is to end after the instances.
func apart(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}

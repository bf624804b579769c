package main

import (
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Descriptors that a child finds open, besides the standard three.
const (
	callsFD    = 3 // the socket on which it answers calls
	feedbackFD = 4 // the pipe from load to server (see feedback.go)
)

// A process is one child: this same program in another role. Server and load
// generator are processes of their own so that each one's CPU time, memory and
// garbage collection can be told from the other's.
type process struct {
	*rpc.Client
	cmd *exec.Cmd
}

func spawn(feedback *os.File, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "calls"), os.NewFile(uintptr(fds[1]), "calls")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.ExtraFiles = []*os.File{theirs, feedback}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr // standard output is for the table
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	return &process{Client: rpc.NewClient(conn), cmd: cmd}, nil
}

// close ends the child, which exits when its socket is closed, and waits for it.
func (p *process) close() error {
	p.Client.Close()
	overdue := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
	defer overdue.Stop()
	return p.cmd.Wait()
}

// answerCalls is the main loop of a child: it answers calls of receiver's methods
// until the parent closes the socket or ends.
func answerCalls(receiver any) error {
	conn, err := net.FileConn(os.NewFile(callsFD, "calls"))
	if err != nil {
		return fmt.Errorf("this role is started by the program itself: %w", err)
	}
	server := rpc.NewServer()
	if err := server.Register(receiver); err != nil {
		return err
	}
	server.ServeConn(conn)
	return nil
}

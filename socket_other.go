//go:build !unix

package pushlet

import "syscall"

// canTryWrite: elsewhere every client is written by a goroutine that may wait.
const canTryWrite = false

type socketWriter struct{}

func (s *socketWriter) init() {}

func (s *socketWriter) write(syscall.RawConn, []byte) (int, error) { return 0, nil }

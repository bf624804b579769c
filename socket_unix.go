//go:build unix

package pushlet

import "syscall"

const canTryWrite = true

// A socketWriter writes to non-blocking sockets without waiting. It belongs to one
// goroutine and is used again and again, so that a write allocates nothing.
type socketWriter struct {
	b   []byte
	n   int
	err error
	fn  func(fd uintptr) bool
}

func (s *socketWriter) init() { s.fn = s.writeFD }

// write writes as much of b as the socket takes now.
func (s *socketWriter) write(raw syscall.RawConn, b []byte) (int, error) {
	s.b, s.n, s.err = b, 0, nil
	err := raw.Write(s.fn)
	s.b = nil
	if err == nil {
		err = s.err
	}
	return s.n, err
}

func (s *socketWriter) writeFD(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), s.b)
		if n > 0 {
			s.n = n
		}
		switch err {
		case nil, syscall.EAGAIN:
			return true // done; false would wait until the socket is writable
		case syscall.EINTR:
			continue
		}
		s.err = err
		return true
	}
}

package pushlet

import (
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A transport carries the bytes of one client. One goroutine at a time writes;
// close may be called by any, any number of times.
type transport interface {
	// tryWrite writes as much of b as it can without waiting, perhaps nothing.
	tryWrite(s *socketWriter, b []byte) (int, error)
	// write writes all of b. It fails with os.ErrDeadlineExceeded when the peer
	// takes nothing for the write timeout.
	write(b []byte) error
	// endWrite ends the stream after the last write. The peer is given a moment to
	// take what was written and to close; then the connection ends.
	endWrite()
	// lost reports whether the peer has acknowledged nothing of what was written to it
	// for about a heartbeat, as far as that is known.
	lost() bool
	// close ends the connection at once.
	close()
}

// closeGrace is how long a peer has to close a connection that we have ended.
const closeGrace = 2 * time.Second

// connTransport writes to a connection that was hijacked from net/http.
type connTransport struct {
	conn      net.Conn
	raw       syscall.RawConn // nil where we cannot write without waiting, as with TLS
	socket    syscall.RawConn // the socket below, nil if not known
	timeout   time.Duration   // for a write
	heartbeat *atomic.Int64   // the interval, in nanoseconds
	halfClose bool            // endWrite sends FIN

	// Both sides of a WebSocket say that they are done. Each sets its own before it
	// looks at the other, so that the later one closes.
	ended    atomic.Bool // endWrite was called
	peerDone atomic.Bool // peerEnded was called
}

func newConnTransport(conn net.Conn, timeout time.Duration, heartbeat *atomic.Int64, halfClose bool) *connTransport {
	t := &connTransport{conn: conn, timeout: timeout, heartbeat: heartbeat, halfClose: halfClose}
	below := conn
	if tls, ok := conn.(interface{ NetConn() net.Conn }); ok {
		below = tls.NetConn()
	}
	if tcp, ok := below.(*net.TCPConn); ok {
		t.socket, _ = tcp.SyscallConn()
	}
	// Only here do we know that writing to the socket is all that Write does.
	if _, ok := conn.(*net.TCPConn); ok && canTryWrite {
		t.raw = t.socket
	}
	return t
}

func (t *connTransport) tryWrite(s *socketWriter, b []byte) (int, error) {
	if t.raw == nil || len(b) == 0 {
		return 0, nil
	}
	return s.write(t.raw, b)
}

func (t *connTransport) write(b []byte) error {
	var waited time.Duration // since the peer has last taken something
	for len(b) > 0 {
		step := t.timeout - waited
		if t.raw != nil { // with TLS a write that has timed out cannot be continued
			step = min(step, time.Duration(t.heartbeat.Load()))
		}
		before := t.unsent()
		t.conn.SetWriteDeadline(time.Now().Add(step)) // fails only as Write will
		n, err := t.conn.Write(b)
		b = b[n:]
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || t.raw == nil {
			return err
		}
		if waited += step; n > 0 || t.unsent() < before {
			waited = 0 // it is only slow: it has taken something that was in the socket
		}
		if waited >= t.timeout {
			return err
		}
		if t.lost() {
			return errLost
		}
	}
	return t.conn.SetWriteDeadline(time.Time{})
}

// errLost is returned by a write to a peer that has vanished.
var errLost = errors.New("pushlet: the peer acknowledges nothing")

// unsent returns how many bytes in the socket the peer has not acknowledged, -1 if that
// is not known.
func (t *connTransport) unsent() int {
	if t.socket == nil {
		return -1
	}
	return unsentBytes(t.socket)
}

// lost: a peer that is alive acknowledges at least each heartbeat, even if it reads
// nothing; for that it has the write timeout.
func (t *connTransport) lost() bool {
	return t.socket != nil && unackedFor(t.socket) > time.Duration(t.heartbeat.Load())*3/2
}

func (t *connTransport) endWrite() {
	t.ended.Store(true)
	if t.peerDone.Load() {
		t.close()
		return
	}
	if w, ok := t.conn.(interface{ CloseWrite() error }); ok && t.halfClose {
		_ = w.CloseWrite() // if it fails, so does the read that waits for the peer
	}
	t.conn.SetReadDeadline(time.Now().Add(closeGrace))
}

// peerEnded notes that the peer will send nothing more and waits for us to close.
func (t *connTransport) peerEnded() {
	t.peerDone.Store(true)
	if t.ended.Load() {
		t.close()
	}
}

// close does not wait: it leaves out TLS's farewell, which endWrite has sent if the end
// was a good one.
func (t *connTransport) close() {
	if tls, ok := t.conn.(interface{ NetConn() net.Conn }); ok {
		tls.NetConn().Close()
		return
	}
	t.conn.Close()
}

// controllerTransport writes through a http.ResponseWriter, for HTTP/2 and where
// hijacking is not possible. It may be used only until the handler returns.
type controllerTransport struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration

	mu   sync.Mutex // close comes from other goroutines
	done bool       // the handler has returned or is about to
	end  chan struct{}
}

func newControllerTransport(w http.ResponseWriter, timeout time.Duration) *controllerTransport {
	return &controllerTransport{w: w, rc: http.NewResponseController(w), timeout: timeout, end: make(chan struct{})}
}

// lost is for net/http to find out: see http.HTTP2Config.
func (t *controllerTransport) lost() bool { return false }

func (t *controllerTransport) tryWrite(*socketWriter, []byte) (int, error) { return 0, nil }

// write writes and flushes. The deadline is per write and cleared afterwards: with
// HTTP/2 one that passes ends the stream even if nothing is being written, and a
// server's WriteTimeout must not end it at all.
func (t *controllerTransport) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := t.deadline(time.Now().Add(t.timeout)); err != nil {
		return err
	}
	if _, err := t.w.Write(b); err != nil {
		return err
	}
	if err := t.rc.Flush(); err != nil {
		return err
	}
	return t.deadline(time.Time{})
}

// deadline sets the write deadline unless the connection is closed. A writer that
// cannot have one is written without.
func (t *controllerTransport) deadline(at time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return net.ErrClosed
	}
	if err := t.rc.SetWriteDeadline(at); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// endWrite lets the handler return. A deadline would now spoil the end of the response.
func (t *controllerTransport) endWrite() {
	t.mu.Lock()
	t.done = true
	t.mu.Unlock()
	close(t.end)
}

// close lets a write that waits fail.
func (t *controllerTransport) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.done {
		t.done = true
		_ = t.rc.SetWriteDeadline(time.Now()) // best effort: the handler notices gone anyway
	}
}

package pushlet

import (
	"errors"
	"math"
	"net"
	"net/http"
	"os"
	"slices"
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
	// write writes all of b, or fails and says how much of it was written, as far as that
	// is known. It fails with os.ErrDeadlineExceeded when the peer takes nothing for the
	// write timeout.
	write(b []byte) (int, error)
	// endWrite ends the stream after the last write. The peer is given a moment to
	// take what was written and to close; then the connection ends.
	endWrite()
	// check looks at each heartbeat whether the peer is still there, as far as that is
	// known, and returns why the connection is to end, or "". An overdue peer owes us an
	// answer since the last heartbeat.
	check(overdue bool) Reason
	// close ends the connection at once.
	close()
}

// closeGrace is how long a peer has to close a connection that we have ended.
const closeGrace = 2 * time.Second

// socketInfo is what the kernel knows of a peer.
type socketInfo struct {
	unacked     int           // segments that were sent and not acknowledged
	unsent      int           // bytes that were not sent, for the peer's window is closed
	retransmits int           // times the oldest of these segments was sent again
	sinceAck    time.Duration // since something was acknowledged
	acked       uint64        // bytes acknowledged in all
}

// connTransport writes to a connection that was hijacked from net/http.
type connTransport struct {
	conn      net.Conn
	raw       syscall.RawConn // nil where we cannot write without waiting, as with TLS
	socket    syscall.RawConn // the socket below, nil if not known
	timeout   time.Duration   // for a write
	heartbeat *atomic.Int64   // the interval, in nanoseconds
	halfClose bool            // endWrite sends FIN

	// Owned by whoever flushes the client: the first check that found something in the
	// socket, and what the peer had acknowledged then.
	stuckSince time.Time
	stuckAcked uint64

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

// write has no deadline that would have to be renewed, which with TLS is not possible: a
// timer looks whether the peer still takes something, and lets the write fail if not.
func (t *connTransport) write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	w := &stallWatch{t: t, acked: socketInfoOf(t.socket).acked}
	w.step = max(time.Millisecond, min(t.timeout/4, time.Duration(t.heartbeat.Load())))
	w.timer = time.AfterFunc(math.MaxInt64, w.look)
	w.timer.Reset(w.step) // look uses timer, so only now may it be called
	n, err := t.conn.Write(b)
	w.timer.Stop()
	if why := w.err.Load(); why != nil {
		return n, *why // also if the last bytes went just then: there is a deadline now
	}
	return n, err
}

// A stallWatch watches one write. What is not atomic belongs to look, which is called
// again only by itself.
type stallWatch struct {
	t      *connTransport
	timer  *time.Timer
	step   time.Duration
	waited time.Duration // since the peer has last acknowledged something
	acked  uint64        // what it had acknowledged then
	err    atomic.Pointer[error]
}

func (w *stallWatch) look() {
	info := socketInfoOf(w.t.socket)
	if w.waited += w.step; info.acked > w.acked {
		w.acked, w.waited = info.acked, 0
	}
	switch {
	case w.waited >= w.t.timeout:
		w.err.Store(&os.ErrDeadlineExceeded)
	case w.t.vanished(info):
		w.err.Store(&errLost)
	default:
		w.timer.Reset(w.step)
		return
	}
	w.t.conn.SetWriteDeadline(time.Now()) // ends the write; who wrote ends the client
}

// errLost is returned by a write to a peer that has vanished.
var errLost = errors.New("pushlet: the peer acknowledges nothing")

// check: what was written lies in our socket until the peer takes it.
func (t *connTransport) check(overdue bool) Reason {
	info := socketInfoOf(t.socket)
	switch {
	case info.unacked == 0 && info.unsent == 0:
		t.stuckSince = time.Time{}
		if overdue {
			return ReasonHeartbeat // it has got what we asked
		}
	case t.vanished(info):
		return ReasonHeartbeat
	case t.stuckSince.IsZero() || t.stuckAcked != info.acked:
		t.stuckSince, t.stuckAcked = time.Now(), info.acked
	case time.Since(t.stuckSince) >= t.timeout:
		return ReasonWriteTimeout
	}
	return ""
}

// vanished: a peer that is alive acknowledges at least each heartbeat, even if it reads
// nothing.
func (t *connTransport) vanished(info socketInfo) bool {
	limit := max(time.Second, time.Duration(t.heartbeat.Load())*3/2) // below lie mere losses
	return info.unacked > 0 && info.retransmits > 0 && info.sinceAck > limit
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

// check leaves it to net/http to find out: see http.HTTP2Config.
func (t *controllerTransport) check(bool) Reason { return "" }

func (t *controllerTransport) tryWrite(*socketWriter, []byte) (int, error) { return 0, nil }

// controllerPiece is how many bytes a peer has to take within the write timeout: here we
// cannot see whether it has taken some of them.
const controllerPiece = 4 << 10

// write writes and flushes. The deadline is per piece and cleared afterwards: with
// HTTP/2 one that passes ends the stream even if nothing is being written, and a
// server's WriteTimeout must not end it at all. If it fails, nobody knows what net/http
// has sent of what it was given: that counts as nothing.
func (t *controllerTransport) write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for piece := range slices.Chunk(b, controllerPiece) {
		if err := t.deadline(time.Now().Add(t.timeout)); err != nil {
			return 0, err
		}
		if _, err := t.w.Write(piece); err != nil {
			return 0, err
		}
	}
	if err := t.rc.Flush(); err != nil {
		return 0, err
	}
	return len(b), t.deadline(time.Time{})
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
	t.retire()
	close(t.end)
}

// retire sees to it that nobody uses the ResponseWriter any more, which only the handler
// may do, and waits for whoever does.
func (t *controllerTransport) retire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = true
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

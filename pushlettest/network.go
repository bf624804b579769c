package pushlettest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// The network: connections in memory, with a buffer in each direction as sockets have
// one, deadlines, and faults. Whoever waits does so on channels and timers only, so that
// a synctest bubble sees it.

var (
	errReset  = errors.New("connection reset by peer")
	errBroken = errors.New("broken pipe")
)

// A conn is one end of a connection in memory.
type conn struct {
	in, out       *half
	local, remote net.Addr
	onClose       func() // nil: nothing
}

// pipe makes a connection with room for that many bytes in each direction.
func pipe(buffer int, clientAddr, serverAddr net.Addr) (client, server *conn) {
	up, down := newHalf(buffer), newHalf(buffer)
	return &conn{down, up, clientAddr, serverAddr, nil}, &conn{up, down, serverAddr, clientAddr, nil}
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b)
	if err != nil && err != io.EOF { //nolint:errorlint // ours, as it is
		err = c.opError("read", err)
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.out.write(b)
	if err != nil {
		err = c.opError("write", err)
	}
	return n, err
}

func (c *conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// Close ends this side. What was written before still arrives.
func (c *conn) Close() error {
	c.out.change(func(h *half) { h.ended, h.writerGone = true, true })
	c.in.change(func(h *half) { h.readerGone, h.buf = true, nil })
	if c.onClose != nil {
		c.onClose()
	}
	return nil
}

// CloseWrite says that nothing more will be written.
func (c *conn) CloseWrite() error {
	c.out.change(func(h *half) { h.ended = true })
	return nil
}

// drop breaks the connection: what is on its way is lost, and both sides get an error.
func (c *conn) drop() {
	for _, h := range []*half{c.in, c.out} {
		h.change(func(h *half) { h.reset, h.buf = true, nil })
	}
}

// stall makes this side stop reading, or go on.
func (c *conn) stall(yes bool) { c.in.change(func(h *half) { h.stalled = yes }) }

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.change(func(h *half) { h.readDeadline = t })
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.change(func(h *half) { h.writeDeadline = t })
	return nil
}

// A half is one direction of a connection.
type half struct {
	limit int

	// Guarded by mu, which is never held while waiting.
	mu            sync.Mutex
	buf           []byte
	changed       chan struct{} // closed at the next change; nil: nobody waits for it
	stalled       bool          // the reader does not read
	ended         bool          // the writer will write no more
	writerGone    bool          // the writer has closed
	readerGone    bool          // the reader has closed
	reset         bool          // the connection is broken
	readDeadline  time.Time
	writeDeadline time.Time
}

func newHalf(limit int) *half { return &half{limit: limit} }

// change changes something and lets those who wait look again.
func (h *half) change(what func(*half)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	what(h)
	h.notify()
}

// notify is called with mu held.
func (h *half) notify() {
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// wait waits for a change, or until the deadline. It is called with mu held, and
// releases it meanwhile.
func (h *half) wait(deadline time.Time) {
	if h.changed == nil {
		h.changed = make(chan struct{})
	}
	changed := h.changed
	h.mu.Unlock()
	defer h.mu.Lock()
	if deadline.IsZero() {
		<-changed
		return
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	}
}

func passed(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

func (h *half) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.readerGone:
			return 0, net.ErrClosed
		case h.reset:
			return 0, errReset
		case passed(h.readDeadline):
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case len(h.buf) > 0 && !h.stalled:
			n := copy(b, h.buf)
			h.buf = h.buf[:copy(h.buf, h.buf[n:])]
			h.notify()
			return n, nil
		case h.ended && len(h.buf) == 0:
			return 0, io.EOF
		}
		h.wait(h.readDeadline)
	}
}

func (h *half) write(b []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.writerGone:
			return n, net.ErrClosed
		case h.reset:
			return n, errReset
		case h.readerGone, h.ended:
			return n, errBroken
		case passed(h.writeDeadline):
			return n, os.ErrDeadlineExceeded
		case n == len(b):
			return n, nil
		}
		if room := h.limit - len(h.buf); room > 0 {
			m := min(room, len(b)-n)
			h.buf = append(h.buf, b[n:n+m]...)
			n += m
			h.notify()
			continue
		}
		h.wait(h.writeDeadline)
	}
}

// A listener accepts connections in memory.
type listener struct {
	conns  chan net.Conn // unbuffered: a connection is accepted or fails
	closed chan struct{}
	once   sync.Once
	addr   net.Addr
}

// Addresses of RFC 5737, which belong to nobody.
var (
	clientIP = net.IPv4(192, 0, 2, 1)
	serverIP = net.IPv4(192, 0, 2, 2)
)

func newListener() *listener {
	return &listener{
		conns:  make(chan net.Conn),
		closed: make(chan struct{}),
		addr:   &net.TCPAddr{IP: serverIP, Port: 80},
	}
}

// dial connects from a port.
func (l *listener) dial(ctx context.Context, port, buffer int) (*conn, error) {
	client, server := pipe(buffer, &net.TCPAddr{IP: clientIP, Port: port}, l.addr)
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, client.opError("dial", net.ErrClosed)
	case <-ctx.Done():
		return nil, client.opError("dial", context.Cause(ctx))
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

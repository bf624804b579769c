package pushlet

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
)

// A flusher writes what is queued to clients. A few workers take clients from its run
// queue and write without ever waiting; a client whose socket is full goes on in a
// goroutine of its own, which waits for the socket.
type flusher struct {
	wg      sync.WaitGroup // workers, blocked writers, aborts
	workers []*worker

	// Guarded by mu.
	mu      sync.Mutex
	some    sync.Cond // there are clients, or it is closed
	clients []*client // the run queue; the next is clients[head]
	head    int
	idle    int // workers that wait
	closed  bool
}

const (
	// gatherSize is how many bytes a worker gathers from short spans for one write.
	gatherSize = 64 << 10
	// grabSize is how many clients a worker takes from the run queue at once: enough
	// to make the lock cheap, few enough to leave some to the others.
	grabSize = 16
	// blockedChunk bounds one waiting write, so that what a slow client has taken leaves
	// its queue in steps of this many bytes.
	blockedChunk = 16 << 10
)

func newFlusher(workers int) *flusher {
	f := &flusher{}
	f.some.L = &f.mu
	for range workers {
		f.workers = append(f.workers, newWorker(f))
	}
	return f
}

func (f *flusher) start() {
	for _, w := range f.workers {
		f.wg.Go(w.run)
	}
}

// stop ends the workers and waits for them. No client may be flushed any more.
func (f *flusher) stop() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.some.Broadcast()
	f.wg.Wait()
}

// push appends clients to the run queue. Each must be scheduled, so that it is there
// once at most. It never blocks.
func (f *flusher) push(clients ...*client) {
	f.mu.Lock()
	f.clients = append(f.clients, clients...)
	wake := min(f.idle, len(clients))
	f.mu.Unlock()
	for range wake {
		f.some.Signal()
	}
}

// pop waits for clients and moves some to batch; none means that it is closed.
func (f *flusher) pop(batch []*client) []*client {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.head == len(f.clients) {
		if f.closed {
			return nil
		}
		f.idle++
		f.some.Wait()
		f.idle--
	}
	n := min((len(f.clients)-f.head+len(f.workers)-1)/len(f.workers), grabSize)
	batch = append(batch, f.clients[f.head:f.head+n]...)
	clear(f.clients[f.head : f.head+n])
	f.head += n
	switch {
	case f.head == len(f.clients):
		f.clients, f.head = f.clients[:0], 0
	case f.head > len(f.clients)/2 && len(f.clients) == cap(f.clients):
		kept := copy(f.clients, f.clients[f.head:])
		clear(f.clients[kept:])
		f.clients, f.head = f.clients[:kept], 0
	}
	return batch
}

// A worker is one of the goroutines behind a flusher. It belongs to its run.
type worker struct {
	flusher *flusher
	batch   []*client
	scratch []byte
	socket  socketWriter

	delivered atomic.Uint64 // messages
	sent      atomic.Uint64 // bytes
	_         [64]byte      // the next worker's counters are in another cache line
}

func newWorker(f *flusher) *worker {
	w := &worker{flusher: f, scratch: make([]byte, 0, gatherSize)}
	w.socket.init()
	return w
}

func (w *worker) run() {
	for {
		w.batch = w.flusher.pop(w.batch[:0])
		if len(w.batch) == 0 {
			return
		}
		for i, c := range w.batch {
			w.flush(c)
			w.batch[i] = nil
		}
	}
}

// flush writes once to c and sees to it that somebody goes on where more is to do.
func (w *worker) flush(c *client) {
	chunk, probe := c.peek(w.scratch)
	if c.lost(probe) {
		return
	}
	n, err := c.transport.tryWrite(&w.socket, chunk)
	step, messages := c.wrote(n)
	w.delivered.Add(uint64(messages))
	w.sent.Add(uint64(n))
	switch {
	case err != nil:
		c.abort(writeReason(err))
	case step == stepMore && n == len(chunk):
		w.flusher.push(c) // behind the others, to be fair
	case step == stepMore:
		w.flusher.wg.Go(func() { w.flusher.drain(c) })
	default:
		c.proceed(step)
	}
}

// drain writes until nothing is queued, and waits for the socket where it must. It is
// for clients whose sockets are full or cannot be written without waiting.
func (f *flusher) drain(c *client) {
	scratch := scratchPool.Get().(*[]byte)
	defer scratchPool.Put(scratch)
	for {
		chunk, probe := c.peek(*scratch)
		if c.lost(probe) {
			return
		}
		chunk = chunk[:min(len(chunk), blockedChunk)]
		n, err := c.transport.write(chunk)
		step, messages := c.wrote(n)
		c.env.counters.delivered.Add(uint64(messages))
		c.env.counters.sent.Add(uint64(n))
		if err != nil {
			c.abort(writeReason(err))
			return
		}
		if step != stepMore {
			c.proceed(step)
			return
		}
	}
}

var scratchPool = sync.Pool{New: func() any {
	b := make([]byte, 0, 8<<10)
	return &b
}}

// abort ends a client for one who must not wait, as closing a connection might.
func (f *flusher) abort(c *client, why Reason) {
	f.wg.Go(func() { c.abort(why) })
}

// lost looks, after a peek, whether the peer is still there, if it is time to, and ends
// the client if not; then there is nothing to write.
func (c *client) lost(due probe) bool {
	if due == probeNone {
		return false
	}
	why := c.transport.check(due == probeAnswer)
	if why != "" {
		c.abort(why)
		c.wrote(0)
	}
	return why != ""
}

// proceed does what remains when nothing is queued.
func (c *client) proceed(step nextStep) {
	switch step {
	case stepPage:
		c.env.requestPage(c)
	case stepEnd:
		c.transport.endWrite()
	}
}

func writeReason(err error) Reason {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ReasonWriteTimeout
	case errors.Is(err, errLost):
		return ReasonHeartbeat
	}
	return ReasonConnection
}

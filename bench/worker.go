package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"time"
)

// A worker is one thread of the load generator. It holds its share of the
// connections in one epoll set and reads all of them into one buffer.
type worker struct {
	// Immutable after newWorker.
	config workerConfig
	first  int         // number of its first connection among those of all workers
	posted chan func() // run by the worker between two polls

	// Owned by run.
	stopped  bool
	failed   error // see fail
	epoll    int
	events   []syscall.EpollEvent
	lastRead time.Time
	buf      []byte
	conns    []conn
	received []uint32 // messages, by connection; apart from conns, to be scanned quickly
	free     []int    // connections that are to be dialled
	shaking  int      // connections that have been dialled and have no answer
	opened   int      // connections that have been answered, ever

	least    uint32 // the lowest of received
	atLeast  int    // how many of received are at it
	total    int    // the sum of received
	reported int    // progress at the last report

	bytes     int // received after the answers
	lost      int // connections that the server closed
	disorder  int // messages that were not the next one of their topic
	latencies []time.Duration
}

// workerConfig is what all workers of a load generator have in common.
type workerConfig struct {
	ConnectArgs
	server   netip.AddrPort
	feedback int  // descriptor of the pipe to the server
	churn    bool // leave as soon as the first event is there, and connect anew
	id       int
}

// conn is one client.
type conn struct {
	fd       int // negative if not connected
	answered bool
	early    []byte // until answered: what has come; then: the beginning of a message's head
	id       string // from which it would resume
	resuming bool
	frames   frames
}

const (
	// awake is how long a worker looks for more after it has read something, and
	// idlePoll how long it then sleeps at most.
	awake      = 100 * time.Microsecond
	idlePoll   = 100 * time.Millisecond
	readBuffer = 64 << 10
	// maxShaking bounds the connections that wait for their answer at a time, far
	// below the server's accept queue: a connection refused by a full queue comes
	// back after a second.
	maxShaking = 512
)

func newWorker(config workerConfig, first, conns int) (*worker, error) {
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	w := &worker{
		config:   config,
		first:    first,
		posted:   make(chan func()),
		epoll:    epoll,
		events:   make([]syscall.EpollEvent, 1024),
		buf:      make([]byte, readBuffer),
		conns:    make([]conn, conns),
		received: make([]uint32, conns),
		atLeast:  conns,
	}
	for i := range w.conns {
		w.conns[i].fd = -1
	}
	return w, nil
}

// do runs f on the worker's thread and waits for it.
func (w *worker) do(f func()) {
	done := make(chan struct{})
	w.posted <- func() { f(); close(done) }
	<-done
}

// fail notes the first failure; nothing is dialled after it.
func (w *worker) fail(err error) {
	if w.failed == nil {
		w.failed = err
	}
}

// run is the worker's thread.
func (w *worker) run() {
	runtime.LockOSThread()
	defer syscall.Close(w.epoll)
	for !w.stopped {
		select {
		case f := <-w.posted:
			f()
		default:
		}
		w.dial()
		w.poll()
	}
}

// dial connects what is to be connected, as far as maxShaking allows.
func (w *worker) dial() {
	for len(w.free) > 0 && w.shaking < maxShaking && w.failed == nil {
		i := w.free[len(w.free)-1]
		w.free = w.free[:len(w.free)-1]
		if err := w.connect(i); err != nil {
			w.fail(err)
			return
		}
		w.shaking++
	}
}

// connect dials connection i and sends its request.
func (w *worker) connect(i int) error {
	c := &w.conns[i]
	number := w.first + i
	if w.config.churn {
		// Each time another topic, to see whether the server forgets those that were left.
		number += w.opened * w.config.Clients
	}
	fd, err := dial(w.config.server, w.opened+i)
	if err != nil {
		return err
	}
	c.fd, c.answered, c.frames = fd, false, frames{}
	id := ""
	if c.resuming {
		id = c.id
	}
	if _, err := syscall.Write(fd, []byte(request(w.config.Protocol, number%w.config.Topics, id))); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(i)}
	if err := syscall.EpollCtl(w.epoll, syscall.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

// poll waits for bytes, and reads once from every connection that has some.
//
// Where messages are checked, which is where they come at a pace, it does not sleep
// while more may come at any moment: a server on the same machine pays for waking
// the reader in its write, several microseconds of a virtual machine's time, which
// no server pays for clients that are elsewhere. At full speed there is always
// something to read, or the processor is better left to the server.
func (w *worker) poll() {
	n, err := syscall.EpollWait(w.epoll, w.events, 0)
	if n == 0 && w.config.Check && time.Since(w.lastRead) < awake {
		_, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0) // never fails
		return
	}
	idle := false
	if n == 0 {
		n, err = syscall.EpollWait(w.epoll, w.events, int(idlePoll.Milliseconds()))
		idle = n == 0
	}
	if err != nil && err != syscall.EINTR {
		w.fail(fmt.Errorf("epoll: %w", err))
		return
	}
	if n > 0 {
		for _, event := range w.events[:n] {
			w.read(int(event.Fd))
		}
		w.lastRead = time.Now()
	}
	w.report(idle)
}

func (w *worker) read(i int) {
	n, err := syscall.Read(w.conns[i].fd, w.buf)
	if err == syscall.EINTR {
		return // epoll says it again
	}
	if n <= 0 {
		if !w.conns[i].answered {
			w.fail(fmt.Errorf("closed before an answer: %w after %q", err, w.conns[i].early))
		}
		w.lost++
		w.leave(i)
		return
	}
	if !w.conns[i].answered {
		w.awaitAnswer(i, w.buf[:n])
		return
	}
	w.answerPings(i, w.buf[:n])
	w.take(i, w.buf[:n])
}

func (w *worker) awaitAnswer(i int, b []byte) {
	c := &w.conns[i]
	c.early = append(c.early, b...)
	body, done := afterHeader(c.early)
	rest := body
	if !c.resuming {
		// What is resumed may come before the event that makes an answer complete.
		var err error
		if c.id, rest, done, err = answer(w.config.Protocol, c.early); err != nil {
			w.fail(err)
		}
	}
	if !done {
		return
	}
	c.answered, c.early = true, nil
	w.shaking--
	w.opened++
	if w.config.churn {
		w.leave(i)
		w.free = append(w.free, i)
		return
	}
	w.answerPings(i, body)
	w.take(i, rest)
}

// leave closes connection i, if it is open.
func (w *worker) leave(i int) {
	c := &w.conns[i]
	if c.fd < 0 {
		return
	}
	if !c.answered {
		w.shaking--
	}
	syscall.Close(c.fd) // which takes it out of the epoll set
	c.fd, c.early = -1, nil
}

// answerPings answers the pings in b, which connection i has received.
func (w *worker) answerPings(i int, b []byte) {
	if w.config.Protocol != protocolWebSocket {
		return
	}
	c := &w.conns[i]
	c.frames.walk(b, func(pong []byte) {
		if _, err := syscall.Write(c.fd, pong); err != nil {
			w.fail(fmt.Errorf("pong: %w", err))
		}
	})
}

// take counts the messages in b, which connection i has received.
func (w *worker) take(i int, b []byte) {
	w.bytes += len(b)
	n := 0
	if w.config.Check {
		n = w.check(i, b)
	} else {
		n = countMessages(b)
	}
	if n == 0 {
		return
	}
	before := w.received[i]
	w.received[i] += uint32(n)
	w.total += n
	if before == w.least {
		w.atLeast--
		if w.atLeast == 0 {
			w.findLeast()
		}
	}
}

// check counts the messages in b, sees to it that each is the next one of its
// topic, and notes how long it took.
func (w *worker) check(i int, b []byte) int {
	now := time.Now().UnixNano()
	c := &w.conns[i]
	if len(c.early) > 0 {
		b = append(c.early, b...)
	}
	next := int(w.received[i])
	n := 0
	rest := scanMessages(b, func(stamp int64, number int) {
		if number != next {
			w.disorder++
		}
		next = number + 1
		n++
		w.latencies = append(w.latencies, time.Duration(now-stamp))
	})
	c.early = bytes.Clone(rest)
	return n
}

func (w *worker) findLeast() {
	w.least, w.atLeast = w.received[0], 0
	for _, n := range w.received {
		switch {
		case n < w.least:
			w.least, w.atLeast = n, 1
		case n == w.least:
			w.atLeast++
		}
	}
}

// report tells the server what has arrived, if there is enough to tell.
func (w *worker) report(idle bool) {
	progress := w.total
	if w.config.Topics == 1 {
		progress = int(w.least)
	}
	news := progress - w.reported
	enough := w.config.ReportEvery > 0 && news >= w.config.ReportEvery
	if !enough && (!idle || news == 0) {
		return
	}
	w.reported = progress
	r := report{worker: w.config.id, least: int(w.least), total: w.total}
	if _, err := syscall.Write(w.config.feedback, r.encode()); err != nil {
		w.fail(fmt.Errorf("feedback: %w", err))
	}
}

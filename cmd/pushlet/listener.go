package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/usual2970/pushlet/consumer"
)

// A listener is one of the connections of bench: it follows a topic and checks what comes.
type listener struct {
	b     *bench
	topic *benchTopic

	// Owned by run; read after it has ended.
	ledger ledger
	lastID string
	opened bool // was connected at least once

	mu    sync.Mutex
	conn  net.Conn // nil: there is none
	feed  feed     // nil: it is not open yet
	ended bool
}

// run connects, and does so again when the connection breaks, until end is called. It calls tried
// once, when the first attempt has come to something.
func (l *listener) run(ctx context.Context, tried func()) {
	defer func() { l.first(tried) }()
	for attempt := 0; ; attempt++ {
		up, err := l.visit(ctx, tried)
		if up {
			attempt = 0
			l.b.live.up.Add(-1)
		}
		switch {
		case l.isEnded():
			return
		case !l.opened:
			l.b.live.failed.Add(1)
			l.b.failures.add(why(err))
			return
		}
		l.b.breaks.add(why(err))
		if isFinal(err) {
			return
		}
		wait := 500 * time.Millisecond << min(attempt, 4)
		if !sleep(ctx, wait/2+rand.N(wait)) { //nolint:gosec // nobody gains by guessing it
			return
		}
	}
}

// first calls tried, unless that was done.
func (l *listener) first(tried func()) {
	if !l.opened {
		tried()
	}
}

func isFinal(err error) bool {
	var answer *consumer.ResponseError
	if errors.As(err, &answer) {
		return !answer.Temporary()
	}
	return errors.Is(err, consumer.ErrNotPushlet)
}

// visit is one connection. It reports whether it was up, and why it has ended.
func (l *listener) visit(ctx context.Context, tried func()) (up bool, err error) {
	begun := time.Now()
	deadline := begun.Add(l.b.timeout)
	defer l.close()
	connecting, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	f, err := l.b.dialer.open(connecting, l.topic.name, l.lastID, func(conn net.Conn) { l.own(conn, deadline) })
	if err != nil {
		return false, l.late(connecting, err)
	}
	l.mu.Lock()
	l.feed = f
	l.mu.Unlock()
	for {
		m, err := f.next()
		if err != nil {
			if !up {
				err = l.late(connecting, err)
			}
			return up, err
		}
		if m.ID != "" {
			l.lastID = m.ID
		}
		switch {
		case m.Event == consumer.GapEvent:
			l.b.live.gaps.Add(1)
		case m.Event == f.ready() && !up:
			up = true
			cancel()
			l.ready(begun, tried)
		case !strings.HasPrefix(m.Event, "pushlet."):
			l.take(m.Data)
		}
	}
}

// late says in words that a connection was not there in time.
func (l *listener) late(connecting context.Context, err error) error {
	var timeout net.Error
	if errors.Is(connecting.Err(), context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return errors.New("not connected within " + l.b.timeout.String())
	}
	return err
}

// ready notes that messages come from now on.
func (l *listener) ready(begun time.Time, tried func()) {
	l.mu.Lock()
	if l.conn != nil {
		l.conn.SetDeadline(time.Time{})
	}
	l.mu.Unlock()
	l.b.live.up.Add(1)
	if !l.opened {
		l.b.connect.add(time.Since(begun))
		l.b.live.opened.Add(1)
		l.topic.listeners.Add(1)
		l.first(tried)
		l.opened = true
	} else {
		l.b.live.reconnects.Add(1)
	}
}

// take checks a message.
func (l *listener) take(data string) {
	l.b.live.deliveries.Add(1)
	run, rest, _ := strings.Cut(data, " ")
	number, rest, _ := strings.Cut(rest, " ")
	sent, _, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseUint(number, 10, 64)
	at, err2 := strconv.ParseInt(sent, 10, 64)
	if run != l.topic.run || err != nil || err2 != nil {
		l.b.live.others.Add(1)
		return
	}
	if l.ledger.note(n) {
		now := time.Since(l.b.epoch)
		l.b.delivery.add(now - time.Duration(at))
		l.b.live.received.Add(1)
		l.b.live.last.Store(int64(now))
	}
}

// own takes over a connection that is being opened.
func (l *listener) own(conn net.Conn, deadline time.Time) {
	conn.SetDeadline(deadline)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	if l.ended {
		conn.Close()
	}
}

func (l *listener) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		l.conn.Close()
	}
	l.conn, l.feed = nil, nil
}

// end makes run return. It waits for nothing after the deadline.
func (l *listener) end(deadline time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if l.feed != nil {
		l.feed.bye(deadline)
	}
	if l.conn != nil {
		l.conn.Close()
	}
}

func (l *listener) isEnded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

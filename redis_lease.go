package pushlet

import (
	"context"
	_ "embed"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// What only one of the instances is to do, it does while it holds a lease in Redis.

//go:embed redis_lease.lua
var leaseLua string

var leaseScript = redis.NewScript(leaseLua)

// Timing of the lease, changed by tests.
var (
	leaseFor    = 5 * time.Second
	leaseMargin = time.Second // before the end, when the holder stops to rely on it
	leaseRenew  = time.Second
)

// A lease may be used by several goroutines.
type lease struct {
	// Immutable.
	pt  *partition
	key string

	mu    sync.Mutex // guards what follows; not held while waiting
	until time.Time  // it is ours until then
	tried time.Time
	over  bool // it is not wanted any more
}

func (c *connector) newLease() *lease {
	return &lease{pt: c.parts[0], key: c.parts[0].tag + "lead"}
}

// holds reports whether this instance has the lease.
func (l *lease) holds() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Before(l.until)
}

// keep takes the lease as soon as it is free, and renews it, until it is given back or the
// connector ends.
func (l *lease) keep() {
	for l.try(); l.pt.c.pause(leaseRenew) && l.isWanted(); l.try() {
	}
}

// giveBack lets another instance have it at once. What was begun with it is ended first by
// whoever looks at holds.
func (l *lease) giveBack() {
	l.mu.Lock()
	held := !l.until.IsZero()
	l.over, l.until = true, time.Time{}
	l.mu.Unlock()
	if held {
		_, _ = l.call(l.pt.c.ctx, 0) // if that fails it ends by itself
	}
}

func (l *lease) isWanted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.over
}

// try takes or renews the lease, and reports whether this instance has it now.
func (l *lease) try() bool {
	began := time.Now()
	ok, err := l.call(l.pt.c.ctx, leaseFor)
	if err != nil {
		l.pt.failed(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried = began
	switch {
	case l.over:
		if ok {
			l.pt.c.work.Go(func() { _, _ = l.call(l.pt.c.ctx, 0) })
		}
		return false
	case err != nil: // perhaps it was renewed, perhaps not
	case ok:
		l.until = began.Add(leaseFor - leaseMargin)
	default:
		l.until = time.Time{}
	}
	return began.Before(l.until)
}

// lately reports whether it was tried a moment ago.
func (l *lease) lately(d time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.tried) < d
}

func (l *lease) call(ctx context.Context, d time.Duration) (bool, error) {
	client, err := l.pt.conn(ctx)
	if err != nil {
		return false, err
	}
	n, err := leaseScript.Run(ctx, client, []string{l.key}, l.pt.c.writer, d.Milliseconds()).Int()
	return n == 1, err
}

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
	term  uint64     // how often it has become ours
	tried time.Time
	known bool          // Redis has said who has it
	over  bool          // it is not wanted any more
	news  chan struct{} // closed when watch has something new to say
}

func (c *connector) newLease() *lease {
	return &lease{pt: c.parts[0], key: c.parts[0].tag + "lead", news: make(chan struct{})}
}

// holds reports whether this instance has the lease.
func (l *lease) holds() bool { return l.held() > 0 }

// held returns how often the lease has become ours, 0 if it is not ours now. As long as that
// is the same number nobody else has had it in between.
func (l *lease) held() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heldAt(time.Now())
}

func (l *lease) heldAt(now time.Time) uint64 {
	if now.Before(l.until) {
		return l.term
	}
	return 0
}

// watch returns what held does, whether that is known yet, and what is closed when Redis says
// something else.
func (l *lease) watch() (term uint64, known bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heldAt(time.Now()), l.known, l.news
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
	if !l.isWanted() {
		return false
	}
	began := time.Now()
	answer, err := l.call(l.pt.c.ctx, leaseFor)
	if err != nil {
		l.pt.failed(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried = began
	had, knew := l.heldAt(began), l.known
	switch {
	case l.over:
		if answer != leaseOther {
			l.pt.c.work.Go(func() { _, _ = l.call(l.pt.c.ctx, 0) })
		}
		return false
	case err != nil: // perhaps it was renewed, perhaps not
		return had > 0
	case answer == leaseOther:
		l.until = time.Time{}
	default:
		if answer == leaseTaken || had == 0 {
			l.term++
		}
		l.until = began.Add(leaseFor - leaseMargin)
	}
	l.known = true
	has := l.heldAt(began)
	if has != had || !knew {
		close(l.news)
		l.news = make(chan struct{})
	}
	return has > 0
}

// lately reports whether it was tried a moment ago.
func (l *lease) lately(d time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.tried) < d
}

// What the script answers.
const (
	leaseOther = iota // another has it, or there was no answer
	leaseOurs         // renewed, or given back
	leaseTaken
)

func (l *lease) call(ctx context.Context, d time.Duration) (int, error) {
	client, err := l.pt.conn(ctx)
	if err != nil {
		return leaseOther, err
	}
	return leaseScript.Run(ctx, client, []string{l.key}, l.pt.c.writer, d.Milliseconds()).Int()
}

package pushlet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Messages that wait to be published, to Redis or to the application's own store.
// Publishers put theirs into a queue and wait for the answer; whoever publishes takes what
// waits as a batch.

const (
	maxBatch      = 256
	maxBatchBytes = 1 << 20
)

// An outgoing is a message that waits to be published. Its state says who may give it up.
type outgoing struct {
	topic, message string // message is what is published; for a store, frame is
	key            string // of Redis, or "": what was published with it is not published again
	frame          *frame
	size           int
	state          atomic.Uint32
	done           chan error // holds one
	timer          *time.Timer
}

const (
	outWaiting   uint32 = iota // its publisher may leave: it was surely not published
	outSent                    // given to Redis, or the store
	outAbandoned               // its publisher has left
)

func newOutgoing() any {
	m := &outgoing{done: make(chan error, 1), timer: time.NewTimer(time.Hour)}
	m.timer.Stop()
	return m
}

// answer tells the publisher, unless it has left.
func (m *outgoing) answer(err error) {
	if m.state.Swap(outAbandoned) != outAbandoned {
		m.done <- err
	}
}

// A publishQueue is where messages wait, and their publishers with them.
type publishQueue struct {
	// Immutable after init.
	maxBytes int
	timeout  time.Duration
	ended    <-chan struct{}                // nobody takes messages any more
	excuse   func() error                   // why there may be no answer; nil if that is not known
	now      func(m *outgoing) (taken bool) // publishes at once, for a publisher who is alone; or nil

	queue   chan *outgoing
	pool    sync.Pool    // of *outgoing; its own, since timers do not leave a synctest bubble
	waiting atomic.Int64 // bytes of the messages that wait
	active  atomic.Int64 // publishers that wait
}

func (q *publishQueue) init(settings *redisSettings, ended <-chan struct{}, excuse func() error) {
	q.queue = make(chan *outgoing, settings.queue)
	q.pool.New = newOutgoing
	q.maxBytes, q.timeout, q.ended, q.excuse = settings.queueBytes, settings.publishWait, ended, excuse
}

// publish returns when the message was answered, or after the time for that, or that of ctx.
func (q *publishQueue) publish(ctx context.Context, topic, message, key string, f *frame, bytes int) error {
	size := int64(bytes)
	if q.waiting.Add(size) > int64(q.maxBytes) && q.waiting.Load() != size {
		q.waiting.Add(-size)
		return fmt.Errorf("%w: over %d bytes", ErrOverloaded, q.maxBytes)
	}
	defer q.waiting.Add(-size)
	alone := q.active.Add(1) == 1
	defer q.active.Add(-1)

	m := q.pool.Get().(*outgoing)
	m.topic, m.message, m.key, m.frame, m.size = topic, message, key, f, bytes
	m.state.Store(outWaiting)
	m.timer.Reset(q.timeout) // an outgoing that is not put back takes it along
	if alone && ctx.Done() == nil && q.now != nil && q.now(m) {
		return q.await(ctx, m)
	}
	select {
	case q.queue <- m:
	case <-m.timer.C:
		return fmt.Errorf("%w: %w", ErrOverloaded, errTimeout)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrOverloaded, context.Cause(ctx))
	case <-q.ended:
		return ErrClosed
	}
	return q.await(ctx, m)
}

// depth returns how many messages wait, and their bytes.
func (q *publishQueue) depth() (messages, bytes int) {
	return int(q.active.Load()), int(q.waiting.Load())
}

// await returns when the message has been answered, or it is given up.
func (q *publishQueue) await(ctx context.Context, m *outgoing) error {
	var cause error
	select {
	case err := <-m.done:
		m.timer.Stop()
		m.frame = nil
		q.pool.Put(m)
		return err
	case <-m.timer.C:
		cause = errTimeout
	case <-ctx.Done():
		cause = context.Cause(ctx)
	case <-q.ended:
		cause = ErrClosed
	}
	if m.state.CompareAndSwap(outWaiting, outAbandoned) {
		if cause == ErrClosed { //nolint:errorlint // it was set just above
			return cause
		}
		err := fmt.Errorf("%w: %w", ErrUnavailable, cause)
		if last := q.excuse(); last != nil {
			err = fmt.Errorf("%w: %w", err, last)
		}
		return err
	}
	if m.state.CompareAndSwap(outSent, outAbandoned) {
		return fmt.Errorf("%w: %w", ErrUncertain, cause)
	}
	return <-m.done // it was answered just now
}

var errTimeout = errors.New("no answer within the time of WithPublishTimeout")

// A batchOf messages is published at once.
type batchOf []*outgoing

// gather begins a batch of m and what else waits, up to the limits.
func (b batchOf) gather(m *outgoing, queue <-chan *outgoing) batchOf {
	clear(b)
	b = append(b[:0], m)
	for size := m.size; len(b) < maxBatch && size < maxBatchBytes; size += m.size {
		select {
		case m = <-queue:
			b = append(b, m)
		default:
			return b
		}
	}
	return b
}

// take marks the messages as sent and leaves out those whose publisher has left.
func (b batchOf) take() batchOf {
	kept := b[:0]
	for _, m := range b {
		if m.state.CompareAndSwap(outWaiting, outSent) {
			kept = append(kept, m)
		}
	}
	clear(b[len(kept):])
	return kept
}

// giveBack lets the publishers of messages that were not published leave.
func (b batchOf) giveBack() {
	for _, m := range b {
		m.state.CompareAndSwap(outSent, outWaiting)
	}
}

// answer tells all publishers; those of the duplicates, that it had been published before. A
// message is answered once: then its publisher may use it for another.
func (b batchOf) answer(err error, duplicates ...int) {
	for i, m := range b {
		if err == nil && slices.Contains(duplicates, i) {
			m.answer(errDuplicate)
			continue
		}
		m.answer(err)
	}
}

// awaited reports whether somebody still waits for an answer.
func (b batchOf) awaited() bool {
	for _, m := range b {
		if m.state.Load() != outAbandoned {
			return true
		}
	}
	return false
}

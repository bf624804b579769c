package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// publishers is how many requests to HandlePush are on their way at the same time, each for
// another topic.
const publishers = 16

// publish sends messages to all topics in turn, at the rate that was asked for. When the server is
// too slow for that, those that are due go in one request. What it has not taken when the time is
// over, and as much as -settle allows besides, is not sent.
// Each topic has one publisher, so that its messages have an order.
func (b *bench) publish(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	begun := time.Now()
	var work sync.WaitGroup
	count := min(publishers, len(b.topics))
	for w := range count {
		work.Go(func() {
			p := &publisher{b: b, begun: begun, first: w, step: count}
			if err := p.run(ctx); err != nil {
				fail(&pushError{err})
			}
		})
	}
	work.Wait()
	var failed *pushError
	if errors.As(context.Cause(ctx), &failed) {
		return failed
	}
	return nil
}

// A pushError ends publishing.
type pushError struct{ err error }

func (e *pushError) Error() string { return "publishing has failed: " + e.err.Error() }

// A publisher publishes to every step-th topic, from the first on.
type publisher struct {
	b           *bench
	begun       time.Time
	first, step int
}

func (p *publisher) run(ctx context.Context) error {
	for ctx.Err() == nil {
		elapsed := time.Since(p.begun)
		if elapsed > p.b.limit+p.b.settle {
			return nil
		}
		idle, open := p.b.limit, false
		for i := p.first; i < len(p.b.topics); i += p.step {
			due := p.b.due(i, elapsed)
			if n := min(due-p.b.topics[i].sent, p.most()); n > 0 {
				// What was begun is not given up by an interrupt.
				if err := p.send(context.WithoutCancel(ctx), p.b.topics[i], n); err != nil {
					return err
				}
				idle, open = 0, true
			} else if at := p.b.dueAt(i, due); at < p.b.limit {
				idle, open = min(idle, at-elapsed), true
			}
		}
		if !open {
			return nil
		}
		if idle > 0 {
			sleep(ctx, idle)
		}
	}
	return nil
}

// dueAt is when the message with that number of the i-th topic is due.
func (b *bench) dueAt(i int, number uint64) time.Duration {
	place := float64(i) + float64(number)*float64(len(b.topics))
	return time.Duration(place / b.rate * float64(time.Second))
}

// due is how many messages of the i-th topic are due by then.
func (b *bench) due(i int, elapsed time.Duration) uint64 {
	n := uint64(0)
	if places := min(elapsed, b.limit).Seconds()*b.rate - float64(i); places >= 0 {
		n = uint64(places) / uint64(len(b.topics)) // dueAt decides about the last
	}
	for b.dueAt(i, n) <= elapsed && b.dueAt(i, n) < b.limit {
		n++
	}
	return n
}

// most is how many messages go in one request.
func (p *publisher) most() uint64 {
	return uint64(max(1, min(batchLines, batchBytes/p.b.size)))
}

// send publishes the next n messages of a topic.
func (p *publisher) send(ctx context.Context, t *benchTopic, n uint64) error {
	body := pushBody{Topics: []string{t.name}}
	sent := time.Now()
	for range n {
		body.Events = append(body.Events, pushEvent{Event: "bench", Data: t.message(sent.Sub(p.b.epoch), p.b.size)})
	}
	if _, err := p.b.push.push(ctx, body, rand.Text()); err != nil {
		return err
	}
	p.b.publishing.add(time.Since(sent))
	t.confirmed = t.sent
	p.b.live.published.Add(int64(n))
	return nil
}

// message makes the next message: run, number, time, and what it takes to be that long.
func (t *benchTopic) message(at time.Duration, size int) string {
	text := fmt.Sprintf("%s %d %d ", t.run, t.sent, at.Nanoseconds())
	t.sent++
	return text + strings.Repeat(".", max(0, size-len(text)))
}

package pushlet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Publishing to Redis. Publishers put their message into the partition's queue and wait
// for the answer. A few lanes take what waits and publish it as a batch, one script call;
// meanwhile the next batch gathers, so that the cost of a message falls as the load rises.

// A publisher is the part of a partition that sends.
type publisher struct {
	queue   chan *outgoing
	waiting atomic.Int64 // bytes of the messages that wait
	lanes   []*batchLane
}

const (
	lanesPerPartition = 2 // one gathers while the other waits for Redis
	clusterLanes      = 1
	maxBatch          = 256
	maxBatchBytes     = 1 << 20
	// rememberBatches and rememberTime bound what a lane knows of what it has published,
	// to say what is gone if Redis goes back.
	rememberBatches = 4096
	rememberTime    = 50 * time.Minute // below the hour for which the script remembers the last batch
)

func (pb *publisher) init(pt *partition, cfg *config) {
	pb.queue = make(chan *outgoing, cfg.redis.queue)
	n := lanesPerPartition
	if pt.c.cluster != nil {
		n = clusterLanes
	}
	for i := range n {
		pb.lanes = append(pb.lanes, &batchLane{pt: pt, key: fmt.Sprintf("%sw:%s:%d", pt.tag, pt.c.writer, i)})
	}
}

// An outgoing is a message that waits to be published. Its state says who may give it up.
type outgoing struct {
	topic, message string
	state          atomic.Uint32
	done           chan error // holds one
}

const (
	outWaiting   uint32 = iota // its publisher may leave: it was surely not published
	outSent                    // given to Redis
	outAbandoned               // its publisher has left
)

var outgoingPool = sync.Pool{New: func() any { return &outgoing{done: make(chan error, 1)} }}

// appendPayload is a message as it is in Redis: the time in milliseconds, the length of
// the event name, and both texts.
func appendPayload(b []byte, event, data string, at time.Time) []byte {
	b = strconv.AppendInt(b, at.UnixMilli(), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(event)), 10)
	b = append(b, ' ')
	b = append(b, event...)
	return append(b, data...)
}

// publish returns when Redis has the message.
func (c *connector) publish(ctx context.Context, topic, event, data string) error {
	if event == "" {
		event = defaultEvent
	}
	payload := appendPayload(make([]byte, 0, 32+len(event)+len(data)), validUTF8(event), validUTF8(data), time.Now())
	pt := c.partition(topic)
	size := int64(len(payload))
	if pt.waiting.Add(size) > int64(c.cfg.redis.queueBytes) && pt.waiting.Load() != size {
		pt.waiting.Add(-size)
		return fmt.Errorf("%w: over %d bytes", ErrOverloaded, c.cfg.redis.queueBytes)
	}
	defer pt.waiting.Add(-size)

	m := outgoingPool.Get().(*outgoing)
	m.topic, m.message = topic, string(payload)
	m.state.Store(outWaiting)
	select {
	case pt.queue <- m:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrOverloaded, context.Cause(ctx))
	case <-c.ctx.Done():
		return ErrClosed
	}
	select {
	case err := <-m.done:
		outgoingPool.Put(m)
		return err
	case <-ctx.Done():
	}
	if m.state.CompareAndSwap(outWaiting, outAbandoned) {
		err := fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
		if last := c.lastError(); last != nil && c.down() > 0 {
			err = fmt.Errorf("%w: redis: %w", err, last)
		}
		return err
	}
	if m.state.CompareAndSwap(outSent, outAbandoned) {
		return fmt.Errorf("%w: %w", ErrUncertain, context.Cause(ctx))
	}
	return <-m.done // it was answered just now
}

// A batchLane publishes one batch after the other. It belongs to its goroutine.
type batchLane struct {
	pt      *partition
	key     string // of its last batch
	number  int    // of its last batch
	taken   int    // the last that Redis has confirmed
	last    time.Time
	down    bool   // the last attempt has failed
	lineage string // of the logs, as of the last batch

	past      []pastBatch
	forgotten int // number of the newest batch that was dropped from past
}

// A pastBatch is what was published, and where it was put.
type pastBatch struct {
	number    int
	at        time.Time
	topics    []string
	positions string // IDs with spaces between
}

// A batch is what one script call publishes.
type batch struct {
	messages []*outgoing
	topics   []string       // each once
	index    map[string]int // in topics, from 1
}

func (l *batchLane) run() {
	b := &batch{index: make(map[string]int)}
	verify := time.NewTicker(redisVerify)
	defer verify.Stop()
	for {
		b.reset()
		select {
		case m := <-l.pt.queue:
			l.gather(b, m)
		case <-verify.C:
			if l.taken == 0 || time.Since(l.last) < redisVerify || time.Since(l.last) > rememberTime && len(l.past) == 0 {
				continue
			}
			// An empty batch: are those before it still there?
		case <-l.pt.c.ctx.Done():
			l.drain()
			return
		}
		l.send(b)
	}
}

// drain refuses those who wait when the connector ends.
func (l *batchLane) drain() {
	for {
		select {
		case m := <-l.pt.queue:
			m.answer(ErrClosed)
		default:
			return
		}
	}
}

// answer tells the publisher, unless it has left.
func (m *outgoing) answer(err error) {
	if m.state.Swap(outAbandoned) != outAbandoned {
		m.done <- err
	}
}

// gather takes m and what else waits, up to the limits of a batch.
func (l *batchLane) gather(b *batch, m *outgoing) {
	size := 0
	for {
		b.messages = append(b.messages, m)
		size += len(m.message)
		if len(b.messages) == maxBatch || size >= maxBatchBytes {
			return
		}
		select {
		case m = <-l.pt.queue:
		default:
			return
		}
	}
}

func (b *batch) reset() {
	clear(b.messages)
	b.messages = b.messages[:0]
	b.topics = b.topics[:0]
}

// take marks the messages as sent and leaves out those whose publisher has left.
func (b *batch) take() {
	kept := b.messages[:0]
	for _, m := range b.messages {
		if m.state.CompareAndSwap(outWaiting, outSent) {
			kept = append(kept, m)
		}
	}
	clear(b.messages[len(kept):])
	b.messages = kept
	clear(b.index)
	b.topics = b.topics[:0]
	for _, m := range kept {
		if b.index[m.topic] == 0 {
			b.topics = append(b.topics, m.topic)
			b.index[m.topic] = len(b.topics)
		}
	}
}

// giveBack lets the publishers of messages that were not published leave.
func (b *batch) giveBack() {
	for _, m := range b.messages {
		m.state.CompareAndSwap(outSent, outWaiting)
	}
}

func (b *batch) answer(err error) {
	for _, m := range b.messages {
		m.answer(err)
	}
}

// awaited reports whether somebody still waits for an answer.
func (b *batch) awaited() bool {
	for _, m := range b.messages {
		if m.state.Load() != outAbandoned {
			return true
		}
	}
	return false
}

// send publishes a batch, and tries again until Redis has answered or nobody waits.
func (l *batchLane) send(b *batch) {
	empty := len(b.messages) == 0
	l.number++
	frozen := false // it may have been published: it must be the same when tried again
	var wait backoff
	for {
		err := l.isBack()
		if err == nil {
			if !frozen {
				b.take()
				if len(b.messages) == 0 && !empty {
					l.number--
					return
				}
			}
			err = l.attempt(b)
		}
		l.down = err != nil
		if l.down && faultOf(err) != faultLasting {
			l.pt.set(&l.pt.answers, false)
		}
		if err == nil {
			return
		}
		if l.pt.c.ctx.Err() != nil {
			kind := ErrClosed
			if frozen || faultOf(err) == faultUnknown {
				kind = ErrUncertain
			}
			b.answer(kind)
			return
		}
		l.pt.failed(err)
		switch faultOf(err) {
		case faultUnknown:
			frozen = true
		case faultLasting:
			kind := ErrUnavailable
			if frozen {
				kind = ErrUncertain
			} else {
				l.number--
			}
			b.answer(fmt.Errorf("%w: redis: %w", kind, err))
			return
		case faultTransient:
			if !frozen {
				b.giveBack()
			}
		}
		if empty || !b.awaited() {
			if !frozen {
				l.number--
			}
			return
		}
		if !l.pt.c.pause(wait.next()) {
			continue // once more, for the answer
		}
	}
}

// isBack looks, after a failure, whether Redis answers, before anybody's message is at
// stake: what was never sent is surely not published.
func (l *batchLane) isBack() error {
	if !l.down && l.pt.up() {
		return nil
	}
	client, err := l.pt.conn(l.pt.c.ctx)
	if err == nil {
		err = client.Ping(l.pt.c.ctx).Err()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	return nil
}

// attempt calls the script once. An error means that there is no answer yet.
func (l *batchLane) attempt(b *batch) error {
	ctx, c := l.pt.c.ctx, l.pt.c
	client, err := l.pt.conn(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	reply, acks, err := l.call(ctx, client, b)
	if err != nil {
		return err
	}
	verdict, _ := reply[0].(string)
	switch verdict {
	case "ok":
		positions, _ := reply[2].(string)
		l.lineage, _ = reply[1].(string)
		l.remember(b, positions)
		if acks < c.cfg.redis.acks {
			b.answer(fmt.Errorf("%w: %d of %d replicas have it", ErrUncertain, acks, c.cfg.redis.acks))
			return nil
		}
		b.answer(nil)
	case "lost":
		kept, _ := reply[1].(int64)
		if err := l.markLost(ctx, client, int(kept)); err != nil {
			return fmt.Errorf("%w: %w", errNotSent, err)
		}
		return l.attempt(b)
	default: // stale: cannot be, unless two have the same name
		b.answer(fmt.Errorf("%w: redis answers %q", ErrUncertain, verdict))
	}
	return nil
}

// call sends the script, and WAIT after it where replicas are to acknowledge.
func (l *batchLane) call(ctx context.Context, client *redis.Client, b *batch) (reply []any, acks int, err error) {
	keys, args := l.arguments(b)
	settings := &l.pt.c.cfg.redis
	if settings.acks == 0 || len(b.messages) == 0 {
		reply, err = publishScript.Run(ctx, client, keys, args...).Slice()
		return reply, settings.acks, err
	}
	try := func(eval func(ctx context.Context, c redis.Scripter, keys []string, args ...any) *redis.Cmd) error {
		var script, wait *redis.Cmd
		_, _ = client.Pipelined(ctx, func(p redis.Pipeliner) error {
			script = eval(ctx, p, keys, args...)
			wait = p.Do(ctx, "WAIT", settings.acks, settings.acksTimeout.Milliseconds())
			return nil
		})
		if script.Err() != nil {
			return script.Err()
		}
		reply, _ = script.Slice()
		if wait.Err() == nil {
			acks, err = wait.Int()
			return err
		}
		return nil // published, but nobody knows how far
	}
	err = try(publishScript.EvalSha)
	if err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
		err = try(publishScript.Eval)
	}
	return reply, acks, err
}

func (l *batchLane) arguments(b *batch) (keys []string, args []any) {
	pt, cfg := l.pt, l.pt.c.cfg
	keys = make([]string, 0, 2+2*len(b.topics))
	args = make([]any, 0, 9+len(b.topics)+2*len(b.messages))
	keys = append(keys, pt.head, l.key)
	args = append(args, newLineage(), l.number, l.taken, cfg.logTTL().Milliseconds(), pt.publishCommand())
	for _, topic := range b.topics {
		keys = append(keys, pt.topics+topic)
	}
	for _, topic := range b.topics {
		keys = append(keys, pt.newest+topic)
	}
	var sets []historyLimits
	var which []any
	for _, topic := range b.topics {
		limits := sharedLimits(cfg.history.of(topic))
		i := slices.Index(sets, limits)
		if i < 0 {
			i = len(sets)
			sets = append(sets, limits)
		}
		which = append(which, i+1)
	}
	args = append(args, len(sets))
	for _, limits := range sets {
		args = append(args, limits.messages, limits.bytes, limits.age.Milliseconds())
	}
	if len(sets) > 1 {
		args = append(args, which...)
	}
	for _, m := range b.messages {
		args = append(args, b.index[m.topic], m.message)
	}
	return keys, args
}

func (pt *partition) publishCommand() string {
	if pt.c.cluster != nil {
		return "SPUBLISH"
	}
	return "PUBLISH"
}

// remember keeps where a batch was put.
func (l *batchLane) remember(b *batch, positions string) {
	now := time.Now()
	l.taken, l.last = l.number, now
	if len(b.topics) > 0 {
		l.past = append(l.past, pastBatch{l.number, now, append([]string(nil), b.topics...), positions})
	}
	old := 0
	for old < len(l.past) && (len(l.past)-old > rememberBatches || now.Sub(l.past[old].at) > rememberTime) {
		l.forgotten = l.past[old].number
		old++
	}
	l.past = l.past[old:]
}

// markLost notes in the logs that what was published after a batch is gone. What this lane
// does not know of any more it notes for all topics of the partition.
func (l *batchLane) markLost(ctx context.Context, client *redis.Client, kept int) error {
	head, err := client.Get(ctx, l.pt.head).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	if lineage, _, _ := strings.Cut(head, " "); lineage != l.lineage { // all is gone, and every position is known to be from before
		l.taken, l.past = kept, nil
		return nil
	}
	lost := make(map[string]string)
	for i := len(l.past) - 1; i >= 0 && l.past[i].number > kept; i-- {
		past := &l.past[i]
		for j, id := range strings.Fields(past.positions) {
			if _, newer := lost[past.topics[j]]; !newer {
				lost[past.topics[j]] = id
			}
		}
	}
	l.pt.c.log.WithField("topics", len(lost)).Println("redis: messages that were published are lost")
	if kept < l.forgotten {
		if err := client.Set(ctx, l.pt.head, fmt.Sprint(newLineage(), " 0 0"), 0).Err(); err != nil {
			return err
		}
		lost = nil
	}
	for topic, id := range lost {
		if err := l.pt.mark(ctx, client, topic, id); err != nil {
			return err
		}
	}
	l.pt.c.counters.rollbacks.Add(1)
	l.taken, l.past = kept, nil
	return nil
}

// mark notes in the log of a topic that messages up to an ID are gone.
func (pt *partition) mark(ctx context.Context, client *redis.Client, topic, lost string) error {
	err := markScript.Run(ctx, client, []string{pt.head, pt.topics + topic, pt.newest + topic},
		lost, pt.c.cfg.logTTL().Milliseconds(), pt.publishCommand(), "!"+string(gapRolledBack)).Err()
	if err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	return nil
}

package pushlet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
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
	active  atomic.Int64 // publishers that wait
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
		l := &batchLane{
			pt:     pt,
			key:    fmt.Sprintf("%sw:%s:%d", pt.tag, pt.c.writer, i),
			stuck:  make(chan struct{}, 1),
			free:   make(chan struct{}, 1),
			batch:  batch{index: make(map[string]int)},
			places: make(map[string]*place),
		}
		l.free <- struct{}{}
		pb.lanes = append(pb.lanes, l)
	}
}

// An outgoing is a message that waits to be published. Its state says who may give it up.
type outgoing struct {
	topic, message string
	state          atomic.Uint32
	done           chan error // holds one
	timer          *time.Timer
}

const (
	outWaiting   uint32 = iota // its publisher may leave: it was surely not published
	outSent                    // given to Redis
	outAbandoned               // its publisher has left
)

var outgoingPool = sync.Pool{New: func() any {
	m := &outgoing{done: make(chan error, 1), timer: time.NewTimer(time.Hour)}
	m.timer.Stop()
	return m
}}

// payloadOf is a message as it is in Redis: the time in milliseconds, the length of the
// event name, and both texts.
func payloadOf(event, data string, at time.Time) string {
	var b strings.Builder
	var number [20]byte
	b.Grow(2*len(number) + len(event) + len(data))
	b.Write(strconv.AppendInt(number[:0], at.UnixMilli(), 10))
	b.WriteByte(' ')
	b.Write(strconv.AppendInt(number[:0], int64(len(event)), 10))
	b.WriteByte(' ')
	b.WriteString(event)
	b.WriteString(data)
	return b.String()
}

// publish returns when Redis has the message, or after the time for that, or that of ctx.
func (c *connector) publish(ctx context.Context, topic, event, data string) error {
	if event == "" {
		event = defaultEvent
	}
	payload := payloadOf(validUTF8(event), validUTF8(data), time.Now())
	pt := c.partition(topic)
	size := int64(len(payload))
	if pt.waiting.Add(size) > int64(c.cfg.redis.queueBytes) && pt.waiting.Load() != size {
		pt.waiting.Add(-size)
		return fmt.Errorf("%w: over %d bytes", ErrOverloaded, c.cfg.redis.queueBytes)
	}
	defer pt.waiting.Add(-size)
	alone := pt.active.Add(1) == 1
	defer pt.active.Add(-1)

	m := outgoingPool.Get().(*outgoing)
	m.topic, m.message = topic, payload
	m.state.Store(outWaiting)
	m.timer.Reset(c.cfg.redis.publishWait) // an outgoing that is not put back takes it along
	if alone && ctx.Done() == nil && c.cfg.redis.publishWait >= redisTimeout+c.cfg.redis.acksTimeout && pt.lanes[0].publishNow(m) {
		return c.await(ctx, m)
	}
	select {
	case pt.queue <- m:
	case <-m.timer.C:
		return fmt.Errorf("%w: %w", ErrOverloaded, errTimeout)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrOverloaded, context.Cause(ctx))
	case <-c.ctx.Done():
		return ErrClosed
	}
	return c.await(ctx, m)
}

// waiting returns how many messages wait for Redis to take them, and their bytes.
func (c *connector) waiting() (messages, bytes int) {
	for _, pt := range c.parts {
		messages += int(pt.active.Load())
		bytes += int(pt.publisher.waiting.Load())
	}
	return messages, bytes
}

// await returns when the message has been answered, or it is given up.
func (c *connector) await(ctx context.Context, m *outgoing) error {
	var cause error
	select {
	case err := <-m.done:
		m.timer.Stop()
		outgoingPool.Put(m)
		return err
	case <-m.timer.C:
		cause = errTimeout
	case <-ctx.Done():
		cause = context.Cause(ctx)
	case <-c.ctx.Done():
		cause = ErrClosed
	}
	if m.state.CompareAndSwap(outWaiting, outAbandoned) {
		if cause == ErrClosed { //nolint:errorlint // it was set just above
			return cause
		}
		err := fmt.Errorf("%w: %w", ErrUnavailable, cause)
		if last := c.lastError(); last != nil && c.down() > 0 {
			err = fmt.Errorf("%w: redis: %w", err, last)
		}
		return err
	}
	if m.state.CompareAndSwap(outSent, outAbandoned) {
		return fmt.Errorf("%w: %w", ErrUncertain, cause)
	}
	return <-m.done // it was answered just now
}

var errTimeout = errors.New("no answer within the time of WithPublishTimeout")

// A batchLane publishes one batch after the other. What follows free belongs to whoever has
// taken the token from it: as a rule the lane's goroutine; or a publisher that finds it
// there, which saves waking the goroutine and being woken by it.
type batchLane struct {
	pt    *partition
	key   string        // of its last batch
	stuck chan struct{} // the token, from a publisher whose batch is not through yet: go on with it

	free    chan struct{} // holds the token
	batch   batch
	number  int // of its last batch
	taken   int // the last that Redis has confirmed
	last    time.Time
	down    bool   // the last attempt has failed
	full    bool   // Redis takes no messages
	lineage string // of the logs, as of the last batch
	args    []any  // scratch of command, as is sets
	sets    []historyLimits

	places map[string]*place // of topics that were published to lately

	past      []pastBatch
	forgotten int // number of the newest batch that was dropped from past
}

// A pastBatch is what was published, and where it was put.
type pastBatch struct {
	number int
	at     time.Time
	topics []string
	last   []msgID // in each of them
}

// A batch is what one script call publishes.
type batch struct {
	messages []*outgoing
	topics   []string       // each once
	index    map[string]int // in topics, from 1
	empty    bool           // it only asks whether those before it are still there
	frozen   bool           // it may have been published: it must be the same when tried again
	nonce    int            // in its IDs
}

func (l *batchLane) run() {
	verify := time.NewTicker(redisVerify)
	defer verify.Stop()
	for {
		select {
		case m := <-l.pt.queue:
			if l.pt.active.Load() > 1 {
				runtime.Gosched() // others are about to publish: one batch is cheaper than two
			}
			l.acquire() // a publisher keeps it no longer than one attempt takes
			l.gather(m)
			l.send()
		case <-l.stuck:
			l.send()
		case <-verify.C:
			l.acquire()
			if l.mayVerify() {
				l.gather(nil)
				l.send()
			}
		case <-l.pt.c.ctx.Done():
			l.drain()
			return
		}
		l.free <- struct{}{} // holds one, and there is only one
	}
}

// acquire takes the token, and goes on first with a batch that comes with it.
func (l *batchLane) acquire() {
	select {
	case <-l.free:
	case <-l.stuck:
		l.send()
	}
}

func (l *batchLane) mayVerify() bool {
	idle := time.Since(l.last)
	return l.full || l.taken > 0 && idle > redisVerify && (idle < rememberTime || len(l.past) > 0)
}

// publishNow publishes m, and what else waits, if the lane is free, and reports whether it
// was. Then m will be answered.
func (l *batchLane) publishNow(m *outgoing) bool {
	select {
	case <-l.free:
	default:
		return false
	}
	next := l.free
	defer func() { next <- struct{}{} }() // both hold one, and there is only one
	if l.down || !l.pt.up() {
		return false // let the goroutine find out
	}
	l.gather(m)
	if !l.try() {
		next = l.stuck
	}
	return true
}

// drain refuses those who wait when the connector ends.
func (l *batchLane) drain() {
	for {
		select {
		case <-l.stuck:
			l.send()
			l.free <- struct{}{}
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

// gather begins a batch of m and what else waits, up to the limits. Without m it is empty.
func (l *batchLane) gather(m *outgoing) {
	b := &l.batch
	clear(b.messages)
	b.messages, b.topics = b.messages[:0], b.topics[:0]
	b.empty, b.frozen, b.nonce = m == nil, false, newNonce()
	l.number++
	size := 0
	for m != nil {
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

// send publishes the batch, and tries again until Redis has answered or nobody waits.
func (l *batchLane) send() {
	var wait backoff
	for !l.try() {
		l.pt.c.pause(wait.next()) // when the connector ends, once more for the answer
	}
}

// try publishes the batch, and reports false if it has to be tried again.
func (l *batchLane) try() (over bool) {
	b := &l.batch
	err := l.isBack()
	if err == nil && !b.frozen {
		b.take()
	}
	if len(b.messages) == 0 && !b.empty { // all their publishers have left
		l.number--
		return true
	}
	if err == nil {
		err = l.attempt(b)
	}
	if l.down = false; err == nil {
		if l.full {
			l.full = false
			l.pt.set(&l.pt.takes, true)
		}
		return true
	}
	what := faultOf(err)
	switch {
	case takesNothing(err):
		l.full = true
		l.pt.set(&l.pt.takes, false)
	case what != faultLasting:
		l.down = true
		l.pt.set(&l.pt.answers, false)
	}
	b.frozen = b.frozen || what == faultUnknown
	if l.pt.c.ctx.Err() == nil {
		l.pt.failed(err)
	}
	kind := ErrUnavailable
	switch {
	case b.frozen:
		kind = ErrUncertain
	case l.pt.c.ctx.Err() != nil:
		kind = ErrClosed
	}
	switch {
	case l.pt.c.ctx.Err() != nil || what == faultLasting:
		b.answer(fmt.Errorf("%w: redis: %w", kind, err))
	case b.frozen && b.awaited():
		return false
	case !b.frozen && !b.empty:
		b.giveBack()
		if b.awaited() {
			return false
		}
	}
	if !b.frozen {
		l.number--
	}
	return true
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
		start, _ := reply[1].(string)
		l.remember(b, start)
		if acks < c.cfg.redis.acks {
			b.answer(fmt.Errorf("%w: %d of %d replicas have it", ErrUncertain, acks, c.cfg.redis.acks))
			return nil
		}
		b.answer(nil)
	case "lost":
		kept, _ := reply[1].(int64)
		if kept == 0 && time.Since(l.last) > rememberTime { // it has expired
			l.taken, l.past, l.forgotten = 0, nil, 0
			return l.attempt(b)
		}
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
	settings := &l.pt.c.cfg.redis
	waits := settings.acks > 0 && len(b.messages) > 0
	try := func(eval ...any) error {
		script := redis.NewCmd(ctx, l.command(b, eval...)...)
		if !waits {
			acks = settings.acks
			_ = client.Process(ctx, script) // its error is the command's
		} else {
			wait := redis.NewIntCmd(ctx, "WAIT", settings.acks, settings.acksTimeout.Milliseconds())
			_, _ = client.Pipelined(ctx, func(p redis.Pipeliner) error {
				_ = p.Process(ctx, script)
				return p.Process(ctx, wait)
			})
			acks = int(wait.Val()) // 0 if that failed: nobody knows how far it got
		}
		reply, err = script.Slice()
		return err
	}
	if err = try("EVALSHA", publishScript.Hash()); err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
		err = try("EVAL", publishLua)
	}
	return reply, acks, err
}

// A place is where a topic is in Redis.
type place struct {
	stream, newest string // keys
	limits         historyLimits
}

// maxPlaces bounds what a lane remembers of topics.
const maxPlaces = 10_000

func (l *batchLane) place(topic string) *place {
	p := l.places[topic]
	if p == nil {
		if len(l.places) >= maxPlaces {
			clear(l.places)
		}
		p = &place{l.pt.topics + topic, l.pt.newest + topic, sharedLimits(l.pt.c.cfg.history.of(topic))}
		l.places[topic] = p
	}
	return p
}

// command is the call of the script, after EVALSHA or EVAL and what comes with it. Strings
// are passed by address, which spares an allocation for each.
func (l *batchLane) command(b *batch, eval ...any) []any {
	pt := l.pt
	args := append(l.args[:0], eval...)
	args = append(args, 2+2*len(b.topics), &pt.head, &l.key)
	for _, topic := range b.topics {
		args = append(args, &l.place(topic).newest)
	}
	for _, topic := range b.topics {
		args = append(args, &l.place(topic).stream)
	}
	args = append(args, newLineage(), l.number, l.taken, pt.c.cfg.logTTL().Milliseconds(), pt.publishCommand(), b.nonce)
	l.sets = l.sets[:0]
	for _, topic := range b.topics {
		if limits := l.place(topic).limits; !slices.Contains(l.sets, limits) {
			l.sets = append(l.sets, limits)
		}
	}
	args = append(args, len(l.sets))
	for _, limits := range l.sets {
		args = append(args, limits.messages, limits.bytes, limits.age.Milliseconds())
	}
	if len(l.sets) > 1 {
		for _, topic := range b.topics {
			args = append(args, 1+slices.Index(l.sets, l.place(topic).limits))
		}
	}
	for _, m := range b.messages {
		args = append(args, b.index[m.topic], &m.message)
	}
	l.args = args
	return args
}

func (pt *partition) publishCommand() string {
	if pt.c.cluster != nil {
		return "SPUBLISH"
	}
	return "PUBLISH"
}

// remember keeps where a batch was put: behind start, as redis_publish.lua returns it.
func (l *batchLane) remember(b *batch, start string) {
	now := time.Now()
	l.taken, l.last = l.number, now
	lineage, before, _ := strings.Cut(start, " ")
	l.lineage = lineage
	ms, counter, _ := strings.Cut(before, " ")
	var at msgID
	first, _ := strconv.ParseUint(lineage, 10, lineageBits)
	at.ms, _ = strconv.ParseUint(ms, 10, 64)
	at.seq, _ = strconv.ParseUint(counter, 10, counterBits-nonceBits)
	at.seq = first<<counterBits | at.seq<<nonceBits | uint64(b.nonce)
	if len(b.topics) > 0 {
		last := make([]msgID, len(b.topics))
		for _, m := range b.messages {
			if at.seq += 1 << nonceBits; at.lineage() != first {
				at = msgID{at.ms + 1, first<<counterBits | 1<<nonceBits | uint64(b.nonce)}
			}
			last[b.index[m.topic]-1] = at
		}
		l.past = append(l.past, pastBatch{l.number, now, slices.Clone(b.topics), last})
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
	lost := make(map[string]msgID)
	for i := len(l.past) - 1; i >= 0 && l.past[i].number > kept; i-- {
		past := &l.past[i]
		for j, topic := range past.topics {
			if _, newer := lost[topic]; !newer {
				lost[topic] = past.last[j]
			}
		}
	}
	logAt(l.pt.c.log.WithField("topics", len(lost)), slog.LevelError, "redis: messages that were published are lost")
	if kept < l.forgotten {
		if err := client.Set(ctx, l.pt.head, fmt.Sprint(newLineage(), " 0 0"), 0).Err(); err != nil {
			return err
		}
		lost = nil
	}
	for topic, id := range lost {
		if err := l.pt.mark(ctx, client, topic, id.String()); err != nil {
			return err
		}
	}
	l.pt.c.counters.rollbacks.Add(1)
	l.taken = kept // past is kept: Redis may go back once more, behind these notes
	return nil
}

// mark notes in the log of a topic that messages up to an ID are gone.
func (pt *partition) mark(ctx context.Context, client *redis.Client, topic, lost string) error {
	err := markScript.Run(ctx, client, []string{pt.head, pt.topics + topic, pt.newest + topic},
		lost, pt.c.cfg.logTTL().Milliseconds(), pt.publishCommand(), "!"+string(gapRolledBack), newNonce()).Err()
	if err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	return nil
}

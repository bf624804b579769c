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
	"time"

	"github.com/redis/go-redis/v9"
)

// Publishing to Redis. Publishers put their message into the partition's queue and wait
// for the answer. A few lanes take what waits and publish it as a batch, one script call;
// meanwhile the next batch gathers, so that the cost of a message falls as the load rises.

// A publisher is the part of a partition that sends.
type publisher struct {
	publishQueue
	lanes []*batchLane
}

const (
	lanesPerPartition = 2 // one gathers while the other waits for Redis
	clusterLanes      = 1
	// rememberBatches and rememberTime bound what a lane knows of what it has published,
	// to say what is gone if Redis goes back.
	rememberBatches = 4096
	rememberTime    = 50 * time.Minute // below the hour for which the script remembers the last batch
)

func (pb *publisher) init(pt *partition, cfg *config) {
	pb.publishQueue.init(&cfg.redis, pt.c.ctx.Done(), pt.c.excuse)
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
	if cfg.redis.publishWait >= redisTimeout+cfg.redis.acksTimeout {
		pb.now = pb.lanes[0].publishNow
	}
}

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
// With a key it is errDuplicate if something was published with that before.
func (c *connector) publish(ctx context.Context, topic, event, data, key string) error {
	if event == "" {
		event = defaultEvent
	}
	payload := payloadOf(validUTF8(event), validUTF8(data), time.Now())
	pt := c.partition(topic)
	if key != "" {
		key = pt.keyOf(key)
	}
	return pt.publish(ctx, topic, payload, key, nil, len(payload))
}

// keyOf is where Redis remembers what was published with a key.
func (pt *partition) keyOf(key string) string { return pt.tag + "k:" + key }

// depth returns how many messages wait for Redis to take them, and their bytes.
func (c *connector) depth() (messages, bytes int) {
	for _, pt := range c.parts {
		m, b := pt.publishQueue.depth()
		messages, bytes = messages+m, bytes+b
	}
	return messages, bytes
}

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
	messages batchOf
	topics   []string       // each once
	index    map[string]int // in topics, from 1
	keys     []*string      // of those messages that have one
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

// gather begins a batch of m and what else waits, up to the limits. Without m it is empty.
func (l *batchLane) gather(m *outgoing) {
	b := &l.batch
	b.topics, b.keys = b.topics[:0], b.keys[:0]
	b.empty, b.frozen, b.nonce = m == nil, false, newNonce()
	l.number++
	if b.empty {
		clear(b.messages)
		b.messages = b.messages[:0]
		return
	}
	b.messages = b.messages.gather(m, l.pt.queue)
}

// take leaves out messages whose publisher has left, and lists the topics of the others.
func (b *batch) take() {
	b.messages = b.messages.take()
	clear(b.index)
	b.topics, b.keys = b.topics[:0], b.keys[:0]
	for _, m := range b.messages {
		if m.key != "" {
			b.keys = append(b.keys, &m.key)
		}
		if b.index[m.topic] == 0 {
			b.topics = append(b.topics, m.topic)
			b.index[m.topic] = len(b.topics)
		}
	}
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
		b.messages.answer(fmt.Errorf("%w: redis: %w", kind, err))
	case b.frozen && b.messages.awaited():
		return false
	case !b.frozen && !b.empty:
		b.messages.giveBack()
		if b.messages.awaited() {
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
		duplicates := l.remember(b, start)
		if acks < c.cfg.redis.acks {
			b.messages.answer(fmt.Errorf("%w: %d of %d replicas have it", ErrUncertain, acks, c.cfg.redis.acks))
			return nil
		}
		b.messages.answer(nil, duplicates...)
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
		b.messages.answer(fmt.Errorf("%w: redis answers %q", ErrUncertain, verdict))
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
	args = append(args, 2+2*len(b.topics)+len(b.keys), &pt.head, &l.key)
	for _, topic := range b.topics {
		args = append(args, &l.place(topic).newest)
	}
	for _, topic := range b.topics {
		args = append(args, &l.place(topic).stream)
	}
	for _, key := range b.keys {
		args = append(args, key)
	}
	args = append(args, newLineage(), l.number, l.taken, pt.c.cfg.logTTL().Milliseconds(), pt.publishCommand(), b.nonce, len(b.topics), keyTime.Milliseconds())
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
		topic := b.index[m.topic]
		if m.key != "" {
			topic = -topic
		}
		args = append(args, topic, &m.message)
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

// remember keeps where a batch was put: behind start, as redis_publish.lua returns it. It
// returns which of the messages were left out.
func (l *batchLane) remember(b *batch, start string) (duplicates []int) {
	now := time.Now()
	l.taken, l.last = l.number, now
	lineage, before, _ := strings.Cut(start, " ")
	l.lineage = lineage
	ms, rest, _ := strings.Cut(before, " ")
	counter, left, _ := strings.Cut(rest, " ")
	for i := range strings.FieldsSeq(left) {
		if i, err := strconv.Atoi(i); err == nil && i > 0 && i <= len(b.messages) {
			duplicates = append(duplicates, i-1)
		}
	}
	var at msgID
	first, _ := strconv.ParseUint(lineage, 10, lineageBits)
	at.ms, _ = strconv.ParseUint(ms, 10, 64)
	at.seq, _ = strconv.ParseUint(counter, 10, counterBits-nonceBits)
	at.seq = first<<counterBits | at.seq<<nonceBits | uint64(b.nonce)
	if len(b.topics) > 0 {
		last := make([]msgID, len(b.topics))
		for i, m := range b.messages {
			if slices.Contains(duplicates, i) {
				continue
			}
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
	return duplicates
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
			if _, newer := lost[topic]; !newer && !past.last[j].isZero() {
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

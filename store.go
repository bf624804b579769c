package pushlet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// An Audience says whom a message is for: the followers of a topic, one user, or, if both
// are empty, everyone. A message for everyone is in one log, which all clients follow.
type Audience struct{ Topic, User string }

// String returns the topic, "@user/" and the user, or "*": a key that no two audiences
// share, since topics that look like the others are reserved.
func (a Audience) String() string {
	switch {
	case a.User != "":
		return userPrefix + a.User
	case a.Topic != "":
		return a.Topic
	}
	return broadcastTopic
}

// audienceOf says whom the messages of a topic, as it is named inside, are for.
func audienceOf(topic string) Audience {
	if topic == broadcastTopic {
		return Audience{}
	}
	if user, ok := strings.CutPrefix(topic, userPrefix); ok && user != "" {
		return Audience{User: user}
	}
	return Audience{Topic: topic}
}

// A Message is a message as a [History] keeps it. All of it has to come back as it was
// given, Time to the millisecond.
type Message struct {
	ID          string // of 27 ASCII characters; they sort in the order of the messages
	Prev        string // the ID before it for this audience, or where there was none, a time
	Audience    Audience
	Event, Data string    // UTF-8, of any characters; Event has no CR, LF or NUL
	Time        time.Time // when it was published
}

// A History is a store of the application's own for messages, such as a database; see
// [WithHistoryStore]. Package pushlettest has tests for it, and one in memory.
//
// Only one process may use a store at a time. Append and Newest are called by one
// goroutine; the other methods by several at once, also during an Append, of which they
// must see all or nothing. The methods are to return soon after their context is done,
// which it is after the time of [WithPublishTimeout]; Shutdown waits for them. A panic
// counts as an error.
//
// What to remove, and when, is the store's own business. Clients that lack what was removed
// are told of a gap. But the newest message of each audience must be kept for as long as
// clients may come back to it: for the time of [WithLastMessageAge], or if that is longer,
// the longest age of [WithHistory] and [WithTopicHistory].
type History interface {
	// Append stores messages, all or none, durably. Their IDs are greater than those of
	// all messages before. After an error the same messages do not come again. Unless it
	// wraps ErrUnavailable, which says that nothing was stored, Newest is asked what
	// became of them; so once Append has returned nothing may be stored any more.
	Append(ctx context.Context, messages []Message) error

	// After returns messages of exactly that audience whose IDs are greater than id, oldest
	// first: at most limit of them, and at least one if there is any. An empty id is
	// before all. The id need not be that of a message.
	After(ctx context.Context, audience Audience, id string, limit int) ([]Message, error)

	// Last returns the newest message of exactly that audience, and whether there is one.
	Last(ctx context.Context, audience Audience) (Message, bool, error)

	// Newest returns the ID of the newest message that was ever stored, for any audience,
	// also if it has been removed; "" if there was none.
	Newest(ctx context.Context) (id string, err error)
}

// A storeLog keeps the logs of all topics in a History. To the broker it is what the
// connector is in distributed mode, of which there is but one instance: it writes all
// messages itself, so it knows where each topic is, and they arrive in order.
type storeLog struct {
	// Immutable after newStoreLog.
	store    History
	cfg      *config
	broker   *broker
	counters *counters
	log      Logger
	guard    func(name string, call func())

	ctx    context.Context //nolint:containedctx // ends with stop, not with a call
	cancel context.CancelFunc
	work   sync.WaitGroup

	publishQueue
	toWrite chan struct{} // there are orders for write; holds one
	toRead  chan struct{} // there are reads; holds one
	lineage atomic.Uint64 // of the logs; 0 until the store has answered. Set by write.

	mu     sync.Mutex      // guards what follows; never held while waiting for anything
	orders []order         // for write: orderFollow, orderUnfollow, orderRenew
	reads  []order         // for read: orderFill, orderMark
	doubts map[string]bool // topics whose messages do not go on from those before

	noting    sync.Mutex   // held by note
	fails     [2]bool      // writing, reading
	downSince atomic.Int64 // Unix nanoseconds; 0 while the store works
	lastErr   atomic.Pointer[error]

	// Owned by write.
	known    bool             // what follows is how the store is
	newest   msgID            // in the store
	last     msgID            // of all positions that were given out, also those that were not stored
	followed map[string]msgID // where topics are that the broker follows
	recent   map[string]msgID // and others, up to maxPlaces of them
	awaiting []string         // to be followed, once it is known where they are
	batch    batchOf
	next     storeBatch  // that is being written
	doubt    *storeBatch // it may have been stored
}

// A storeBatch is what one Append stores.
type storeBatch struct {
	frames   []*frame
	messages []Message
	at       map[string]msgID // where it leaves its topics
}

const (
	sideWrite = iota
	sideRead

	storeReaders = 4   // reads at once
	storePage    = 256 // messages read at once
	storeChunk   = 64  // topics that are followed at once

	// IDs of a store have 13 digits on both sides, so that they sort as text.
	storeIDLen   = 27
	firstStoreMS = 1_000_000_000_000 // in 2001; an earlier clock is wrong
)

func newStoreLog(p *Pushlet) *storeLog {
	s := &storeLog{
		store: p.cfg.store, cfg: &p.cfg, broker: p.broker, counters: &p.counters, log: p.log, guard: p.guard,
		toWrite:  make(chan struct{}, 1),
		toRead:   make(chan struct{}, 1),
		doubts:   make(map[string]bool),
		followed: make(map[string]msgID),
		recent:   make(map[string]msgID),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.init(&p.cfg.redis, s.ctx.Done(), s.excuse)
	s.fails[sideWrite] = true // until it has answered
	s.downSince.Store(time.Now().UnixNano())
	return s
}

func (s *storeLog) start() {
	s.work.Go(s.write)
	for range storeReaders {
		s.work.Go(s.read)
	}
}

func (s *storeLog) yield() { s.cancel() }

// stop ends everything. Publishers that still wait get an error.
func (s *storeLog) stop() {
	s.cancel()
	s.work.Wait()
}

func (s *storeLog) name() string { return "the history store" }

// publish returns when the store has the message, or after the time for that, or that of ctx.
func (s *storeLog) publish(ctx context.Context, topic, event, data, _ string) error {
	f := newFrame(topic, event, data, time.UnixMilli(time.Now().UnixMilli()))
	f.encode(s.counters.wanted())
	return s.publishQueue.publish(ctx, topic, "", "", f, f.size()+len(topic))
}

// ----- what the broker orders

func (s *storeLog) follow(topic string) {
	s.order(&s.orders, s.toWrite, order{orderFollow, topic, msgID{}})
}
func (s *storeLog) unfollow(topic string) {
	s.order(&s.orders, s.toWrite, order{orderUnfollow, topic, msgID{}})
}
func (s *storeLog) stale(topic string) {
	s.order(&s.orders, s.toWrite, order{orderRenew, topic, msgID{}})
}
func (s *storeLog) fill(topic string, from msgID) {
	s.order(&s.reads, s.toRead, order{orderFill, topic, from})
}
func (s *storeLog) mark(topic string, lost msgID) {
	s.order(&s.reads, s.toRead, order{orderMark, topic, lost})
}

func (s *storeLog) order(list *[]order, wake chan struct{}, o order) {
	s.mu.Lock()
	*list = append(*list, o)
	s.mu.Unlock()
	nudge(wake)
}

// nudge wakes whoever waits on a channel that holds one.
func nudge(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default: // it has yet to look
	}
}

// ----- writing

// write publishes what waits, and tells the broker where topics are, until the end.
func (s *storeLog) write() {
	var wait backoff
	again := time.NewTimer(0) // the first at once
	defer again.Stop()
	for {
		var err error
		select {
		case m := <-s.queue:
			s.batch = s.batch.gather(m, s.queue)
			err = s.publishBatch()
		case <-s.toWrite:
		case <-again.C:
		case <-s.ctx.Done():
			s.refuse()
			return
		}
		if err == nil {
			err = s.settle()
		}
		if err == nil {
			wait = backoff{}
		} else {
			s.known = false // look again, also to see when the store works
			again.Reset(wait.next())
		}
	}
}

// refuse answers those who wait when it is the end.
func (s *storeLog) refuse() {
	for {
		select {
		case m := <-s.queue:
			m.answer(ErrClosed)
		default:
			return
		}
	}
}

// settle does what there is to do but publishing. After an error what is left is done the
// next time.
func (s *storeLog) settle() error {
	if err := s.learn(); err != nil {
		return err
	}
	s.obey()
	n := min(len(s.awaiting), storeChunk)
	for _, topic := range s.awaiting[:n] {
		at, err := s.position(topic)
		if err != nil {
			return err
		}
		delete(s.recent, topic)
		s.followed[topic] = at
	}
	s.sight(s.awaiting[:n], true)
	if s.awaiting = s.awaiting[n:]; len(s.awaiting) > 0 {
		nudge(s.toWrite) // but let publishers have their turn
	} else {
		s.awaiting = nil
	}
	return nil
}

// learn finds out how the store is, if that is not known.
func (s *storeLog) learn() error {
	if s.known {
		return nil
	}
	var newest msgID
	err := s.call(sideWrite, "Newest", func(ctx context.Context) error {
		id, err := s.store.Newest(ctx)
		if err == nil && id != "" {
			newest, err = parseStoreID(id)
		}
		return err
	})
	if err != nil {
		return err
	}
	doubt := s.doubt
	s.doubt, s.known = nil, true
	switch {
	case s.lineage.Load() == 0: // the first time
		lineage := newLineage()
		if !newest.isZero() {
			lineage = newest.lineage()
		}
		s.lineage.Store(lineage)
		s.newest, s.last = newest, newest
	case doubt != nil && newest == doubt.frames[len(doubt.frames)-1].id:
		s.stored(doubt)
	case newest != s.newest:
		s.beginAnew(newest)
	}
	return nil
}

// beginAnew gives up what was: the store has lost messages, or has some that are not from
// here. No position from before is good.
func (s *storeLog) beginAnew(newest msgID) {
	s.log.Println("history store: it is not as it was left; the logs begin anew")
	lineage := newLineage()
	s.lineage.Store(lineage)
	s.newest, s.last = newest, msgID{max(s.last.ms, newest.ms) + 1, lineage << counterBits}
	clear(s.recent)
	now := s.present()
	names := make([]string, 0, len(s.followed))
	for topic := range s.followed {
		s.followed[topic] = now
		names = append(names, topic)
	}
	for len(names) > 0 {
		n := min(len(names), storeChunk)
		s.sight(names[:n], false)
		names = names[n:]
	}
}

// obey takes the orders.
func (s *storeLog) obey() {
	s.mu.Lock()
	orders := s.orders
	s.orders = nil
	s.mu.Unlock()
	for _, o := range orders {
		switch o.kind {
		case orderFollow:
			s.awaiting = append(s.awaiting, o.topic)
		case orderUnfollow:
			for i, topic := range s.awaiting {
				if topic == o.topic {
					s.awaiting = append(s.awaiting[:i], s.awaiting[i+1:]...)
					break
				}
			}
			if at, ok := s.followed[o.topic]; ok {
				delete(s.followed, o.topic)
				s.keep(o.topic, at)
			}
		case orderRenew:
			s.mu.Lock()
			doubted := s.doubts[o.topic]
			s.doubts[o.topic] = true
			s.mu.Unlock()
			if !doubted {
				s.log.WithField("topic", o.topic).Println("history store: messages do not go on from those before; reading them again")
				s.sight([]string{o.topic}, false)
			}
		}
	}
}

// keep notes where a topic is.
func (s *storeLog) keep(topic string, at msgID) {
	if _, ok := s.followed[topic]; ok {
		s.followed[topic] = at
		return
	}
	if len(s.recent) >= maxPlaces {
		clear(s.recent)
	}
	s.recent[topic] = at
}

// position says where a topic is: at its newest message, or, without one, where it is now,
// which is before all that are to come.
func (s *storeLog) position(topic string) (at msgID, err error) {
	if at, ok := s.followed[topic]; ok {
		return at, nil
	}
	if at, ok := s.recent[topic]; ok {
		return at, nil
	}
	lineage := s.lineage.Load()
	err = s.call(sideWrite, "Last", func(ctx context.Context) error {
		m, ok, err := s.store.Last(ctx, audienceOf(topic))
		if err != nil || !ok {
			return err
		}
		f, err := frameOfMessage(topic, &m)
		if err == nil && f.id.lineage() == lineage {
			at = f.id
		}
		return err
	})
	if at.isZero() {
		at = s.present()
	}
	return at, err
}

// present is the position now of topics that have no messages.
func (s *storeLog) present() msgID {
	at := floorAt(max(storeClock(), s.last.ms), s.lineage.Load())
	if s.last.before(at) {
		s.last = at
	}
	return at
}

func storeClock() uint64 { return uint64(max(time.Now().UnixMilli(), firstStoreMS)) }

// sight tells the broker where topics are.
func (s *storeLog) sight(topics []string, fresh bool) {
	if len(topics) == 0 {
		return
	}
	asked := make([]msgID, len(topics))
	if !fresh {
		if asked = s.inquire(topics); asked == nil {
			return
		}
	}
	cmd := &sighting{lineage: s.lineage.Load(), now: s.present().ms, fresh: fresh, topics: make([]sighted, len(topics))}
	for i, topic := range topics {
		cmd.topics[i] = sighted{name: topic, asked: asked[i], held: fresh}
		if at := s.followed[topic]; !at.isFloor() {
			cmd.topics[i].last = at
		}
	}
	s.broker.send(cmd)
}

// inquire asks the broker where it is in topics. It returns nil if the broker has ended.
func (s *storeLog) inquire(topics []string) []msgID {
	answer := make(chan []msgID, 1)
	s.broker.send(&inquiry{topics, answer})
	select {
	case at := <-answer:
		return at
	case <-s.broker.done:
		return nil
	}
}

// publishBatch stores the batch, hands it to the broker and answers its publishers.
func (s *storeLog) publishBatch() error {
	if err := s.prepare(); err != nil {
		s.batch.answer(s.refusal(ErrUnavailable, err))
		return err
	}
	b := &s.next
	if s.batch = s.batch.take(); len(s.batch) == 0 {
		return nil // all their publishers have left
	}
	s.number(b)
	err := s.call(sideWrite, "Append", func(ctx context.Context) error { return s.store.Append(ctx, b.messages) })
	if err == nil {
		s.stored(b)
		s.batch.answer(nil)
		return nil
	}
	s.known = false
	s.doubt, s.next = b.clone(), storeBatch{}
	switch lost := s.learn(); {
	case lost == nil && s.newest == s.last: // it was stored after all
		s.batch.answer(nil)
	case errors.Is(err, ErrUnavailable):
		s.batch.answer(s.refusal(ErrUnavailable, err))
	default:
		s.batch.answer(fmt.Errorf("%w: %w", ErrUncertain, err))
	}
	return nil
}

func (b *storeBatch) clone() *storeBatch { c := *b; return &c }

// refusal is what a publisher is told whose message was not stored.
func (s *storeLog) refusal(kind, err error) error {
	if s.ctx.Err() != nil {
		kind = ErrClosed
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// prepare finds out where the topics of the batch are.
func (s *storeLog) prepare() error {
	if err := s.learn(); err != nil {
		return err
	}
	b := &s.next
	clear(b.frames)
	clear(b.messages)
	clear(b.at)
	b.frames, b.messages = b.frames[:0], b.messages[:0]
	if b.at == nil {
		b.at = make(map[string]msgID)
	}
	for _, m := range s.batch {
		if _, ok := b.at[m.topic]; !ok {
			at, err := s.position(m.topic)
			if err != nil {
				return err
			}
			b.at[m.topic] = at
		}
	}
	return nil
}

// number gives the messages of the batch their IDs and links.
func (s *storeLog) number(b *storeBatch) {
	now, lineage := storeClock(), s.lineage.Load()
	for _, m := range s.batch {
		f := m.frame
		if s.last = s.last.next(now, lineage); s.last.isFloor() {
			s.last.seq++
		}
		f.id, f.prev = s.last, b.at[m.topic]
		if f.prev.isFloor() { // the store would still have a message from before that
			f.prev.ms -= min(f.prev.ms, s.broker.logTTL())
		}
		b.at[m.topic] = f.id
		b.frames = append(b.frames, f)
		b.messages = append(b.messages, Message{
			ID: f.id.String(), Prev: f.prev.String(), Audience: audienceOf(m.topic),
			Event: f.event, Data: f.data, Time: f.at,
		})
	}
}

// stored takes note of a batch that is in the store, and brings it to the broker.
func (s *storeLog) stored(b *storeBatch) {
	s.newest = b.frames[len(b.frames)-1].id
	now := time.Now()
	for _, f := range b.frames {
		s.keep(f.topic, b.at[f.topic])
		s.broker.send(&arrival{f, now})
	}
}

// ----- reading

// read reads logs for the broker, until the end.
func (s *storeLog) read() {
	var wait backoff
	for {
		select {
		case <-s.toRead:
		case <-s.ctx.Done():
			return
		}
		s.mu.Lock()
		if len(s.reads) == 0 {
			s.mu.Unlock()
			continue
		}
		o := s.reads[0]
		if s.reads = s.reads[1:]; len(s.reads) > 0 {
			nudge(s.toRead) // another reader
		} else {
			s.reads = nil
		}
		s.mu.Unlock()
		if err := s.readLog(o); err == nil {
			wait = backoff{}
			continue
		}
		if !pause(s.ctx, wait.next()) {
			return
		}
		s.order(&s.reads, s.toRead, o)
	}
}

// readLog tells the broker what the store has of a topic from a position on: as much as
// memory can hold, up to where the broker is. What comes after that arrives by itself.
func (s *storeLog) readLog(o order) error {
	positions := s.inquire([]string{o.topic})
	if positions == nil {
		return nil
	}
	if positions[0].isZero() { // nobody waits for it any more
		_, err := s.after(o.topic, "") // but if that has failed, it matters whether it does now
		return err
	}
	at, lineage := positions[0], s.lineage.Load()
	s.mu.Lock()
	doubted := s.doubts[o.topic]
	s.mu.Unlock()
	cmd := &filled{topic: o.topic, from: o.id, lineage: lineage, now: storeClock()}
	cmd.sure = o.kind == orderFill && !doubted && at.lineage() == lineage

	limits := sharedLimits(s.cfg.history.of(o.topic))
	from := o.id
	if oldest := (msgID{ms: cmd.now - min(cmd.now, uint64(limits.age.Milliseconds()))}); cmd.sure && from.before(oldest) {
		from, cmd.aged = oldest, true // what is older cannot be kept
		if at.before(from) {
			from = at // except the newest
		}
	}
	bytes, strange := 0, 0
	for after, more := justBefore(from), true; more; {
		page, err := s.after(o.topic, after)
		if err != nil {
			return err
		}
		more = len(page) > 0
		for i := range page {
			after = page[i].ID
			f, err := frameOfMessage(o.topic, &page[i])
			if err != nil || f.id.lineage() != lineage {
				strange++
				continue
			}
			if cmd.sure && !f.id.before(at) {
				more = false
			}
			if cmd.sure && at.before(f.id) {
				break
			}
			cmd.frames = append(cmd.frames, f)
			bytes += f.size()
			for len(cmd.frames) > 1 && (len(cmd.frames) > limits.messages || bytes > limits.bytes) && cmd.frames[0].id.before(at) {
				bytes -= cmd.frames[0].size()
				cmd.frames[0] = nil
				cmd.frames, cmd.aged = cmd.frames[1:], false
			}
		}
	}
	if strange > 0 {
		s.log.WithField("topic", o.topic).WithField("messages", strange).Println("history store: messages that are none of this log were ignored")
	}
	if doubted {
		s.mu.Lock()
		delete(s.doubts, o.topic)
		s.mu.Unlock()
	}
	s.counters.storeReads.Add(1)
	s.broker.send(cmd)
	return nil
}

// after reads a page.
func (s *storeLog) after(topic, id string) (page []Message, err error) {
	err = s.call(sideRead, "After", func(ctx context.Context) (err error) {
		page, err = s.store.After(ctx, audienceOf(topic), id, storePage)
		if n := len(page); err == nil && n > 0 && page[n-1].ID <= id {
			err = fmt.Errorf("it returned %q, which is not after %q", page[n-1].ID, id)
		}
		return err
	})
	return page, err
}

// justBefore is an ID before x and after all that are before x; "" if there are none.
func justBefore(x msgID) string {
	const leastSeq, mostSeq = 1_000_000_000_000, 9_999_999_999_999
	switch {
	case x.ms <= firstStoreMS:
		return ""
	case x.seq <= leastSeq:
		return msgID{x.ms - 1, mostSeq}.String()
	}
	return msgID{x.ms, x.seq - 1}.String()
}

// parseStoreID reads the ID of a message.
func parseStoreID(id string) (msgID, error) {
	x, ok := parseID(id)
	if !ok || len(id) != storeIDLen || x.ms < firstStoreMS || x.isFloor() || x.lineage() >= 1<<lineageBits {
		return msgID{}, fmt.Errorf("%q is no ID of a message", id)
	}
	return x, nil
}

// frameOfMessage checks what comes from the store: it must be a message of that topic.
func frameOfMessage(topic string, m *Message) (*frame, error) {
	if want := audienceOf(topic); m.Audience != want {
		return nil, fmt.Errorf("a message of %q instead of %q", m.Audience, want)
	}
	id, err := parseStoreID(m.ID)
	if err != nil {
		return nil, err
	}
	prev, ok := parseID(m.Prev)
	if !ok || !prev.before(id) {
		return nil, fmt.Errorf("message %s follows %q", m.ID, m.Prev)
	}
	if err := checkEvent(m.Event); err != nil {
		return nil, err
	}
	if at := m.Time.UnixMilli(); at < 0 || at > lastTime {
		return nil, fmt.Errorf("message %s is of the year %d", m.ID, m.Time.Year())
	}
	f := newFrame(topic, m.Event, m.Data, m.Time)
	f.id, f.prev = id, prev
	return f, nil
}

// ----- whether the store works

// call calls the store, and notes whether that went well.
func (s *storeLog) call(side int, method string, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(s.ctx, s.timeout)
	defer cancel()
	err := errPanic
	s.guard("History."+method, func() { err = do(ctx) })
	if err != nil {
		err = fmt.Errorf("history store: %s: %w", method, err)
	}
	s.note(side, err)
	return err
}

var errPanic = errors.New("panic")

// note takes note of whether the store works, and logs when that changes.
func (s *storeLog) note(side int, err error) {
	s.noting.Lock()
	defer s.noting.Unlock()
	if s.ctx.Err() != nil {
		return // the end
	}
	if err != nil {
		s.lastErr.Store(&err)
	}
	s.fails[side] = err != nil
	switch fails := s.fails[sideWrite] || s.fails[sideRead]; {
	case !fails && s.downSince.Load() != 0:
		s.downSince.Store(0)
		s.log.Println("history store: ready")
	case fails && s.downSince.Load() == 0:
		s.downSince.Store(time.Now().UnixNano())
		s.log.WithField("error", err).Println("history store: it fails")
	}
}

func (s *storeLog) lastError() error {
	if err := s.lastErr.Load(); err != nil {
		return *err
	}
	return nil
}

// excuse is why publishers may get no answer, if that is known.
func (s *storeLog) excuse() error {
	if s.down() == 0 {
		return nil
	}
	return s.lastError()
}

// down says since when the store fails, 0 if it does not.
func (s *storeLog) down() time.Duration { return sinceNano(s.downSince.Load()) }

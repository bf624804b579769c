package pushlet

import (
	"math/rand/v2"
	"strconv"
	"time"
)

// A broker orders messages and fans them out. One goroutine, run, owns all topics and
// subscriptions; everybody else sends it commands. It does no I/O, calls no user code,
// and waits for nobody but the next command.
type broker struct {
	// Immutable after newBroker.
	inbox    chan command
	done     chan struct{} // closed by run on its way out
	cfg      *config
	flusher  *flusher
	counters *counters
	report   func(report)   // never blocks
	checks   chan<- checkup // full: at the next heartbeat
	presence *presence      // nil: nobody wants to know
	verify   bool           // check the invariants as it goes

	// Owned by run. No other goroutine may touch it.
	lineage uint64 // marks the IDs of this process
	start   msgID  // every ID of this process is after it
	last    msgID  // newest ID of all
	floor   msgID  // messages up to here may belong to topics that are forgotten
	topics  map[string]*topic
	all     *topic   // the broadcast log
	logs    []*topic // topics with a log, which are swept in turn
	nextLog int
	now     time.Time // as of the last message or tick: the broker has no clock
	clients int
	users   int                  // that are connected
	behind  map[*client]struct{} // clients with a subscription that is behind
	buckets [heartbeatBuckets][]*client
	joining int                   // the bucket that the next client goes to
	beating int                   // the bucket whose heartbeat is next
	ready   []*client             // runnable, not yet handed to the flusher
	shared  sharedLog             // the connector; nil but in distributed mode
	waiting map[*client][]*parked // for Redis
	idle    []*topic              // in distributed mode without followers, in the order of idleSince
	leaving bool                  // drain has come
	cut     bool                  // disband has come
	applied int                   // commands, for verify

	// Scratch memory of run.
	cursor    cursor
	raw       []byte
	token     []byte
	pageReads []pageRead
}

const (
	// heartbeatBuckets is over how many moments the heartbeats of an interval are spread.
	heartbeatBuckets = 64
	// readyBatch is how many clients the broker collects before it hands them to the
	// flusher, so that the first are being written while it goes on with the rest.
	readyBatch = 64
	// pageMessages and pageBytes bound what one page of history puts into a queue, and
	// so how long the others wait for the broker.
	pageMessages = 1024
	pageBytes    = 256 << 10
	// inboxSize lets publishers run ahead of the broker by this many commands.
	inboxSize = 128
)

// A command is what the broker is asked to do. A publish is its frame, so that
// sending it allocates nothing.
type command interface{ isCommand() }

type (
	attach struct {
		client *client
		topics []string
		resume *resume      // nil: from now on
		hello  []byte       // SSE: pushlet.connected without "id:", up to the value of "resumed"
		first  []*subscribe // WebSocket: what it follows from the start, instead of topics
	}
	detach struct {
		client *client
		now    time.Time
	}
	subscribe struct {
		client *client
		topic  string
		hello  []byte // pushlet.subscribed, up to its "id"
		resume bool   // from since, which is zero if the client's ID cannot be read
		since  msgID
		now    time.Time
	}
	unsubscribe struct {
		client *client
		topic  string
		reply  []byte // pushlet.unsubscribed, a whole frame
		now    time.Time
	}
	reply struct { // by the broker, so that answers come in the order of the commands
		client *client
		frame  []byte
	}
	page struct{ client *client }
	tick struct {
		now   time.Time
		beats int // how many buckets have their heartbeat now
	}
	drain   struct{} // end every client once it has all there is for it
	disband struct{} // end every client now
	census  struct {
		answer  chan<- gauges
		from    int       // the first bucket whose clients are to be listed
		clients []*client // empty: to be filled, up to its capacity
	}
	visit struct {
		user   string          // whose clients; or, if empty,
		bucket int             // which
		each   func(*client)   // it does not block
		done   chan<- struct{} // holds one
	}
	expel struct {
		client *client
		why    Reason
	}
	reach struct { // how many clients follow topics
		topics []string
		answer chan<- []int // holds one
	}
	quit struct{}
)

func (*frame) isCommand()       {}
func (*attach) isCommand()      {}
func (*detach) isCommand()      {}
func (*subscribe) isCommand()   {}
func (*unsubscribe) isCommand() {}
func (*reply) isCommand()       {}
func (page) isCommand()         {}
func (tick) isCommand()         {}
func (drain) isCommand()        {}
func (disband) isCommand()      {}
func (*census) isCommand()      {}
func (*visit) isCommand()       {}
func (*expel) isCommand()       {}
func (*reach) isCommand()       {}
func (quit) isCommand()         {}

func newBroker(cfg *config, f *flusher, k *counters, report func(report), now time.Time) *broker {
	lineage := rand.Uint64N(1 << lineageBits) //nolint:gosec // it only has to differ from others
	b := &broker{
		inbox:    make(chan command, inboxSize),
		done:     make(chan struct{}),
		cfg:      cfg,
		flusher:  f,
		counters: k,
		report:   report,
		verify:   cfg.verify,
		lineage:  lineage,
		topics:   make(map[string]*topic),
		behind:   make(map[*client]struct{}),
		now:      now,
	}
	b.start = msgID{}.next(uint64(now.UnixMilli()), lineage)
	b.last, b.floor = b.start, b.start
	b.all = b.newTopic(broadcastTopic)
	return b
}

// send gives the broker a command, and waits while it has many before it. The gate, or
// a connection that was admitted, sees to it that the broker has not ended; if it has,
// there is nothing left that the command could be about.
func (b *broker) send(cmd command) {
	select {
	case b.inbox <- cmd:
	case <-b.done:
	}
}

func (b *broker) run() {
	defer close(b.done)
	for {
		cmd := <-b.inbox // quit is the second way out
		if cmd == (quit{}) {
			return
		}
		b.apply(cmd)
		if len(b.inbox) == 0 || len(b.ready) >= readyBatch {
			b.handOver()
		}
		if b.applied++; b.verify && (b.applied < 1000 || b.applied%1000 == 0) {
			b.checkInvariants()
		}
	}
}

func (b *broker) apply(cmd command) {
	switch cmd := cmd.(type) {
	case *frame:
		b.publish(cmd)
	case *arrival:
		b.now = cmd.now
		b.arrive(cmd.frame)
	case *sighting:
		b.sight(cmd)
	case *filled:
		b.filled(cmd)
	case *inquiry:
		cmd.answer <- b.positions(cmd.topics) // has room for it
	case *attach:
		b.attach(cmd)
	case *leftover:
		b.undelivered(cmd)
	case *detach:
		b.detach(cmd.client, cmd.now)
	case *subscribe:
		b.subscribe(cmd)
	case *unsubscribe:
		b.unsubscribe(cmd)
	case *reply:
		b.tell(cmd.client, cmd.frame)
	case page:
		b.page(cmd.client)
	case tick:
		b.now = cmd.now
		b.heartbeat(cmd.now, cmd.beats)
		b.sweepHistory(cmd.now)
		b.sweepBehind()
		if b.shared != nil {
			b.sweepIdle(cmd.now)
			b.sweepParked(cmd.now)
		}
	case drain:
		b.endAll()
	case disband:
		b.abortAll()
	case *census:
		cmd.answer <- b.gauges(cmd) // has room for it
	case *visit:
		b.visit(cmd)
	case *expel:
		b.end(cmd.client, cmd.why)
	case *reach:
		cmd.answer <- b.reach(cmd.topics) // has room for it
	}
}

// handOver gives the clients that have become runnable to the flusher.
func (b *broker) handOver() {
	if len(b.ready) == 0 {
		return
	}
	b.flusher.push(b.ready...)
	clear(b.ready)
	b.ready = b.ready[:0]
}

// runnable puts c in line for the flusher, or wakes the goroutine that flushes it.
func (b *broker) runnable(c *client) {
	if c.wake != nil {
		c.kick()
		return
	}
	b.ready = append(b.ready, c)
	if len(b.ready) >= readyBatch {
		b.handOver()
	}
}

// publish gives a message its ID and its place in the history, and fans it out.
func (b *broker) publish(f *frame) {
	t := b.all
	if f.topic != broadcastTopic {
		t = b.topics[f.topic]
	}
	b.now = f.at
	b.last = b.last.next(uint64(f.at.UnixMilli()), b.lineage)
	f.id = b.last
	if t == nil {
		if b.cfg.history.of(f.topic).off() {
			f.release()
			return // nobody follows it, nothing is kept
		}
		t = b.addTopic(f.topic)
	}
	f.topic = t.name
	f.prev, t.last = t.last, f.id
	f.all = b.all.last
	if t.history {
		b.stateOf(t).log.append(f)
	}
	b.fanOut(t, f)
	f.release()
}

// fanOut offers f to every client that follows t and is live.
func (b *broker) fanOut(t *topic, f *frame) {
	for m := range numForms {
		if t.followers[m] > 0 {
			b.build(t, f, m)
		}
	}
	for _, s := range t.subs {
		if s.behind {
			continue // it will find f in the history
		}
		switch b.deliver(s, f) {
		case runnable:
			b.runnable(s.client)
		case full:
			b.fallBehind(s.client, f)
		}
	}
}

// deliver offers f to a live client.
func (b *broker) deliver(s *subscription, f *frame) outcome {
	c := s.client
	switch {
	case c.form != formSSE:
		return c.offer(nil, f.forms[c.form].span())
	case len(c.topics) > 1:
		return c.offer(b.idLine(c), f.body())
	case s.topic == b.all:
		return c.offer(nil, b.broadcastSSE(c.topics[0].topic, f))
	}
	return c.offer(nil, f.forms[formSSE].span())
}

// body is what follows the "id:" line of the SSE form.
func (f *frame) body() span {
	r := f.forms[formSSE]
	return span{seg: r.seg, from: f.sseBody, to: r.to, n: 1}
}

// build sees to it that f has form m, in the lane of its topic t.
func (b *broker) build(t *topic, f *frame, m form) {
	if f.forms[m].seg != nil {
		return
	}
	if f.enc == nil {
		f.enc = newEncoded()
	}
	e := f.enc
	e.need(f, m)
	lane := &b.stateOf(t).lanes[m]
	var s span
	switch {
	case m == formSSE:
		var id []byte
		if t != b.all { // a broadcast's depends on the topic of the client
			id = b.sharedIDLine(t, f.id, f.all)
		}
		s = lane.put(1, id, e.sse)
		f.sseBody = s.from + uint32(len(id))
	case m.isDeflate() && len(e.zip) > 0:
		b.raw = appendStored(b.raw[:0], appendJSONTail(b.token[:0], f.id))
		b.token = appendWSHeader(b.token[:0], m.opcode()|wsCompressed, len(e.zip)+len(b.raw))
		s = lane.put(1, b.token, e.zip, b.raw)
	default:
		b.raw = appendJSONTail(b.raw[:0], f.id)
		b.token = m.appendHead(b.token[:0], len(e.json)+len(b.raw))
		s = lane.put(1, b.token, e.json, b.raw, m.end())
	}
	f.forms[m] = rangeOf{s.seg, s.from, s.to}
}

// broadcastSSE returns the SSE form of a broadcast for the clients of topic t alone,
// whose cursors are all the same: built for the first of them.
func (b *broker) broadcastSSE(t *topic, f *frame) span {
	st := b.stateOf(t)
	if st.bcast != f.id {
		s := st.lanes[formSSE].put(1, b.sharedIDLine(t, t.last, f.id), f.body().bytes())
		st.bcast, st.bcastSSE = f.id, rangeOf{s.seg, s.from, s.to}
	}
	return st.bcastSSE.span()
}

// sharedIDLine is the "id:" line for every client that follows t alone and has got up
// to id in it and up to all in the broadcast log. It is valid until the next is made.
func (b *broker) sharedIDLine(t *topic, id, all msgID) []byte {
	b.cursor.all = all
	b.cursor.topics = append(b.cursor.topics[:0], position{t.hash, id})
	return b.appendIDLine()
}

// idLine is the "id:" line for where c is now.
func (b *broker) idLine(c *client) []byte {
	b.cursor.all = c.all.position()
	b.cursor.topics = b.cursor.topics[:0]
	for _, s := range c.topics {
		b.cursor.topics = append(b.cursor.topics, position{s.topic.hash, s.position()})
	}
	return b.appendIDLine()
}

func (b *broker) appendIDLine() []byte {
	b.token = append(b.token[:0], "id: "...)
	b.token, b.raw = b.cursor.appendToken(b.token, b.raw)
	b.token = append(b.token, '\n')
	return b.token
}

// attach adds a client, with its topics, and queues what it gets first.
func (b *broker) attach(cmd *attach) {
	c := cmd.client
	c.bucket = int32(b.joining)
	b.joining = (b.joining + 1) % heartbeatBuckets
	c.index = int32(len(b.buckets[c.bucket]))
	b.buckets[c.bucket] = append(b.buckets[c.bucket], c)
	b.clients++
	c.leaving = b.leaving
	if b.shared != nil && len(cmd.topics) > 0 && b.park(c, cmd, b.needsOfAttach(cmd)) {
		if b.leaving {
			b.end(c, ReasonShutdown)
		}
	} else {
		b.welcome(cmd)
	}
	if b.cut {
		b.flusher.abort(c, ReasonShutdown)
	}
}

// welcome makes a new client follow its topics, when these are ready.
func (b *broker) welcome(cmd *attach) {
	c := cmd.client
	for _, name := range cmd.topics {
		b.follow(c, b.topicFor(name))
	}
	var gaps []gap
	if cmd.resume != nil {
		gaps = b.rewind(c, cmd.resume)
	}
	if len(cmd.hello) > 0 {
		b.hello(c, cmd.hello, cmd.resume != nil && len(gaps) == 0)
	}
	b.tellGaps(c, gaps)
	for _, first := range cmd.first {
		b.subscribe(first)
	}
	b.page(c)
}

// hello tells an SSE client that it is connected. Its "id:" is where the client is; for
// one that is live that is the newest ID of all topics, since a topic without messages
// has none.
func (b *broker) hello(c *client, text []byte, resumed bool) {
	b.cursor.all = b.handout(&c.all)
	b.cursor.topics = b.cursor.topics[:0]
	for _, s := range c.topics {
		b.cursor.topics = append(b.cursor.topics, position{s.topic.hash, b.handout(s)})
	}
	hello := append(b.appendIDLine(), text...)
	hello = strconv.AppendBool(hello, resumed)
	c.tell(append(hello, "}\n\n"...)) // the first thing in the queue: there is room
	if resumed {
		b.counters.resumes.Add(1)
	}
}

// tell queues a reply; a client that asks without reading the answers is ended.
func (b *broker) tell(c *client, reply []byte) {
	switch c.tell(reply) {
	case runnable:
		b.runnable(c)
	case full:
		b.flusher.abort(c, ReasonSlow)
	}
}

// detach removes a client whose connection has ended.
func (b *broker) detach(c *client, now time.Time) {
	if c.bucket < 0 {
		return
	}
	b.unparkClient(c)
	for s := range c.subscriptions() {
		b.unfollow(s, now)
	}
	bucket := b.buckets[c.bucket]
	last := bucket[len(bucket)-1]
	bucket[c.index], last.index = last, c.index
	bucket[len(bucket)-1] = nil
	b.buckets[c.bucket] = bucket[:len(bucket)-1]
	c.bucket = -1
	b.clients--
}

// heartbeat visits the clients of the next buckets.
func (b *broker) heartbeat(now time.Time, beats int) {
	for range beats {
		for _, c := range b.buckets[b.beating] {
			b.beat(c, now)
		}
		b.beating = (b.beating + 1) % heartbeatBuckets
	}
}

var (
	sseHeartbeat  = staticSpan([]byte(":\n\n"))
	jsonHeartbeat = staticSpan([]byte("event: " + eventHeartbeat + "\ndata:\n\n"))
	wsHeartbeat   = staticSpan([]byte{wsFin | wsPing, 0})
)

func (b *broker) beat(c *client, now time.Time) {
	if b.cfg.maxAge > 0 && now.Sub(c.since) > b.cfg.maxAge {
		b.end(c, ReasonMaxAge)
		return
	}
	if every := b.cfg.reauthorize; every > 0 && c.again != nil && int32(now.Sub(c.since)/every) > c.checks {
		b.checkAgain(c, int32(now.Sub(c.since)/every))
	}
	signal := wsHeartbeat
	switch c.form {
	case formSSE:
		signal = sseHeartbeat
	case formSSEJSON:
		signal = jsonHeartbeat
	}
	o, active := c.beat(signal, !c.form.isStream())
	if o == runnable {
		b.runnable(c)
	}
	if active {
		c.activeAt = now
	} else if b.cfg.idleTimeout > 0 && now.Sub(c.activeAt) > b.cfg.idleTimeout {
		b.end(c, ReasonIdle)
	}
}

// end lets a client have what is queued and a farewell.
func (b *broker) end(c *client, why Reason) {
	o := c.finish(why, farewell(c.form, why, b.cfg.retry, b.now))
	if b.unparkClient(c) {
		b.page(c) // it waited to be welcomed: let it go
	} else if o == runnable {
		b.runnable(c)
	}
}

func (b *broker) endAll() {
	b.leaving = true
	for _, bucket := range b.buckets {
		for _, c := range bucket {
			if c.leaving = true; c.behind == 0 {
				b.end(c, ReasonShutdown)
			}
		}
	}
}

func (b *broker) abortAll() {
	b.cut = true
	for _, bucket := range b.buckets {
		for _, c := range bucket {
			b.flusher.abort(c, ReasonShutdown)
		}
	}
}

// gauges counts what there is now, and lists clients: those of one bucket, and of as many
// more as there is room for. The asker looks at their queues.
func (b *broker) gauges(cmd *census) gauges {
	g := gauges{topics: len(b.topics), users: b.users, behind: len(b.behind), clients: cmd.clients, next: cmd.from}
	for g.next < heartbeatBuckets {
		bucket := b.buckets[g.next]
		if len(g.clients) > 0 && len(g.clients)+len(bucket) > cap(g.clients) {
			break
		}
		g.clients = append(g.clients, bucket...)
		g.next++
	}
	return g
}

package pushlet

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSharedModel is TestModel for distributed mode: several brokers share topics through
// a Redis in memory that does what the scripts do, and through connectors that do what the
// real ones do, one moment at a time. Connections break or go deaf, messages come twice,
// Redis goes back to an earlier state or loses all, its clock is set back, some stay with
// the old one, instances restart, and clients come back anywhere. Each client must get
// every message that was acknowledged exactly once and in order, or a gap event where some
// are missing; and where nothing was lost there must be no gap at all. Who hears Redis
// well must be where it is without having to look.
//
// The environment is that of TestModel; with one seed and -v it tells what happens.
func TestSharedModel(t *testing.T) {
	totals := make([]sharedStats, modelShards)
	runs := eachSeed(t, func(t *testing.T, shard int, seed uint64) fmt.Stringer {
		s := runSharedModel(t, seed)
		if totals[shard] == nil {
			totals[shard] = make(sharedStats)
		}
		totals[shard].add(s)
		return s
	})
	total := make(sharedStats)
	for _, s := range totals {
		total.add(s)
	}
	t.Logf("%d runs: %v", runs, total)
	if runs < 500 || t.Failed() {
		return
	}
	for _, name := range []string{
		"received", "cut", "fell behind", "parked", "refused", "sent away", "resumed", "resumed elsewhere",
		"rollbacks", "ghosts", "ghosts acknowledged", "clocks set back", "marks", "marks by lanes", "lineages by lanes", "flushes", "trims", "streams expired", "restarts",
		"breaks", "deaf", "deaf in vain", "doubles", "renewed", "fills", "fills of several pages", "errors", "lost", "lost and told late",
		"gap trimmed", "gap expired", "gap restarted", "gap rolled_back", "gap unknown_cursor",
	} {
		if total[name] == 0 {
			t.Errorf("no run had any %q", name)
		}
	}
	if 100*total["lost without a trace"] > 5*total["lost"] || 100*total["given up"] > runs {
		t.Error("too much is excused")
	}
}

// sharedStats counts what has happened.
type sharedStats map[string]int

func (s sharedStats) add(o sharedStats) {
	for name, n := range o {
		s[name] += n
	}
}

func (s sharedStats) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, "\n\t%8d %s", s[name], name)
	}
	return b.String()
}

// sharedWorld is one run.
type sharedWorld struct {
	t       *testing.T
	rand    *rand.Rand
	seed    uint64
	verbose bool

	cfg       config
	now       time.Time
	moment    int // counts what happens
	partition []*fakeRedis
	truths    []*truth // of the broadcast log, and of each topic
	instances []*instance
	lanes     int // how many there have been
	remember  int // how many batches a lane remembers
	clients   []*sharedClient
	lossless  bool // nothing that Redis has taken is lost, and history keeps it all: no gap may come
	faults    int  // in a hundred steps
	calm      bool // no more faults
	quiet     bool // nobody has anything left to find out, and nothing is published
	ambiguous bool // two messages of a topic have the same ID: nobody can tell them apart
	stats     sharedStats
}

func runSharedModel(t *testing.T, seed uint64) sharedStats {
	w := &sharedWorld{
		t: t, seed: seed, verbose: os.Getenv("PUSHLET_MODEL_SEED") != "" && testing.Verbose(),
		rand:  rand.New(rand.NewPCG(seed, 2)),
		now:   time.UnixMilli(1_700_000_000_000),
		stats: make(sharedStats),
	}
	w.setUp()
	for range 60 + w.rand.IntN(240) {
		w.step()
		w.reckon()
		if w.t.Failed() || w.ambiguous {
			return w.stats
		}
	}
	w.finish()
	for _, in := range w.instances {
		in.retire()
	}
	return w.stats
}

func (w *sharedWorld) fatalf(format string, args ...any) {
	w.t.Errorf("PUSHLET_MODEL_SEED=%d: %s", w.seed, fmt.Sprintf(format, args...))
}

// logf tells what happens, if one run is to be looked at.
func (w *sharedWorld) logf(format string, args ...any) {
	if w.verbose {
		w.t.Logf("%s %s", w.now.Format("04:05.000"), fmt.Sprintf(format, args...))
	}
}

func (w *sharedWorld) count(name string) { w.stats[name]++ }

// rarely is true once in n times, and never when the run comes to its end.
func (w *sharedWorld) rarely(n int) bool { return !w.calm && w.rand.IntN(n) == 0 }

func (w *sharedWorld) setUp() {
	w.cfg = defaultConfig()
	w.lossless = w.rand.IntN(4) == 0
	w.cfg.history.fallback.age = time.Hour
	if !w.lossless {
		w.cfg.history.fallback = historyLimits{1 + w.rand.IntN(20), 20 + w.rand.IntN(600), time.Duration(1+w.rand.IntN(60)) * time.Second}
		w.cfg.history.set("off/", historyLimits{})
		w.cfg.lastMessageAge = 10 * time.Second
	}
	w.faults = 1 + w.rand.IntN(6)
	w.remember = 1 + w.rand.IntN(8)
	w.cfg.queueMessages = 1 + w.rand.IntN(12)
	w.cfg.queueBytes = 100 + w.rand.IntN(2000)
	w.cfg.slowPolicy.fallback = SlowPolicy(w.rand.IntN(3))
	partitions := 1 + w.rand.IntN(2)
	for range partitions {
		w.partition = append(w.partition, &fakeRedis{w: w})
	}
	for i, name := range append([]string{broadcastTopic}, modelTopics...) {
		r := w.partition[i%partitions]
		w.truths = append(w.truths, &truth{name: name, redis: r, index: len(r.topics)})
		r.topics = append(r.topics, w.truths[i])
		r.state.logs = append(r.state.logs, fakeLog{})
	}
	for i := range 2 + w.rand.IntN(2) {
		w.instances = append(w.instances, nil)
		w.boot(i)
	}
	for i := range 1 + w.rand.IntN(5) {
		c := &sharedClient{w: w, name: fmt.Sprint("client", i), form: form(w.rand.IntN(4))}
		c.since = make(map[string]string)
		c.progress = make(map[string]*sharedProgress)
		c.topics = w.someTopics()
		w.clients = append(w.clients, c)
	}
}

func (w *sharedWorld) someTopics() []string {
	n := 1
	if w.rand.IntN(2) == 0 {
		n = 1 + w.rand.IntN(len(modelTopics))
	}
	topics := slices.Clone(modelTopics)
	w.rand.Shuffle(len(topics), func(i, j int) { topics[i], topics[j] = topics[j], topics[i] })
	return topics[:n]
}

func (w *sharedWorld) truth(topic string) *truth {
	for _, tr := range w.truths {
		if tr.name == topic {
			return tr
		}
	}
	panic("no such topic: " + topic)
}

// step lets one thing happen.
func (w *sharedWorld) step() {
	w.moment++
	c := w.clients[w.rand.IntN(len(w.clients))]
	in := w.instances[w.rand.IntN(len(w.instances))]
	l := in.links[w.rand.IntN(len(in.links))]
	lane := in.lanes[w.rand.IntN(len(in.lanes))]
	if l.old && w.rand.IntN(4) == 0 {
		l.redis.haunt()
	}
	if w.rand.IntN(100) < w.faults {
		w.fault(in, l, c)
		return
	}
	switch n := w.rand.IntN(100); {
	case n < 16:
		lane.publish(1+w.rand.IntN(2), false)
	case n < 17:
		for range 1 + w.rand.IntN(8) {
			lane.publish(1+w.rand.IntN(3), false)
		}
	case n < 29:
		l.receive(1 + w.rand.IntN(8))
	case n < 41:
		l.manage(1 + w.rand.IntN(8))
	case n < 46:
		l.serve()
	case n < 53:
		in.quiesce()
	case n < 67:
		for range 1 + w.rand.IntN(6) {
			in.flushOne()
		}
	case n < 76:
		c.readSome(1 + w.rand.IntN(600))
	case n < 80:
		in.answerPage()
	case n < 87:
		if c.c == nil || c.over || c.quit {
			c.connect()
		} else if w.rand.IntN(3) == 0 {
			c.disconnect()
		}
	case n < 90:
		w.tick()
	case n < 93:
		c.changeTopics()
	case n < 97:
		l.check = true
	case n < 98:
		lane.verify()
	default:
		in.broker.checkInvariants()
	}
}

// fault lets something go wrong.
func (w *sharedWorld) fault(in *instance, l *link, c *sharedClient) {
	switch n := w.rand.IntN(100); {
	case n < 20:
		if l.up {
			w.count("breaks")
			l.hangUp(w.rand.IntN(2) == 0)
		}
	case n < 45:
		if l.up && !l.deaf {
			w.count("deaf")
			l.deaf, l.missed, l.confirms = true, true, w.rand.IntN(2) == 0
			w.logf("%v is deaf, confirms=%v", l, l.confirms)
		}
	case n < 65:
		l.double()
	case n < 75:
		w.restart(slices.Index(w.instances, in))
	case w.lossless:
	case n < 87:
		l.redis.rollBack()
	case n < 91:
		l.redis.flush()
	case n < 93:
		c.spoilCursor()
	default:
		w.pass(time.Duration(w.rand.IntN(150_000)) * time.Millisecond)
	}
}

// tick lets time pass for all.
func (w *sharedWorld) tick() {
	limit := 2000
	if w.rand.IntN(4) == 0 {
		limit = 15_000
	}
	w.pass(time.Duration(w.rand.IntN(limit)) * time.Millisecond)
}

func (w *sharedWorld) pass(d time.Duration) {
	w.now = w.now.Add(d)
	w.logf("tick")
	for _, in := range w.instances {
		for _, l := range in.links {
			if d > redisTimeout {
				l.fail()
			}
		}
		in.apply(tick{w.now, w.rand.IntN(heartbeatBuckets)})
	}
}

// restart ends an instance, with all it knew, and begins another.
func (w *sharedWorld) restart(i int) {
	for _, c := range w.clients {
		if c.in == w.instances[i] {
			c.disconnect()
		}
	}
	w.count("restarts")
	w.logf("%v restarts", w.instances[i])
	w.instances[i].retire()
	w.boot(i)
}

// An instance is one process.
type instance struct {
	w        *sharedWorld
	name     string
	env      *clientEnv
	counters counters
	broker   *broker
	pages    []*client // that have asked for a page
	runnable []*client
	links    []*link // for each partition
	lanes    []*fakeLane
}

const modelLanes = 2 // of an instance to each partition

func (w *sharedWorld) boot(i int) {
	f := newFlusher(0) // flushOne stands for its workers
	in := &instance{w: w, name: fmt.Sprint("instance", i)}
	in.env = &clientEnv{
		maxMessages: w.cfg.queueMessages,
		maxBytes:    w.cfg.queueBytes,
		maxTopics:   w.cfg.maxTopics,
		flusher:     f,
		counters:    &in.counters,
		requestPage: func(c *client) { in.pages = append(in.pages, c) },
	}
	in.broker = newBroker(&w.cfg, f, &in.counters, func(report) {}, w.now)
	for _, r := range w.partition {
		in.links = append(in.links, &link{in: in, redis: r, anew: true})
		for range modelLanes {
			w.lanes++
			in.lanes = append(in.lanes, &fakeLane{in: in, redis: r, id: w.lanes})
		}
	}
	w.instances[i] = in
	in.broker.share(in)
}

func (in *instance) String() string { return in.name }

// retire counts what only the broker knows.
func (in *instance) retire() {
	in.w.stats["fell behind"] += int(in.counters.fellBehind.Load())
}

// An instance takes the orders of its broker.
func (in *instance) follow(topic string)           { in.order(orderFollow, topic, msgID{}) }
func (in *instance) unfollow(topic string)         { in.order(orderUnfollow, topic, msgID{}) }
func (in *instance) fill(topic string, from msgID) { in.order(orderFill, topic, from) }
func (in *instance) mark(topic string, lost msgID) { in.order(orderMark, topic, lost) }
func (in *instance) stale(topic string)            { in.order(orderRenew, topic, msgID{}) }

func (in *instance) order(kind orderKind, topic string, id msgID) {
	in.w.logf("%v orders %s %q %v", in, [...]string{"follow", "unfollow", "fill", "mark", "renew"}[kind], topic, id)
	if in.w.quiet && kind != orderFollow && kind != orderUnfollow {
		in.w.fatalf("%v has orders for %q though nothing happens", in, topic)
	}
	r := in.w.truth(topic).redis
	for _, l := range in.links {
		if l.redis == r {
			l.orders = append(l.orders, order{kind, topic, id})
		}
	}
}

// apply gives the broker a command and collects what has become runnable.
func (in *instance) apply(cmd command) {
	in.noteLatest()
	ordered := make([]int, len(in.links))
	for i, l := range in.links {
		ordered[i] = len(l.orders)
	}
	in.broker.apply(cmd)
	in.broker.handOver()
	f := in.broker.flusher
	f.wg.Wait() // for aborts
	ready := f.clients[f.head:]
	if _, ok := cmd.(tick); ok { // it goes over maps: the run is to be the same every time
		slices.SortFunc(ready, func(a, b *client) int { return cmp.Compare(a.info.ID, b.info.ID) })
		for i, l := range in.links {
			slices.SortStableFunc(l.orders[ordered[i]:], func(a, b order) int { return cmp.Compare(a.topic, b.topic) })
		}
	}
	in.runnable = append(in.runnable, ready...)
	f.clients, f.head = f.clients[:0], 0
	in.noteLatest()
	for _, c := range in.w.clients {
		if c.in == in && c.waits {
			c.noteWelcome()
		}
	}
	if in.w.cfg.verify {
		in.broker.checkInvariants()
	}
	in.w.reckon()
}

// noteLatest lets the model leave out what has been published by now to a client whose next
// page has only the newest messages of a topic, under policy KeepLatest.
func (in *instance) noteLatest() {
	if in.w.cfg.slowPolicy.fallback != KeepLatest {
		return
	}
	for _, m := range in.w.clients {
		if m.in != in || m.c == nil {
			continue
		}
		for s := range m.c.subscriptions() {
			p := m.progress[s.topic.name]
			if s.behind && p != nil && (s.latest || s.slow && !in.broker.reaches(s.topic, s.pos)) {
				p.skip = len(in.w.truth(s.topic.name).items)
			}
		}
	}
}

// flushOne is what a flusher does, with a socket that takes only so much.
func (in *instance) flushOne() {
	if len(in.runnable) == 0 {
		return
	}
	i := in.w.rand.IntN(len(in.runnable))
	c := in.runnable[i]
	m := c.transport.(*sharedTransport).m
	var chunk []byte
	if m.c == c {
		chunk, _ = c.peek(make([]byte, 0, 200))
		chunk = chunk[:min(len(chunk), max(0, m.room-len(m.wire)))]
		m.wire = append(m.wire, chunk...)
	}
	step, _ := c.wrote(len(chunk))
	if step == stepMore {
		return // stays runnable
	}
	in.runnable = slices.Delete(in.runnable, i, i+1)
	c.proceed(step)
}

func (in *instance) answerPage() {
	if len(in.pages) > 0 {
		c := in.pages[0]
		in.pages = in.pages[1:]
		in.apply(page{c})
	}
}

// quiesce lets an instance do all there is to do.
func (in *instance) quiesce() {
	w := in.w
	for range 20_000 {
		busy := false
		for _, l := range in.links {
			busy = l.serve() || busy
			busy = l.receive(1000) || busy
			busy = l.manage(1) || busy
		}
		for _, lane := range in.lanes {
			busy = lane.goOn(true) || busy
		}
		for _, c := range w.clients {
			if c.in == in && w.calm {
				c.room = 1 << 30
				c.readSome(1 << 30)
			}
		}
		if w.calm && len(in.runnable) > 0 {
			in.flushOne()
			busy = true
		}
		if len(in.pages) > 0 {
			in.answerPage()
			busy = true
		}
		if w.t.Failed() {
			return
		}
		if !busy {
			for _, l := range in.links {
				l.checkPrompt()
			}
			return
		}
	}
	w.fatalf("%v does not settle", in)
}

// A link is what an instance has to a partition for receiving: its subscription and its
// manager.
type link struct {
	in    *instance
	redis *fakeRedis

	// The subscription.
	up       bool
	anew     bool         // when it is up again it is a new one, which has forgotten its channels
	channels []string     // that it has been told to subscribe to
	commands []subCommand // on their way to Redis
	active   []string     // channels in Redis
	wire     []subReply   // on their way here
	past     []*fakeEntry // that have come
	deaf     bool         // messages do not come
	confirms bool         // but answers to commands do
	old      bool         // it is at a Redis that is not the one any more
	missed   bool         // it has been one of these since it was up

	// The manager.
	orders    []order
	fresh     bool // the subscription is new: everything has to be subscribed to
	followed  []string
	confirmed []string
	compared  []string // confirmed, to be compared
	fills     []order
	check     bool   // compare all that is followed
	lineage   uint64 // of the logs, when they were compared last
	phase     int
	plan      []errand
	flight    []*filled // what was read and is on its way
	renewed   time.Time
}

// A subCommand subscribes to channels, or the opposite.
type subCommand struct {
	topics []string
	remove bool
}

// A subReply is a message, or the confirmation of a channel.
type subReply struct {
	topic string
	entry *fakeEntry
}

// An errand is something that happens at one moment.
type errand struct {
	do     func()
	failed func() bool // nil, or whether it came to nothing and all that it belongs to begins anew
}

func (l *link) String() string {
	return fmt.Sprintf("%v:%d", l.in, slices.Index(l.in.w.partition, l.redis))
}

// serve lets Redis execute a command of the subscription, or a new connection begin.
func (l *link) serve() bool {
	switch {
	case !l.up:
		l.up = true
		l.in.w.logf("%v is up, anew=%v", l, l.anew)
		if l.anew {
			l.channels, l.fresh, l.anew = nil, true, false
		} else if len(l.channels) > 0 {
			l.commands = append(l.commands, subCommand{topics: slices.Clone(l.channels)})
		}
	case l.deaf && !l.confirms && (l.in.w.calm || l.in.w.rand.IntN(10) == 0):
		l.hangUp(true) // no answer to a ping either
	case len(l.commands) > 0:
		cmd := l.commands[0]
		l.commands = l.commands[1:]
		for _, topic := range cmd.topics {
			l.active = slices.DeleteFunc(l.active, func(s string) bool { return s == topic })
			if !cmd.remove {
				l.active = append(l.active, topic)
				if !l.deaf || l.confirms {
					l.wire = append(l.wire, subReply{topic: topic})
				}
			}
		}
	default:
		return false
	}
	return true
}

// hangUp ends the connection, with all that is on its way.
func (l *link) hangUp(anew bool) {
	l.in.w.logf("%v is down, anew=%v", l, anew)
	l.up, l.anew, l.deaf, l.old, l.missed = false, anew, false, false, false
	l.commands, l.active, l.wire = nil, nil, nil
}

// checkPrompt checks that, now that all is done, the broker is where Redis is: without
// having to look now and then, as long as messages arrive and Redis does not go back.
func (l *link) checkPrompt() {
	if !l.up || l.missed {
		return
	}
	for _, tr := range l.redis.topics {
		t := l.in.broker.byName(tr.name)
		if t == nil || tr.lostAt(t.last, "") >= 0 {
			continue
		}
		newest := l.redis.log(tr).newest
		if s := t.shared; !s.open || s.filling || len(s.stash) > 0 || !newest.isZero() && newest.lineage() == l.redis.state.lineage && t.last != newest {
			l.in.w.fatalf("%v: %q is at %v, not at %v: %+v", l, tr.name, t.last, newest, *s)
		}
	}
}

// double lets a message that has come, or is to come, come again.
func (l *link) double() {
	all := slices.Clone(l.past)
	for _, reply := range l.wire {
		if reply.entry != nil {
			all = append(all, reply.entry)
		}
	}
	if l.up && !l.deaf && len(all) > 0 {
		e := all[l.in.w.rand.IntN(len(all))]
		l.in.w.logf("%v: %v comes again", l, e)
		l.in.w.count("doubles")
		l.wire = append(l.wire, subReply{e.truth.name, e})
	}
}

// receive takes what has come.
func (l *link) receive(n int) bool {
	busy := len(l.wire) > 0
	for ; n > 0 && len(l.wire) > 0; n-- {
		reply := l.wire[0]
		l.wire = l.wire[1:]
		if reply.entry == nil {
			l.confirmed = append(l.confirmed, reply.topic)
			continue
		}
		if l.past = append(l.past, reply.entry); len(l.past) > 5 {
			l.past = l.past[1:]
		}
		l.in.w.logf("%v receives %v", l, reply.entry)
		f := reply.entry.frame()
		if f.mark == "" {
			f.encode(l.in.counters.wanted())
		}
		l.in.apply(&arrival{f, l.in.w.now})
	}
	return busy
}

const (
	phaseObey = iota
	phaseFresh
	phaseFills
	phaseCheck
)

// manage goes through as many moments of the manager's round.
func (l *link) manage(n int) bool {
	for i := range n {
		for len(l.plan) == 0 && l.next() {
		}
		if len(l.plan) == 0 {
			return i > 0
		}
		e := l.plan[0]
		l.plan = l.plan[1:]
		if e.failed != nil && e.failed() {
			l.fail()
			continue
		}
		e.do()
	}
	return true
}

// fail gives up what was to come of a round. What it was for is left for the next.
func (l *link) fail() {
	l.plan, l.flight, l.phase = nil, nil, phaseObey
}

// next plans the next part of a round, and reports false if the round is over and there
// is nothing to do.
func (l *link) next() bool {
	const chunk = 3
	switch l.phase {
	case phaseObey:
		if len(l.orders)+len(l.confirmed)+len(l.compared)+len(l.fills) == 0 && !l.fresh && !l.check {
			return false
		}
		l.phase = phaseFresh
		l.plan = []errand{{do: l.obey}}
	case phaseFresh:
		l.compared = append(l.compared, l.confirmed...)
		l.confirmed = nil
		if len(l.compared) == 0 {
			l.phase = phaseFills
			return true
		}
		names := l.compared[:min(chunk, len(l.compared))]
		l.compare(names, true)
		l.plan = append(l.plan, errand{do: func() { l.compared = l.compared[len(names):] }})
	case phaseFills:
		if len(l.fills) == 0 {
			l.phase = phaseCheck
			return true
		}
		l.read(l.fills[:min(chunk, len(l.fills))])
	case phaseCheck:
		l.phase = phaseObey
		if l.check {
			l.check = false
			l.compare(slices.Clone(l.followed), false)
		}
	}
	return true
}

// mayFail is a call of Redis, which may fail before or after it was carried out.
func (w *sharedWorld) mayFail(call func()) errand {
	return errand{do: call, failed: func() bool {
		if !w.rarely(60) {
			return false
		}
		w.count("errors")
		if w.rand.IntN(2) == 0 {
			call()
		}
		return true
	}}
}

// obey takes the orders and brings the subscription up to them.
func (l *link) obey() {
	orders, fresh := l.orders, l.fresh
	l.orders, l.fresh = nil, false
	var add, remove []string
	renew := false
	send := func(list *[]string, remove bool) {
		if len(*list) == 0 {
			return
		}
		for _, topic := range *list {
			l.channels = slices.DeleteFunc(l.channels, func(s string) bool { return s == topic })
			if !remove {
				l.channels = append(l.channels, topic)
			}
		}
		if l.up {
			l.commands = append(l.commands, subCommand{*list, remove})
		}
		*list = nil
	}
	for _, o := range orders {
		switch o.kind {
		case orderFollow:
			send(&remove, true)
			l.followed = append(l.followed, o.topic)
			add = append(add, o.topic)
		case orderUnfollow:
			send(&add, false)
			l.followed = slices.DeleteFunc(l.followed, func(s string) bool { return s == o.topic })
			remove = append(remove, o.topic)
		case orderRenew:
			renew = true
		default:
			l.fills = append(l.fills, o)
		}
	}
	if fresh {
		add = slices.Clone(l.followed)
	}
	send(&add, false)
	send(&remove, true)
	if renew && !fresh && l.in.w.now.Sub(l.renewed) > redisSilence {
		l.renewed = l.in.w.now
		l.in.w.count("renewed")
		if !l.missed {
			l.in.w.count("renewed in vain")
		}
		l.hangUp(true)
	}
}

// compare tells the broker where topics are in Redis.
func (l *link) compare(names []string, fresh bool) {
	if len(names) == 0 {
		return
	}
	var asked []msgID
	var s *sighting
	l.plan = append(l.plan,
		errand{do: func() {
			answer := make(chan []msgID, 1)
			l.in.apply(&inquiry{names, answer})
			asked = <-answer
		}},
		l.in.w.mayFail(func() {
			s = l.redis.check(names, asked)
			s.fresh = fresh
		}),
		errand{do: func() {
			l.in.w.logf("%v sights %+v", l, *s)
			l.in.apply(s)
			l.check = l.check || l.lineage != 0 && l.lineage != s.lineage
			l.lineage = s.lineage
		}})
}

// read reads logs for the broker, several at once.
func (l *link) read(orders []order) {
	for _, o := range orders {
		if o.kind == orderMark {
			l.plan = append(l.plan, l.in.w.mayFail(func() { l.redis.mark(o.topic, o.id) }))
		}
	}
	from := make([]msgID, len(orders))
	done := make([]bool, len(orders))
	l.plan = append(l.plan, l.in.w.mayFail(func() {
		lineage, now := l.redis.where()
		l.flight = nil
		for i, o := range orders {
			from[i] = o.id
			l.flight = append(l.flight, &filled{topic: o.topic, from: o.id, lineage: lineage, now: now})
		}
	}))
	var page errand
	pages := 0
	page = l.in.w.mayFail(func() {
		more := false
		if pages++; pages == 2 {
			l.in.w.count("fills of several pages")
		}
		for i, answer := range l.flight {
			if done[i] {
				continue
			}
			entries := l.redis.read(answer.topic, from[i], pages > 1)
			for _, e := range entries {
				if e.id.lineage() == answer.lineage {
					answer.frames = append(answer.frames, e.frame())
				}
			}
			if done[i] = len(entries) < modelPage; !done[i] {
				more = true
				from[i] = entries[len(entries)-1].id
			}
		}
		if more {
			l.plan = append([]errand{page}, l.plan...)
		}
	})
	l.plan = append(l.plan, page)
	for range orders {
		l.plan = append(l.plan, errand{do: func() {
			answer := l.flight[0]
			l.flight, l.fills = l.flight[1:], l.fills[1:]
			l.in.w.count("fills")
			l.in.w.logf("%v has read %q from %v: %v lineage=%d now=%d", l, answer.topic, answer.from, shownFrames(answer.frames), answer.lineage, answer.now)
			l.in.apply(answer)
		}})
	}
}

// shownFrames shows what was read when a run is looked at.
type shownFrames []*frame

func (frames shownFrames) String() string {
	var b strings.Builder
	for _, f := range frames {
		fmt.Fprintf(&b, " %v<-%v %.8q%s", f.id, f.prev, f.data, f.mark)
	}
	return b.String()
}

const modelPage = 4 // entries that are read at once

// A fakeLane publishes for an instance, one batch after the other.
type fakeLane struct {
	in      *instance
	redis   *fakeRedis
	id      int
	number  int
	taken   int
	lineage uint64
	batch   *fakeBatch // on its way, or nil
	plan    []errand

	past      []*fakeBatch
	forgotten int
	all       []*fakeBatch // past as it were with unlimited memory
}

// A fakeBatch is what is published at once.
type fakeBatch struct {
	number   int
	messages []fakeMessage
}

type fakeMessage struct {
	truth *truth
	event string
	pad   int
	item  int // -1 until it is published
}

// publish begins a batch, unless the lane has one on its way.
func (l *fakeLane) publish(n int, all bool) {
	if l.batch == nil {
		b := &fakeBatch{}
		for range n {
			tr := l.redis.topics[l.in.w.rand.IntN(len(l.redis.topics))]
			b.messages = append(b.messages, fakeMessage{tr, fmt.Sprint("event", l.in.w.rand.IntN(modelEvents)), l.in.w.rand.IntN(60), -1})
		}
		l.send(b)
	}
	l.goOn(all)
}

// verify publishes nothing, to see whether what was published is still there.
func (l *fakeLane) verify() {
	if l.batch == nil && l.taken > 0 {
		l.send(&fakeBatch{})
	}
	l.goOn(l.in.w.calm)
}

func (l *fakeLane) send(b *fakeBatch) {
	l.number++
	b.number, l.batch = l.number, b
	l.attempt()
}

// goOn does what comes next, as a rule all of it.
func (l *fakeLane) goOn(all bool) bool {
	busy := len(l.plan) > 0
	for len(l.plan) > 0 && !l.in.w.t.Failed() {
		e := l.plan[0]
		l.plan = l.plan[1:]
		if e.failed != nil && e.failed() {
			l.attempt()
		} else {
			e.do()
		}
		if !all && l.in.w.rand.IntN(8) == 0 {
			break
		}
	}
	return busy
}

func (l *fakeLane) attempt() {
	l.plan = []errand{l.in.w.mayFail(func() {
		ok, kept := l.redis.publish(l)
		if !ok {
			l.markLost(kept)
			return
		}
		lineage := l.redis.state.lineage
		l.plan = []errand{{do: func() {
			l.lineage = lineage
			l.remember()
		}}}
	})}
}

func (l *fakeLane) remember() {
	for _, m := range l.batch.messages {
		m.truth.acknowledge(m.item)
	}
	l.taken = l.number
	if len(l.batch.messages) > 0 {
		l.past = append(l.past, l.batch)
		l.all = append(l.all, l.batch)
	}
	if old := len(l.past) - l.in.w.remember; old > 0 {
		l.forgotten = l.past[old-1].number
		l.past = l.past[old:]
	}
	l.batch = nil
}

// markLost notes in the logs that what was published after a batch is gone.
func (l *fakeLane) markLost(kept int) {
	l.in.w.logf("lane %d of %v has lost batches after %d", l.id, l.in, kept)
	end := errand{do: func() {
		l.taken = kept
		l.attempt()
	}}
	l.plan = []errand{l.in.w.mayFail(func() {
		if l.redis.state.lineage != l.lineage {
			l.past = nil
			l.plan = []errand{end}
			return
		}
		lost := make([]msgID, len(l.redis.topics))
		for i := len(l.past) - 1; i >= 0 && l.past[i].number > kept; i-- {
			for _, m := range slices.Backward(l.past[i].messages) {
				if lost[m.truth.index].isZero() {
					lost[m.truth.index] = m.truth.items[m.item].id
				}
			}
		}
		if kept < l.forgotten {
			l.plan = []errand{l.in.w.mayFail(l.redis.renew), end}
			return
		}
		for i, id := range lost {
			if !id.isZero() {
				l.plan = append(l.plan, l.in.w.mayFail(func() {
					l.in.w.count("marks by lanes")
					l.redis.mark(l.redis.topics[i].name, id)
				}))
			}
		}
		l.plan = append(l.plan, end)
	})}
}

// A truth is all that was ever in the log of a topic, in the order in which Redis took it.
// A message says in its data which item it is.
type truth struct {
	name  string
	redis *fakeRedis
	index int // among the topics of redis
	items []item
	open  []int // items that were acknowledged and are lost, which nothing in Redis says yet
	known []knower
}

type item struct {
	id     msgID
	data   string // a mark has none
	moment int
	acked  bool
	lost   bool
	noted  int  // when Redis began to tell everybody of the loss, 0: not yet
	by     int  // the mark that does, -1: the lineage
	exempt bool // nobody can know of the loss
	ghost  bool // it was never in the log
}

// A knower is one who knows that messages are lost, and has to say so: a broker whose
// topic was there, unless the log has been trimmed so far that it cannot tell.
type knower struct {
	in    *instance
	topic *topic
	upTo  int
}

func (tr *truth) acknowledge(i int) {
	it := &tr.items[i]
	it.acked = true
	if it.lost {
		tr.redis.w.count("lost")
		if it.noted == 0 {
			tr.open = append(tr.open, i)
		}
	}
}

// lose notes that items from n on are gone.
func (tr *truth) lose(n int) {
	w := tr.redis.w
	for i := range tr.items {
		it := &tr.items[i]
		switch {
		case i < n && (it.noted == 0 || it.by < n):
			continue
		case i >= n && !it.lost:
			it.lost = true
			if it.acked {
				w.count("lost")
			}
		}
		it.noted = 0
		if it.id.lineage() != tr.redis.state.lineage {
			it.noted, it.by = w.moment, -1
		} else if it.acked && !it.exempt && !slices.Contains(tr.open, i) {
			tr.open = append(tr.open, i)
		}
	}
}

// end notes that everything is gone, and that the lineage says so.
func (tr *truth) end() {
	w := tr.redis.w
	for i := range tr.items {
		it := &tr.items[i]
		if !it.lost && it.acked {
			w.count("lost")
		}
		if it.lost = true; it.noted == 0 {
			it.noted = w.moment
		}
		it.by = -1
	}
	tr.open = nil
}

// note notes that a mark tells of all losses.
func (tr *truth) note(mark int) {
	for i := range tr.items {
		if it := &tr.items[i]; it.lost && it.noted == 0 {
			it.noted, it.by = tr.redis.w.moment, mark
		}
	}
	tr.open = nil
}

// lostAt returns the last item with an ID, and, where that is known, with the data, that
// is lost, -1 if there is none.
func (tr *truth) lostAt(id msgID, data string) int {
	for i, it := range slices.Backward(tr.items) {
		if it.lost && it.id == id && (data == "" || it.data == data) {
			return i
		}
	}
	return -1
}

// reckon finds out what losses nobody can know of any more: of messages of lanes that have
// ended, which are in no broker's memory. Clients that have missed these cannot be told.
func (w *sharedWorld) reckon() {
	for _, tr := range w.truths {
		if len(tr.open) == 0 {
			tr.known = nil
			continue
		}
		upTo := tr.whoKnows()
		tr.open = slices.DeleteFunc(tr.open, func(i int) bool {
			if i <= upTo {
				return false
			}
			w.logf("the loss of %q %d leaves no trace", tr.name, i)
			w.count("lost without a trace")
			tr.items[i].exempt = true
			return true
		})
	}
}

// whoKnows returns the last item that somebody knows was there and is lost.
func (tr *truth) whoKnows() int {
	w := tr.redis.w
	upTo := -1
	oldest := msgID{}
	if entries := tr.redis.log(tr).entries; len(entries) > 0 {
		oldest = entries[0].prev
	}
	tr.known = slices.DeleteFunc(tr.known, func(k knower) bool {
		return !slices.Contains(w.instances, k.in) || k.in.broker.byName(tr.name) != k.topic || tr.items[k.upTo].id.before(oldest)
	})
	for _, in := range w.instances {
		for _, lane := range in.lanes {
			if lane.redis == tr.redis {
				upTo = max(upTo, lane.knows(tr))
			}
		}
		for _, l := range in.links {
			if l.redis == tr.redis {
				upTo = max(upTo, l.knows(tr))
			}
		}
		t := in.broker.byName(tr.name)
		if t == nil || !t.shared.open {
			continue
		}
		data := ""
		if f := t.find(t.last); f != nil {
			data = f.data
		}
		if i := tr.lostAt(t.last, data); i >= 0 && !t.last.before(oldest) {
			tr.known = append(tr.known, knower{in, t, i})
		}
		for _, f := range t.shared.stash {
			upTo = max(upTo, tr.lostAt(f.id, f.data))
		}
	}
	for _, k := range tr.known {
		upTo = max(upTo, k.upTo)
	}
	return upTo
}

func (l *fakeLane) knows(tr *truth) int {
	upTo := -1
	kept := l.redis.lane(l.id)
	for _, b := range append(l.all, cmp.Or(l.batch, &fakeBatch{})) {
		for _, m := range b.messages {
			if b.number > kept && m.truth == tr {
				upTo = max(upTo, m.item)
			}
		}
	}
	return upTo
}

// knows is about what is on its way to the broker.
func (l *link) knows(tr *truth) int {
	upTo := -1
	for _, reply := range l.wire {
		if reply.entry != nil && reply.entry.truth == tr && tr.items[reply.entry.item].lost {
			upTo = max(upTo, reply.entry.item)
		}
	}
	for _, answer := range l.flight {
		for _, f := range answer.frames {
			if answer.topic == tr.name {
				upTo = max(upTo, tr.lostAt(f.id, f.data))
			}
		}
	}
	return upTo
}

// A fakeRedis is one partition in Redis.
type fakeRedis struct {
	w      *sharedWorld
	topics []*truth
	behind uint64 // milliseconds

	state fakeState
	past  []fakeState // before the last writes
	old   fakeState   // that it had before it went back

	rollbacks, beginnings int
}

// A fakeState is what Redis has, and what a replica may have.
type fakeState struct {
	lineage     uint64 // 0: no head
	ms, counter uint64
	logs        []fakeLog
	lanes       []fakeLast
	items       []int // how many there were in each truth
}

// A fakeLast is the last batch of a lane.
type fakeLast struct{ lane, number int }

type fakeLog struct {
	entries []*fakeEntry
	newest  msgID // zero: there is no log
	expires uint64
}

// A fakeEntry is a message, or a mark, in a stream.
type fakeEntry struct {
	truth    *truth
	item     int
	id, prev msgID
	event    string
	at       time.Time
	mark     Reason
	size     int
}

func (e *fakeEntry) String() string {
	return fmt.Sprintf("%q %d %v<-%v %s", e.truth.name, e.item, e.id, e.prev, e.mark)
}

func (e *fakeEntry) frame() *frame {
	return &frame{topic: e.truth.name, event: e.event, data: e.truth.items[e.item].data, at: e.at, id: e.id, prev: e.prev, mark: e.mark}
}

func (r *fakeRedis) now() uint64 { return uint64(r.w.now.UnixMilli()) - r.behind }

// begin begins a lineage.
func (r *fakeRedis) begin() {
	r.beginnings++
	r.state.lineage, r.state.ms, r.state.counter = 1+r.w.rand.Uint64N(1<<lineageBits-1), 0, 0
}

// log returns a stream; one that has expired is empty.
func (r *fakeRedis) log(tr *truth) *fakeLog {
	log := &r.state.logs[tr.index]
	if len(log.entries) > 0 && log.expires <= r.now() {
		r.w.logf("%q has expired", tr.name)
		r.w.count("streams expired")
		*log = fakeLog{}
	}
	return log
}

// write keeps the state as it is before a write.
func (r *fakeRedis) write() {
	const keep = 10
	s := r.state
	s.logs = slices.Clone(s.logs)
	s.lanes = slices.Clone(s.lanes)
	s.items = make([]int, len(r.topics))
	for i, tr := range r.topics {
		s.items[i] = len(tr.items)
	}
	if len(r.past) == keep {
		r.past = append(r.past[:0], r.past[1:]...)
	}
	r.past = append(r.past, s)
}

func (r *fakeRedis) lane(id int) int {
	for _, last := range r.state.lanes {
		if last.lane == id {
			return last.number
		}
	}
	return 0
}

// publish does what redis_publish.lua does.
func (r *fakeRedis) publish(l *fakeLane) (ok bool, kept int) {
	last := r.lane(l.id)
	switch {
	case last == l.number:
		return true, 0
	case last < l.taken:
		return false, last
	}
	w, s, now := r.w, &r.state, r.now()
	for _, tr := range r.topics {
		r.log(tr)
	}
	r.write()
	if s.lineage == 0 {
		r.begin()
	}
	ttl := uint64(w.cfg.logTTL().Milliseconds())
	slack, nonce := ttl/8, w.rand.Uint64N(1<<nonceBits)
	was := make([]uint64, len(r.topics))
	for _, m := range l.batch.messages {
		log := r.log(m.truth)
		if log.newest.lineage() != s.lineage {
			*log = fakeLog{expires: now + 1} // for now
		}
		was[m.truth.index] = log.newest.ms
	}
	for i := range l.batch.messages {
		m := &l.batch.messages[i]
		tr, log, limits := m.truth, r.log(m.truth), r.limits(m.truth)
		s.counter++
		if now > s.ms {
			s.ms, s.counter = now, 1
		} else if s.counter == 1<<(counterBits-nonceBits) {
			s.ms, s.counter = s.ms+1, 1
		}
		m.item = len(tr.items)
		it := item{
			id:     msgID{s.ms, s.lineage<<counterBits | s.counter<<nonceBits | nonce},
			data:   fmt.Sprintf("%s %d %s", tr.name, m.item, strings.Repeat("x", m.pad)),
			moment: w.moment,
		}
		e := &fakeEntry{truth: tr, item: m.item, id: it.id, prev: log.newest, event: m.event, at: w.now, size: 65 + len(m.event) + len(it.data)}
		if e.prev.isZero() {
			e.prev = floorAt(now-ttl, s.lineage)
		}
		if tr.lostAt(it.id, "") >= 0 {
			w.count("given up")
			w.ambiguous = true
		}
		tr.items = append(tr.items, it)
		w.count("published")
		log.entries, log.newest = append(log.entries, e), it.id
		r.emit(e)
		if e.size > limits.bytes/limits.messages {
			held := 0
			for _, e := range log.entries {
				held += e.size
			}
			if held > limits.bytes {
				r.trim(log, max(1, len(log.entries)*limits.bytes/held))
			}
		}
	}
	for _, m := range l.batch.messages {
		log, limits, was := r.log(m.truth), r.limits(m.truth), was[m.truth.index]
		if limits.messages < 128 {
			r.trim(log, limits.messages)
		}
		age := uint64(limits.age.Milliseconds())
		if was < now*8/age*age/8 {
			for log.entries[0].id.ms < now-age {
				r.trim(log, len(log.entries)-1)
			}
		}
		if was < now/slack*slack {
			log.expires = now + ttl + 2*slack
		}
	}
	for i := range s.lanes {
		if s.lanes[i].lane == l.id {
			s.lanes[i].number = l.number
			return true, 0
		}
	}
	s.lanes = append(s.lanes, fakeLast{l.id, l.number})
	return true, 0
}

func (r *fakeRedis) limits(tr *truth) historyLimits {
	return sharedLimits(r.w.cfg.history.of(tr.name))
}

func (r *fakeRedis) trim(log *fakeLog, n int) {
	if len(log.entries) > n {
		r.w.count("trims")
		log.entries = log.entries[len(log.entries)-n:]
	}
}

// emit sends a message to those who are subscribed.
func (r *fakeRedis) emit(e *fakeEntry) {
	r.w.logf("published %v", e)
	for _, in := range r.w.instances {
		for _, l := range in.links {
			if l.redis != r || !slices.Contains(l.active, e.truth.name) {
				continue
			}
			if l.deaf || l.old {
				r.w.count("deaf in vain")
				continue
			}
			l.wire = append(l.wire, subReply{e.truth.name, e})
		}
	}
}

// where returns the lineage, which begins if there is none, and a time that all IDs which
// are made from now on come after.
func (r *fakeRedis) where() (lineage, now uint64) {
	s := &r.state
	if s.lineage == 0 {
		r.write()
		r.begin()
	}
	if now := r.now(); now > s.ms {
		s.ms, s.counter = now, 0
	}
	return s.lineage, s.ms
}

// check does what redis_check.lua does.
func (r *fakeRedis) check(names []string, asked []msgID) *sighting {
	s := &sighting{}
	s.lineage, s.now = r.where()
	for i, name := range names {
		log := r.log(r.w.truth(name))
		seen := sighted{name: name, asked: asked[i], held: true}
		if log.newest.lineage() == s.lineage {
			seen.last = log.newest
		}
		if !asked[i].isZero() && !asked[i].isFloor() && asked[i] != seen.last {
			seen.held = slices.ContainsFunc(log.entries, func(e *fakeEntry) bool { return e.id == asked[i] })
		}
		s.topics = append(s.topics, seen)
	}
	return s
}

// mark does what redis_mark.lua does.
func (r *fakeRedis) mark(topic string, lost msgID) {
	w, s, tr := r.w, &r.state, r.w.truth(topic)
	log := r.log(tr)
	if s.lineage == 0 || lost.lineage() != s.lineage || slices.ContainsFunc(log.entries, func(e *fakeEntry) bool { return e.id == lost }) {
		w.logf("no need to mark %q %v", topic, lost)
		return
	}
	if log.newest.lineage() != s.lineage {
		*log = fakeLog{}
	}
	if len(log.entries) > 0 {
		if e := log.entries[0]; e.mark != "" && lost.before(e.id) {
			w.logf("%q %v is marked", topic, lost)
			return
		}
	}
	r.write()
	ms := max(r.now(), s.ms+1, lost.ms+1)
	id := msgID{ms, s.lineage<<counterBits | 1<<nonceBits | w.rand.Uint64N(1<<nonceBits)}
	e := &fakeEntry{truth: tr, item: len(tr.items), id: id, prev: lost, at: time.UnixMilli(int64(ms)), mark: gapRolledBack}
	tr.items = append(tr.items, item{id: id, moment: w.moment})
	tr.note(e.item)
	w.count("marks")
	*log = fakeLog{[]*fakeEntry{e}, id, r.now() + uint64(w.cfg.logTTL().Milliseconds())*5/4}
	s.ms, s.counter = ms, 1
	r.emit(e)
}

// read returns a page of a stream.
func (r *fakeRedis) read(topic string, from msgID, after bool) (page []*fakeEntry) {
	for _, e := range r.log(r.w.truth(topic)).entries {
		if len(page) < modelPage && (from.before(e.id) || from == e.id && !after) {
			page = append(page, e)
		}
	}
	return page
}

// renew begins a new lineage.
func (r *fakeRedis) renew() {
	r.w.logf("a new lineage")
	r.w.count("lineages by lanes")
	r.begin()
	for _, tr := range r.topics {
		tr.end()
	}
	r.past = nil
}

// flush loses all.
func (r *fakeRedis) flush() {
	r.w.logf("flush of %d", slices.Index(r.w.partition, r))
	r.w.count("flushes")
	for i, tr := range r.topics {
		r.state.logs[i] = fakeLog{}
		tr.end()
	}
	r.state.lineage, r.state.lanes, r.past = 0, nil, nil
}

// rollBack is a failover to a replica that lags behind.
func (r *fakeRedis) rollBack() {
	if len(r.past) == 0 {
		return
	}
	w := r.w
	n := w.rand.IntN(len(r.past))
	r.old = r.state
	r.old.logs = slices.Clone(r.old.logs)
	r.state = r.past[n]
	r.past = r.past[:n]
	if w.rand.IntN(2) == 0 {
		w.count("clocks set back")
		r.behind += uint64(w.rand.IntN(3000))
	} else if w.rand.IntN(2) == 0 {
		r.behind = 0
	}
	w.logf("rollback of %d to %d-%d %v, %d ms behind", slices.Index(w.partition, r), r.state.ms, r.state.counter, r.state.items, r.behind)
	w.count("rollbacks")
	r.rollbacks++
	for i, tr := range r.topics {
		tr.lose(r.state.items[i])
	}
	for _, in := range w.instances {
		for _, l := range in.links {
			if l.redis != r {
				continue
			}
			switch {
			case !l.up:
			case w.rand.IntN(2) == 0:
				l.hangUp(w.rand.IntN(2) == 0)
			case w.rand.IntN(2) == 0:
				l.old, l.missed = true, true
				w.logf("%v stays behind", l)
			}
		}
	}
}

// haunt publishes a message to the Redis that was the one before the last failover. Those
// who are still subscribed there get it, and one of them may have published it and have an
// answer. That is only known to be lost if the logs have not begun anew since, and if the
// clock there is not behind: notes are not made of what seems to be before the last one.
func (r *fakeRedis) haunt() {
	w := r.w
	var links []*link
	var lanes []*fakeLane
	for _, in := range w.instances {
		for _, l := range in.links {
			if l.redis == r && l.old && !l.deaf {
				links = append(links, l)
				lanes = append(lanes, in.lanes...)
			}
		}
	}
	lanes = slices.DeleteFunc(lanes, func(lane *fakeLane) bool { return lane.redis != r || lane.batch != nil })
	w.count("ghosts")
	s, tr := &r.old, r.topics[w.rand.IntN(len(r.topics))]
	log := &s.logs[tr.index]
	if log.newest.lineage() != s.lineage {
		*log = fakeLog{}
	}
	s.ms = max(s.ms+1, uint64(w.now.UnixMilli()))
	acked := len(lanes) > 0 && s.lineage == r.state.lineage && w.rand.IntN(2) == 0
	if acked {
		s.ms = max(s.ms, r.state.ms+1)
	}
	it := item{
		id:     msgID{s.ms, s.lineage<<counterBits | 1<<nonceBits | w.rand.Uint64N(1<<nonceBits)},
		data:   fmt.Sprintf("%s %d ghost", tr.name, len(tr.items)),
		moment: w.moment, lost: true, ghost: true,
	}
	e := &fakeEntry{truth: tr, item: len(tr.items), id: it.id, prev: log.newest, event: "event0", at: w.now}
	if e.prev.isZero() {
		e.prev = floorAt(s.ms-uint64(w.cfg.logTTL().Milliseconds()), s.lineage)
	}
	tr.items, log.newest = append(tr.items, it), it.id
	w.logf("ghost %v", e)
	if acked {
		w.count("ghosts acknowledged")
		lane := lanes[w.rand.IntN(len(lanes))]
		lane.number++
		lane.lineage = s.lineage
		lane.batch = &fakeBatch{lane.number, []fakeMessage{{tr, e.event, 0, e.item}}}
		lane.remember()
	}
	for _, l := range links {
		if slices.Contains(l.active, tr.name) {
			l.wire = append(l.wire, subReply{tr.name, e})
		}
	}
}

// sharedClient is a subscriber over all its connections.
type sharedClient struct {
	w      *sharedWorld
	name   string
	form   form
	topics []string

	// The connection, nil if there is none.
	in    *instance
	c     *client
	wire  []byte   // written, not yet read
	room  int      // the socket takes no more than this
	over  bool     // the server has ended the stream
	quit  bool     // the client wants no more of it
	read  []byte   // read, not yet a whole event
	waits bool     // to be welcomed in some topic
	lacks []string // WebSocket: topics that were refused

	// What it knows.
	lastID   string            // SSE: the last event's
	inCursor []string          // SSE: the topics followed when it came
	since    map[string]string // WebSocket: the last ID of each topic
	from     *instance         // where it got that
	progress map[string]*sharedProgress
	forged   bool // its cursor was spoiled
}

// sharedProgress is what the model expects of a client in one topic.
type sharedProgress struct {
	start   int  // the item that is the first it must get, -1 while it waits to be welcomed
	last    int  // the item it got last
	gap     bool // a gap was signalled since
	skip    int  // policy KeepLatest: items before this one may be left out
	got     map[int]bool
	covered map[int]bool // items that a gap event has told of
}

type sharedTransport struct{ m *sharedClient }

func (t *sharedTransport) tryWrite(*socketWriter, []byte) (int, error) { panic("not used") }
func (t *sharedTransport) write([]byte) (int, error)                   { panic("not used") }
func (t *sharedTransport) check(bool) Reason                           { return "" }
func (t *sharedTransport) endWrite()                                   { t.m.over = true }
func (t *sharedTransport) close()                                      { t.m.over = true }

func (m *sharedClient) String() string { return m.name }

func (m *sharedClient) connect() {
	if m.c != nil {
		if !m.over && !m.quit {
			return
		}
		m.disconnect()
	}
	w := m.w
	m.in = w.instances[w.rand.IntN(len(w.instances))]
	m.room, m.over, m.quit, m.lacks = 20+w.rand.IntN(1000), false, false, nil
	m.c = newClient(Client{ID: m.name}, m.form, &sharedTransport{m}, m.in.env, w.now)
	w.logf("%v connects to %v, topics %q, %q %v", m, m.in, m.topics, m.lastID, m.since)
	m.expectTopics()
	if m.form != formSSE {
		cmd := &attach{client: m.c}
		if all := append([]string{broadcastTopic}, m.topics...); w.rand.IntN(2) == 0 {
			for _, topic := range all {
				cmd.first = append(cmd.first, m.subscription(topic))
			}
			m.in.apply(cmd)
		} else {
			m.in.apply(cmd)
			for _, topic := range all {
				m.in.apply(m.subscription(topic))
			}
		}
	} else {
		s := &sseRequest{info: Client{ID: m.name}, topics: m.topics}
		if m.lastID != "" {
			cur, ok := parseCursor(m.lastID)
			s.resume = &resume{cur, ok}
		}
		m.in.apply(&attach{client: m.c, topics: m.topics, resume: s.resume, hello: connectedHead(s)})
	}
	if len(m.in.broker.waiting[m.c]) > 0 {
		w.count("parked")
	}
}

func (m *sharedClient) follows() []string { return append([]string{broadcastTopic}, m.topics...) }

// expectTopics lets the model follow what the client follows: a new topic from when it is
// welcomed, a known one from where it was.
func (m *sharedClient) expectTopics() {
	topics := m.follows()
	for topic := range m.progress {
		if !slices.Contains(topics, topic) && (m.form != formSSE || !slices.Contains(m.inCursor, topic)) {
			delete(m.progress, topic)
			delete(m.since, topic)
		}
	}
	for _, topic := range topics {
		if m.progress[topic] == nil || m.form == formSSE && (m.lastID == "" || !slices.Contains(m.inCursor, topic)) {
			m.begin(topic)
		}
	}
}

// begin expects messages of a topic from when the client is welcomed.
func (m *sharedClient) begin(topic string) {
	m.progress[topic] = &sharedProgress{start: -1, last: -1, got: make(map[int]bool), covered: make(map[int]bool)}
	m.waits = true
}

// noteWelcome notes since when the client follows its topics.
func (m *sharedClient) noteWelcome() {
	m.waits = false
	for topic, p := range m.progress {
		if p.start >= 0 {
			continue
		}
		if m.c != nil && m.in.broker.find(m.c, topic) != nil {
			p.start = len(m.w.truth(topic).items)
		} else {
			m.waits = true
		}
	}
}

func (m *sharedClient) subscription(topic string) *subscribe {
	m.w.logf("%v subscribes to %q from %q", m, topic, m.since[topic])
	cmd := &subscribe{
		client: m.c, topic: topic, now: m.w.now,
		hello: appendJSONHead(nil, topic, eventSubscribed, "", m.w.now),
	}
	if since, ok := m.since[topic]; ok {
		cmd.resume = true
		cmd.since, _ = parseID(since)
	} else {
		m.begin(topic)
	}
	return cmd
}

// disconnect cuts the connection wherever it is; what lies in the socket is lost.
func (m *sharedClient) disconnect() {
	if m.c == nil {
		return
	}
	m.readSome(m.w.rand.IntN(len(m.wire) + 1))
	if len(m.read) > 0 {
		m.w.count("cut")
	}
	m.w.logf("%v disconnects", m)
	c, in := m.c, m.in
	m.c, m.in, m.wire, m.read = nil, nil, nil, nil
	c.abort(ReasonClientClosed)
	in.apply(&detach{c, m.w.now})
}

// changeTopics follows another set: an SSE client when it connects again.
func (m *sharedClient) changeTopics() {
	w := m.w
	if m.form == formSSE {
		if m.c == nil {
			m.topics = w.someTopics()
		}
		return
	}
	if m.c == nil || m.over || m.quit {
		return
	}
	if len(m.lacks) > 0 {
		topic := m.lacks[0]
		m.lacks = m.lacks[1:]
		m.in.apply(m.subscription(topic))
		return
	}
	if topic := modelTopics[w.rand.IntN(len(modelTopics))]; !slices.Contains(m.topics, topic) {
		if m.progress[topic] != nil {
			return // the last unsubscribe is not answered yet
		}
		m.topics = append(m.topics, topic)
		delete(m.since, topic)
		m.in.apply(m.subscription(topic))
		return
	}
	if len(m.topics) < 2 {
		return
	}
	topic := m.topics[0]
	w.logf("%v unsubscribes from %q", m, topic)
	m.topics = m.topics[1:]
	m.in.apply(&unsubscribe{client: m.c, topic: topic, now: w.now,
		reply: jsonReply(m.form, topic, eventUnsubscribed, "", msgID{}, w.now)})
}

// spoilCursor is a proxy or a program that does not give back what it got.
func (m *sharedClient) spoilCursor() {
	m.disconnect()
	if m.form == formSSE && len(m.lastID) > 2 {
		m.lastID, m.forged = m.lastID[:m.w.rand.IntN(len(m.lastID)-1)+1], true
	}
}

// readSome reads what the socket has and takes the whole events from it.
func (m *sharedClient) readSome(n int) {
	n = min(n, len(m.wire))
	m.read = append(m.read, m.wire[:n]...)
	m.wire = m.wire[n:]
	for m.c != nil && !m.quit && !m.w.t.Failed() {
		event, size := firstEvent(m.form, m.read)
		if size == 0 {
			return
		}
		switch {
		case m.form == formSSE:
			m.takeSSE(string(event))
		case event != nil:
			m.takeJSON(event)
		}
		m.read = m.read[size:]
	}
}

func (m *sharedClient) takeSSE(block string) {
	id, event, data := parseSSE(block)
	if event == "" {
		if strings.HasPrefix(block, "retry") && m.lastID == "" {
			m.w.count("sent away")
		}
		return // a heartbeat, or the farewell's retry
	}
	if id == "" || len(id) > 128 {
		m.w.fatalf("%v: event %q has the id %q", m, event, id)
	}
	from := m.from
	m.lastID, m.inCursor, m.from = id, m.follows(), m.in
	switch event {
	case eventConnected:
		var v struct{ Resumed bool }
		if err := json.Unmarshal([]byte(data), &v); err != nil {
			m.w.fatalf("%v: %v in %s", m, err, data)
		}
		if v.Resumed {
			m.resumed(from)
		}
	case eventGap:
		var v struct {
			Topics []string
			Reason Reason
		}
		if err := json.Unmarshal([]byte(data), &v); err != nil || len(v.Topics) == 0 {
			m.w.fatalf("%v: %v in %s", m, err, data)
		}
		for _, topic := range v.Topics {
			m.gap(topic, v.Reason)
		}
	default:
		m.message(data)
	}
}

func (m *sharedClient) takeJSON(payload []byte) {
	var v struct{ Topic, Event, Data, ID string }
	if err := json.Unmarshal(payload, &v); err != nil {
		m.w.fatalf("%v: %v in %s", m, err, payload)
		return
	}
	from := m.from
	m.from = m.in
	switch v.Event {
	case eventSubscribed:
		if m.since[v.Topic] != "" {
			m.resumed(from)
		}
		m.since[v.Topic] = v.ID
	case eventUnsubscribed:
		delete(m.progress, v.Topic)
		delete(m.since, v.Topic)
	case eventGap:
		m.since[v.Topic] = v.ID
		m.gap(v.Topic, Reason(v.Data))
	case eventError:
		if v.Data != ErrUnavailable.Error() {
			m.w.fatalf("%v: error frame %s", m, payload)
		}
		m.w.count("refused")
		if v.Topic == broadcastTopic {
			m.quit = true // other topics would bring new broadcasts first: it has to come back
		} else if slices.Contains(m.topics, v.Topic) {
			m.lacks = append(m.lacks, v.Topic)
		}
	default:
		m.since[v.Topic] = v.ID
		m.message(v.Data)
	}
}

func (m *sharedClient) resumed(from *instance) {
	m.w.count("resumed")
	if from != m.in {
		m.w.count("resumed elsewhere")
	}
}

func (m *sharedClient) gap(topic string, why Reason) {
	m.w.logf("%v gets a gap in %q: %s", m, topic, why)
	m.w.count("gap " + string(why))
	if m.w.lossless || m.w.quiet {
		m.w.fatalf("%v: a gap in %q (%s) although nothing was lost", m, topic, why)
	}
	tr, p := m.w.truth(topic), m.progress[topic]
	if began := tr.redis.beginnings > 1; why == gapRolledBack && tr.redis.rollbacks == 0 && !began || why == gapRestarted && !began || why == gapUnknownCursor && !m.forged {
		m.w.fatalf("%v: a gap in %q because of %q, which never happened", m, topic, why)
	}
	if p == nil {
		return
	}
	p.gap = true
	for i, it := range tr.items {
		if it.lost && !p.got[i] {
			p.covered[i] = true
		}
	}
}

// message compares a message with what the model expects: it is the next that the client
// has not got, unless a gap event came before it. After a gap event it may be any, also
// one that it got before.
//
// A loss may become known late: what others publish in the meantime goes on from what is
// left. So lost messages that are missing before one that was published before the loss
// was noted may be signalled later, but not after one that was published later.
func (m *sharedClient) message(data string) {
	topic, rest, _ := strings.Cut(data, " ")
	number, _, _ := strings.Cut(rest, " ")
	i, _ := strconv.Atoi(number)
	m.w.logf("%v gets %q %d", m, topic, i)
	m.w.count("received")
	tr, p := m.w.truth(topic), m.progress[topic]
	switch {
	case p == nil || p.start < 0:
		m.w.fatalf("%v: message %d of %q, which it does not follow", m, i, topic)
		return
	case i >= len(tr.items) || tr.items[i].data != data:
		m.w.fatalf("%v: message %q was never published", m, data)
		return
	case !p.gap && i <= p.last:
		m.w.fatalf("%v: message %d of %q, after %d", m, i, topic, p.last)
	}
	from := p.start
	switch {
	case p.gap:
	case tr.items[i].ghost:
		from = i // what else there is it will find out later
	case p.last < 0:
	case tr.items[p.last].ghost:
		m.w.fatalf("%v: message %d of %q after ghost %d", m, i, topic, p.last)
	default:
		from = p.last + 1
	}
	for k := from; k < i; k++ {
		if !p.got[k] && !p.covered[k] && !m.mayLack(tr, p, k, i) {
			m.w.fatalf("%v: message %d of %q, want %d: %+v", m, i, topic, k, tr.items[k])
			return
		}
	}
	if !p.got[i] {
		maps.DeleteFunc(p.covered, func(k int, _ bool) bool { return k > i })
	}
	p.got[i], p.last, p.gap = true, i, false
}

// mayLack reports whether item k may be missing before item i.
func (m *sharedClient) mayLack(tr *truth, p *sharedProgress, k, i int) bool {
	it := &tr.items[k]
	switch {
	case it.data == "": // a mark
		return true
	case p.gap || k < p.skip:
		p.covered[k] = true
		return true
	case !it.lost:
		return false
	case k < p.start || !it.acked || it.exempt:
		return true
	case it.noted > 0 && it.noted < tr.items[i].moment:
		return false
	}
	m.w.count("lost and told late")
	return true
}

// finish checks that in the end, without any more faults, everybody has everything or
// knows of a gap; and that it stays so while topics expire of which nobody misses anything.
func (w *sharedWorld) finish() {
	w.calm = true
	w.logf("the end begins")
	w.rounds(4)
	w.checkClients()
	w.publishToAll()
	w.rounds(1)
	w.publishToAll() // a deaf subscription is found when it was seen twice
	w.rounds(3)
	w.checkClients()
	w.quiet = true
	for range 3 {
		w.pass(w.cfg.logTTL() / 2)
		w.rounds(1)
	}
	w.quiet = false
	w.publishToAll()
	w.rounds(3) // a topic may have been opened, on a deaf subscription, after the messages before
	w.checkClients()
	if w.t.Failed() {
		return
	}
	for _, in := range w.instances {
		in.broker.checkInvariants()
		for _, l := range in.links {
			if (l.deaf || l.old) && len(l.followed) > 0 {
				w.fatalf("%v is still deaf", l)
			}
		}
		for _, t := range in.broker.topics {
			if len(t.subs) == 0 {
				w.fatalf("%v still has %q", in, t.name)
			}
		}
	}
}

// rounds lets everybody do all there is to do, and look for what is missing, several times.
func (w *sharedWorld) rounds(n int) {
	for range n {
		if w.t.Failed() {
			return
		}
		for _, c := range w.clients {
			c.connect()
			for len(c.lacks) > 0 {
				c.changeTopics()
			}
		}
		for _, in := range w.instances {
			for _, lane := range in.lanes {
				lane.goOn(true)
				lane.verify()
			}
			for _, l := range in.links {
				l.check = true
			}
		}
		for range 2 { // what one does may be news for another
			for _, in := range w.instances {
				in.quiesce()
			}
		}
		w.reckon()
		w.pass(8 * time.Second)
	}
}

func (w *sharedWorld) checkClients() {
	for _, c := range w.clients {
		c.checkAll()
	}
}

// publishToAll publishes one message to every topic.
func (w *sharedWorld) publishToAll() {
	for _, tr := range w.truths {
		in := w.instances[w.rand.IntN(len(w.instances))]
		i := slices.IndexFunc(in.lanes, func(l *fakeLane) bool { return l.redis == tr.redis })
		in.lanes[i].goOn(true)
		in.lanes[i].send(&fakeBatch{messages: []fakeMessage{{tr, "event0", 0, -1}}})
		in.lanes[i].goOn(true)
	}
}

// checkAll checks that the client has got everything, or knows of a gap.
func (m *sharedClient) checkAll() {
	if m.w.t.Failed() {
		return
	}
	if m.c == nil || m.over || m.quit {
		m.w.fatalf("%v was disconnected although it reads", m)
		return
	}
	for _, topic := range m.follows() {
		tr, p := m.w.truth(topic), m.progress[topic]
		if p == nil || p.start < 0 {
			m.w.fatalf("%v still waits for %q", m, topic)
			return
		}
		for k := p.start; k < len(tr.items) && !p.gap; k++ {
			it := &tr.items[k]
			if it.data != "" && !p.got[k] && !p.covered[k] && !it.exempt && (it.acked || !it.lost) {
				m.w.fatalf("%v: %q ends with %d, without message %d, and no gap was signalled: %+v", m, topic, p.last, k, *it)
				return
			}
		}
	}
}

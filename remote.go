package pushlet

import (
	"slices"
	"time"
)

// Distributed mode, the broker's part. Each topic is a log that all instances share, in
// Redis; the topicLog is this instance's memory of its end. What arrives may be doubled,
// out of order or incomplete. Here it is put in order by the links between messages:
// what joins is delivered, what does not is set aside until the log was read.
//
// The connector does the I/O. The two never wait for each other: the broker asks by
// methods of sharedLog, which only take note, and is answered by commands.

// With a store of the application's own (store.go) it is the same, with one instance and
// the storeLog for a connector.

// A sharedLog is the connector as the broker sees it. Its methods do not block.
type sharedLog interface {
	// follow asks for all messages of a topic from now on, until unfollow. The first
	// answer is a sighting, once nothing that follows it can be missed.
	follow(topic string)
	unfollow(topic string)
	// fill asks for the messages from a position on. The answer is one filled.
	fill(topic string, from msgID)
	// mark asks to note in the log that messages up to lost are gone, and then for the
	// messages from there on, as fill does.
	mark(topic string, lost msgID)
	// stale says that messages do not arrive by themselves.
	stale(topic string)
}

// The commands that the connector sends.
type (
	// arrival is a message that was published, with its ID and its link.
	arrival struct {
		frame *frame
		now   time.Time
	}
	// sighting is where topics are in Redis.
	sighting struct {
		lineage uint64
		now     uint64 // milliseconds, by the clock of Redis
		fresh   bool   // the topics were subscribed to before that, so all after it arrives
		topics  []sighted
	}
	sighted struct {
		name  string
		asked msgID // where this instance was, zero if it was not yet
		held  bool  // asked is in the log
		last  msgID // the newest, zero if there are none
	}
	// filled is what the log holds from a position on, oldest first.
	filled struct {
		topic   string
		from    msgID // zero: from the oldest
		lineage uint64
		now     uint64
		frames  []*frame
		sure    bool // what is not there was removed, and all newer messages arrive by themselves
		aged    bool // of what is before frames the newest is too old
	}
	// inquiry asks where the broker is in topics; answer has room for it.
	inquiry struct {
		topics []string
		answer chan<- []msgID
	}
)

func (*arrival) isCommand()  {}
func (*sighting) isCommand() {}
func (*filled) isCommand()   {}
func (*inquiry) isCommand()  {}

// sharedTopic is what a topic has in distributed mode only.
type sharedTopic struct {
	open      bool     // its position is known: everything after it will arrive
	whole     bool     // memory reaches back as far as Redis, or as its limits allow
	stash     []*frame // arrived, but do not join yet
	bytes     int      // of the stash
	filling   bool     // a fill was asked for
	asked     msgID    // the topic's position then
	fills     int      // how many were asked for; the last is answered unless filling
	again     bool     // another one is wanted
	reach     msgID    // from there
	marks     int      // how many were asked for in vain
	fruitless int      // how many in a row did not make the stash join
	suspect   msgID    // the topic's position when Redis was seen ahead
	unheard   int      // how often that was since a message arrived by itself
	confirmed uint64   // milliseconds, by the clock of Redis, when nothing was after the topic's position
	parked    []*parked
	dropped   int       // of them, at most: they were given up
	idleSince time.Time // without followers
}

const (
	// maxStash bounds what is set aside for one topic. More is read from Redis.
	maxStashMessages = 1024
	maxStashBytes    = 1 << 20
	// maxFruitless is after how many fills that do not help something else must be wrong.
	maxFruitless = 3
	// followLinger is how long a topic is kept that nobody follows any more.
	followLinger = 10 * time.Second
	// parkLimit is how long a client waits for Redis before it is sent away.
	parkLimit = 10 * time.Second
)

// share makes the broker one of several. It is called before run.
func (b *broker) share(log sharedLog) {
	b.shared = log
	b.waiting = make(map[*client][]*parked)
	b.all.last = msgID{}
	b.all.shared = new(sharedTopic)
	b.all.history = true
	log.follow(broadcastTopic)
}

// sharedLimits are the limits of a topic's memory. Even without history the newest
// message is kept, so that its position can be told from others.
func sharedLimits(l historyLimits) historyLimits {
	if l.off() {
		return historyLimits{1, 1 << 20, time.Minute}
	}
	return l
}

func (b *broker) byName(name string) *topic {
	if name == broadcastTopic {
		return b.all
	}
	return b.topics[name]
}

// arrive takes a message from Redis.
func (b *broker) arrive(f *frame) {
	t := b.byName(f.topic)
	if t != nil {
		t.shared.unheard = 0
	}
	switch {
	case t == nil: // nobody follows it any more
		f.release()
	case t.shared.open && len(t.shared.stash) == 0 && t.joins(f):
		b.accept(t, f)
	case t.shared.open && b.isPast(t, f):
		f.release()
	default:
		b.setAside(t, f)
		if t.shared.open {
			b.fill(t, f.id)
		}
	}
}

// joins reports whether nothing is missing between where t is and f. The first message
// of a log has a link that says since when there was none: whoever has seen the topic
// empty since then has missed nothing.
func (t *topic) joins(f *frame) bool {
	if f.mark != "" {
		return false // whoever sees it may have missed something
	}
	if f.prev == t.last {
		return true
	}
	return f.prev.isFloor() && t.last.isFloor() && f.prev.lineage() == t.last.lineage() &&
		!t.last.before(f.prev) && t.last.before(f.id)
}

// find returns the message with that ID if it is in memory.
func (t *topic) find(id msgID) *frame {
	if t.state == nil {
		return nil
	}
	log := &t.state.log
	at := log.head + log.len() - len(log.from(id)) - 1
	if at < log.head || log.frames[at].id != id {
		return nil
	}
	return log.frames[at]
}

// isPast reports whether f is from before where t is: one that came twice, or that was
// published before the topic was opened. If it is neither, because Redis has gone back and
// its clock is behind, the next sighting shows it. Before a topic without messages there are
// none but what has expired: else the clock is behind.
func (b *broker) isPast(t *topic, f *frame) bool {
	return !t.last.before(f.id) && f.id.lineage() == t.last.lineage() &&
		(!t.last.isFloor() || f.id.ms+b.logTTL() < t.last.ms)
}

// accept gives a message that joins its place, and fans it out.
func (b *broker) accept(t *topic, f *frame) {
	f.topic = t.name
	t.last = f.id
	b.see(f.id)
	f.all = b.all.last
	t.shared.suspect = msgID{}
	t.shared.confirmed = max(t.shared.confirmed, f.id.ms)
	b.stateOf(t).log.append(f)
	b.fanOut(t, f)
	f.release()
}

// see keeps the newest position of all.
func (b *broker) see(id msgID) {
	if b.last.before(id) {
		b.last = id
	}
}

func (b *broker) setAside(t *topic, f *frame) {
	s := t.shared
	if len(s.stash) >= maxStashMessages || s.bytes+f.size() > maxStashBytes {
		t.dropStash() // Redis has them
	}
	s.stash = append(s.stash, f)
	s.bytes += f.size()
}

func (t *topic) dropStash() {
	for _, f := range t.shared.stash {
		f.release()
	}
	clear(t.shared.stash)
	t.shared.stash, t.shared.bytes = nil, 0
}

// unstash delivers what was set aside as far as it joins.
func (b *broker) unstash(t *topic) {
	s := t.shared
	for len(s.stash) > 0 {
		f := s.stash[0]
		switch {
		case t.joins(f):
			b.accept(t, f)
		case b.isPast(t, f):
			f.release()
		default:
			return
		}
		t.shift()
	}
}

// purge drops what was set aside of another lineage, and reports whether there was any.
func (t *topic) purge(lineage uint64) bool {
	s := t.shared
	had := len(s.stash)
	s.stash = slices.DeleteFunc(s.stash, func(f *frame) bool {
		other := f.id.lineage() != lineage
		if other {
			s.bytes -= f.size()
			f.release()
		}
		return other
	})
	return len(s.stash) < had
}

// shift takes the first message off the stash.
func (t *topic) shift() {
	s := t.shared
	s.bytes -= s.stash[0].size()
	s.stash[0] = nil
	if s.stash = s.stash[1:]; len(s.stash) == 0 {
		s.stash = nil
	}
}

// fill asks for what Redis has from a position on, and in any case from where t is. While
// one fill is on its way all others wish for the next.
func (b *broker) fill(t *topic, from msgID) {
	s := t.shared
	if t.last.before(from) {
		from = t.last
	}
	if s.filling {
		if !s.again || from.before(s.reach) {
			s.again, s.reach = true, from
		}
		return
	}
	s.again = false
	s.fills++
	b.filling(t)
	b.shared.fill(t.name, from)
}

// filling notes that something was asked for whose answer is one filled. If it is the
// answer to a fill that has led to this, the fill is not yet answered for those who wait.
func (b *broker) filling(t *topic) {
	s := t.shared
	s.filling, s.asked = true, t.last
}

// sight compares where topics are in Redis with where they are here.
func (b *broker) sight(cmd *sighting) {
	for _, seen := range cmd.topics {
		at := seen.last
		if at.isZero() {
			at = floorAt(cmd.now, cmd.lineage)
		}
		t := b.byName(seen.name)
		switch {
		case t == nil:
		case !t.shared.open:
			if cmd.fresh {
				b.open(t, at, cmd.now)
			}
		case seen.asked == t.last: // else messages have arrived in the meantime
			b.compare(t, seen, at, cmd)
		}
	}
}

// open begins a topic at its position in Redis.
func (b *broker) open(t *topic, at msgID, now uint64) {
	s := t.shared
	s.open, s.confirmed = true, now
	t.last = at
	b.see(at)
	b.unstash(t)
	if len(s.stash) > 0 {
		b.fill(t, t.last)
	}
	b.unpark(t)
}

// compare looks for messages that did not arrive, and for messages that Redis has lost.
// Those that were published after the topic was subscribed to may be on their way: that
// they are missing counts when it was seen twice.
func (b *broker) compare(t *topic, seen sighted, at msgID, cmd *sighting) {
	s := t.shared
	idle := t.last.isFloor() || t.last.ms+b.logTTL() < cmd.now
	switch {
	case at == t.last:
		s.suspect, s.confirmed = msgID{}, cmd.now
	case at.isFloor() && at.lineage() == t.last.lineage() && idle && s.confirmed+b.logTTL() >= cmd.now:
		// Nothing there, and nothing here but what has expired there.
		if len(s.stash) == 0 && !s.filling {
			t.last, s.confirmed = at, cmd.now
			b.see(at)
		}
	case cmd.fresh:
		s.unheard = 0
		b.fill(t, at)
	default:
		if s.unheard++; s.unheard > 1 {
			b.shared.stale(t.name)
		}
		if s.suspect == t.last || !seen.held || at.lineage() != t.last.lineage() {
			b.fill(t, at)
		}
		s.suspect = t.last
	}
}

// logTTL is config.logTTL in milliseconds.
func (b *broker) logTTL() uint64 { return uint64(b.cfg.logTTL().Milliseconds()) }

// logTTL is how long a topic's log stays in Redis after its newest message, at least.
func (c *config) logTTL() time.Duration {
	ttl := max(c.lastMessageAge, time.Minute, c.history.fallback.age)
	for _, rule := range c.history.rules {
		ttl = max(ttl, rule.value.age)
	}
	return ttl
}

// filled takes what was read from Redis: what is older than memory goes before it, what
// is newer is delivered.
func (b *broker) filled(cmd *filled) {
	t := b.byName(cmd.topic)
	if t == nil || !t.shared.filling {
		return
	}
	s := t.shared
	s.filling = false
	s.whole = s.whole || cmd.from.isZero()
	was, marks := t.last, s.marks
	if t.purge(cmd.lineage) {
		s.again, s.reach = true, t.last // the answer may be the older one
	}
	if cmd.lineage != t.last.lineage() && !cmd.from.isZero() {
		b.filling(t) // IDs of different lineages are in no order: read it all
		b.shared.fill(t.name, msgID{})
		return
	}
	b.prepend(t, cmd.frames)
	if cmd.aged && t.state != nil && t.state.log.cause == "" {
		t.state.log.cause = gapExpired
	}
	if !cmd.sure && (t.last == s.asked || t.last.lineage() != cmd.lineage) && !b.checkLoss(t, cmd) {
		return // it has asked for a mark
	}
	for _, f := range cmd.frames {
		if t.last.before(f.id) {
			if f.mark != "" {
				b.breakLog(t, f.id, f.mark)
				continue
			}
			if !t.joins(f) {
				why := t.gapBefore(f) // it was trimmed between two reads, or what has arrived is lost
				if why == gapRolledBack && b.note(t) {
					return
				}
				b.breakLog(t, f.prev, why)
			}
			b.accept(t, f)
		}
	}
	if s.marks == marks {
		s.marks = 0
	}
	b.unstash(t)
	if len(s.stash) == 0 || t.last != was {
		s.fruitless = 0
	} else if s.fruitless++; s.fruitless >= maxFruitless {
		// What has arrived is not in Redis: it comes from another, such as an old master.
		t.dropStash()
		b.shared.stale(t.name)
		s.fruitless = 0
	}
	b.unpark(t)
	if s.filling {
		return
	}
	switch {
	case s.again:
		b.fill(t, s.reach)
	case len(s.stash) > 0:
		b.fill(t, t.last)
	}
}

// prepend puts older messages before those in memory, if the links join.
func (b *broker) prepend(t *topic, frames []*frame) {
	for i := len(frames) - 1; i >= 0; i-- {
		if mark := frames[i]; mark.mark != "" { // there the log begins
			frames = frames[i+1:]
			defer func() {
				if t.floor() == mark.id {
					b.stateOf(t).log.cause = mark.mark
				}
			}()
			break
		}
	}
	floor := t.floor()
	n := 0
	for n < len(frames) && !floor.before(frames[n].id) {
		n++
	}
	if n == 0 || frames[n-1].id != floor {
		return
	}
	for i, f := range frames[:n] {
		f.topic = t.name
		if i > 0 && f.prev != frames[i-1].id {
			return // it was trimmed between two reads
		}
	}
	log := &b.stateOf(t).log
	log.prepend(frames[:n])
	log.expire(b.now) // Redis keeps them a little longer
}

// checkLoss finds out whether what Redis has goes on from where t is, and if not begins
// the log anew, with a gap. It reports false if it has asked for the loss to be noted in
// Redis first, for those who are on other instances or come later.
func (b *broker) checkLoss(t *topic, cmd *filled) bool {
	at, why := t.last, Reason("")
	newer := cmd.frames
	for len(newer) > 0 && !at.before(newer[0].id) {
		newer = newer[1:]
	}
	older := len(cmd.frames) - len(newer)
	switch {
	case cmd.lineage != at.lineage():
		why = gapRestarted
	case older > 0 && cmd.frames[older-1].id == at:
		return true
	case len(newer) > 0 && t.joins(newer[0]):
		return true
	case older > 0 && at.isFloor(): // published since, by a clock that is behind
		switch first := cmd.frames[0]; {
		case !first.prev.isFloor():
			b.breakLog(t, first.prev, gapTrimmed)
		case t.state != nil && t.state.log.len() > 0:
			b.breakLog(t, first.prev, gapExpired)
		default:
			t.last = first.prev // nothing is missing: it was empty
		}
		return true
	case older > 0:
		why = gapRolledBack
	case len(newer) > 0:
		why = t.gapBefore(newer[0])
	case (at.isFloor() || at.ms+b.logTTL() < cmd.now) && t.shared.confirmed+b.logTTL() >= cmd.now:
		return true // nothing there, and nothing here but what has expired there
	case at.isFloor() || at.ms+b.logTTL() < cmd.now:
		why = gapExpired // perhaps
	default:
		why = gapRolledBack
	}
	noted := len(newer) > 0 && newer[0].mark != ""
	if why == gapRolledBack && !noted && b.note(t) {
		return false
	}
	base := floorAt(cmd.now, cmd.lineage)
	switch {
	case len(newer) > 0:
		base = newer[0].prev
		if noted {
			base = newer[0].id
		}
	case len(cmd.frames) > 0:
		base = cmd.frames[len(cmd.frames)-1].id
	}
	b.breakLog(t, base, why)
	if len(cmd.frames) == 0 {
		t.shared.confirmed = cmd.now
	}
	return true
}

// note asks to note in Redis that what is up to where t is was lost, unless it was asked
// several times in vain: then something else is wrong.
func (b *broker) note(t *topic) bool {
	s := t.shared
	if s.marks++; s.marks > maxFruitless {
		return false
	}
	b.filling(t)
	b.shared.mark(t.name, t.last)
	return true
}

// gapBefore says why what is between where t is and f is not there.
func (t *topic) gapBefore(f *frame) Reason {
	switch {
	case f.mark != "":
		return f.mark
	case f.prev.lineage() != t.last.lineage():
		return gapRestarted
	case !t.last.before(f.prev):
		return gapRolledBack
	case f.prev.isFloor():
		return gapExpired
	}
	return gapTrimmed
}

// breakLog begins the topic's log anew at base, and tells everybody who is live of the
// gap. Those who are behind will find that their position is not held any more.
func (b *broker) breakLog(t *topic, base msgID, why Reason) {
	log := &b.stateOf(t).log
	for log.len() > 0 {
		log.drop(why)
	}
	log.cause = why
	t.last = base
	t.shared.whole, t.shared.marks = true, 0
	b.see(base)
	for _, s := range t.subs {
		if !s.behind {
			b.tellGaps(s.client, []gap{{s, why}})
		}
	}
}

// holds reports whether a client that has got up to pos has missed nothing but what is in
// memory. An ID must be one of this log, since Redis may have gone back behind others.
func (b *broker) holds(t *topic, pos msgID) bool {
	if pos == t.last || t.find(pos) != nil {
		return true
	}
	var after []*frame
	if t.state != nil {
		after = t.state.log.from(pos)
	}
	if len(after) > 0 {
		since := after[0].prev
		return pos == since && t.floor() == since || pos.isFloor() && sinceFloor(pos, since)
	}
	return pos.isFloor() && t.last.isFloor() && pos.lineage() == t.last.lineage() && pos.ms+b.logTTL() >= t.last.ms
}

// sinceFloor reports whether there was no message between a position of an empty topic
// and one whose link is since.
func sinceFloor(pos, since msgID) bool {
	return since.isFloor() && since.lineage() == pos.lineage() && !pos.before(since)
}

// sharedCause says why a position is not held.
func (b *broker) sharedCause(t *topic, pos msgID) Reason {
	floor := t.floor()
	switch {
	case pos.lineage() != t.last.lineage():
		return gapRestarted
	case !pos.before(floor):
		return gapRolledBack
	case t.state != nil && t.state.log.cause != "":
		return t.state.log.cause
	case floor.isFloor():
		return gapExpired
	case pos.ms+uint64(b.cfg.history.of(t.name).age.Milliseconds()) < t.last.ms:
		return gapExpired
	}
	return gapTrimmed
}

// positions says where this instance is in topics: zero for those that are not open.
func (b *broker) positions(names []string) []msgID {
	at := make([]msgID, len(names))
	for i, name := range names {
		if t := b.byName(name); t != nil && t.shared.open {
			at[i] = t.last
		}
	}
	return at
}

// parked is a command of a client that has to wait until its topics are open, and memory
// reaches back to its positions.
type parked struct {
	client *client
	cmd    command // *attach or *subscribe
	needs  []need
	since  time.Time
}

type need struct {
	topic  *topic
	resume bool  // from pos
	pos    msgID // must be held
	after  int   // or it is known not to be, once that many fills are answered
}

func (b *broker) needsOfAttach(cmd *attach) []need {
	needs := make([]need, 0, len(cmd.topics)+1)
	for _, name := range cmd.topics {
		n := need{topic: b.topicFor(name)}
		if cmd.resume != nil {
			n.pos, n.resume = cmd.resume.cursor.position(n.topic.hash)
		}
		needs = append(needs, n)
	}
	all := need{topic: b.all}
	if cmd.resume != nil {
		all.pos, all.resume = cmd.resume.cursor.all, cmd.resume.known
	}
	return append(needs, all)
}

func (b *broker) needsOfSubscribe(cmd *subscribe) []need {
	n := need{topic: b.all, pos: cmd.since, resume: cmd.resume}
	if cmd.topic == broadcastTopic {
		return []need{n}
	}
	n.topic = b.topicFor(cmd.topic)
	return []need{n, {topic: b.all}}
}

// park lets a command wait, and reports false if it need not. The commands of a client
// keep their order.
func (b *broker) park(c *client, cmd command, needs []need) bool {
	p := &parked{c, cmd, needs, b.now}
	if b.isReady(p) && len(b.waiting[c]) == 0 {
		return false
	}
	b.waiting[c] = append(b.waiting[c], p)
	for _, n := range needs {
		n.topic.shared.parked = append(n.topic.shared.parked, p)
	}
	return true
}

// isReady reports whether a command need not wait any more, and asks for what lacks.
func (b *broker) isReady(p *parked) bool {
	ready := true
	for i := range p.needs {
		n := &p.needs[i]
		if !n.topic.shared.open {
			ready = false
		} else if n.resume && !b.holds(n.topic, n.pos) && b.mayReach(n) {
			ready = false
		}
	}
	return ready
}

// mayReach reports whether Redis may have what memory has not, after asking for it.
func (b *broker) mayReach(n *need) bool {
	t, s := n.topic, n.topic.shared
	if n.after > 0 {
		done := s.fills
		if s.filling {
			done--
		}
		return done < n.after
	}
	from := n.pos
	switch {
	case n.pos.isZero() || n.pos.lineage() != t.last.lineage():
		return false
	case t.last.before(n.pos): // another instance may be ahead of this one
	case s.whole || !n.pos.before(t.floor()):
		return false
	case s.fills > 0:
		from = msgID{} // the second time read it all: many clients may be coming back
	}
	n.after = s.fills + 1
	b.fill(t, from)
	return true
}

// unpark lets those go on who need not wait any more.
func (b *broker) unpark(t *topic) {
	list := t.shared.parked
	t.shared.parked, t.shared.dropped = nil, 0
	for i, p := range list {
		list[i] = nil
		switch {
		case p.cmd == nil: // gone
		case !b.isReady(p) || b.waiting[p.client][0] != p:
			t.shared.parked = append(t.shared.parked, p)
		default:
			b.goOn(p)
		}
	}
}

// goOn does what was parked, and then what else of that client can be done.
func (b *broker) goOn(p *parked) {
	b.forgetParked(p)
	switch cmd := p.cmd.(type) {
	case *attach:
		b.welcome(cmd)
	case *subscribe:
		b.subscribeNow(cmd, b.find(p.client, cmd.topic))
	}
	p.cmd = nil
	b.goOnWith(p.client)
}

// goOnWith does what a client waits for next, if that can be done.
func (b *broker) goOnWith(c *client) {
	if list := b.waiting[c]; len(list) > 0 && b.isReady(list[0]) {
		b.goOn(list[0])
	}
}

// forgetParked takes a command off its client's list.
func (b *broker) forgetParked(p *parked) {
	list := b.waiting[p.client]
	for i := range list {
		if list[i] == p {
			list = append(list[:i], list[i+1:]...)
			break
		}
	}
	if b.waiting[p.client] = list; len(list) == 0 {
		delete(b.waiting, p.client)
	}
}

// drop gives up a command that is parked.
func (b *broker) drop(p *parked, now time.Time) {
	b.forgetParked(p)
	p.cmd = nil // for unpark
	for _, n := range p.needs {
		n.topic.shared.compact()
		if n.topic != b.all && len(n.topic.subs) == 0 {
			b.setIdle(n.topic, now)
		}
	}
}

// unparkClient gives up what a client waits for, and reports whether it was never welcomed.
func (b *broker) unparkClient(c *client) (unwelcome bool) {
	for len(b.waiting[c]) > 0 {
		p := b.waiting[c][0]
		_, isAttach := p.cmd.(*attach)
		unwelcome = unwelcome || isAttach
		b.drop(p, b.now)
	}
	return unwelcome
}

// unsubscribeParked gives up the subscribes to a topic that a client waits for.
func (b *broker) unsubscribeParked(c *client, name string) {
	for i := 0; i < len(b.waiting[c]); {
		p := b.waiting[c][i]
		if cmd, ok := p.cmd.(*subscribe); ok && cmd.topic == name {
			b.drop(p, b.now)
			continue
		}
		i++
	}
	b.goOnWith(c)
}

// sweepParked sends those away for whom Redis takes too long.
func (b *broker) sweepParked(now time.Time) {
	for c, list := range b.waiting {
		for len(list) > 0 && now.Sub(list[0].since) > parkLimit {
			switch cmd := list[0].cmd.(type) {
			case *attach:
				b.end(c, ReasonUnavailable)
			case *subscribe:
				b.drop(list[0], now)
				b.tell(c, jsonReply(c.form, wireTopic(cmd.topic), eventError, ErrUnavailable.Error(), msgID{}, now))
				b.goOnWith(c)
			}
			list = b.waiting[c]
		}
	}
}

// compact takes commands that were given up off the list, when these are many: while Redis
// is away nobody else does.
func (s *sharedTopic) compact() {
	if s.dropped++; s.dropped > len(s.parked)/2 {
		s.parked = slices.DeleteFunc(s.parked, func(p *parked) bool { return p.cmd == nil })
		s.dropped = 0
	}
}

// setIdle notes that nobody follows a topic any more.
func (b *broker) setIdle(t *topic, now time.Time) {
	t.shared.idleSince = now
	b.idle = append(b.idle, t)
}

// sweepIdle forgets topics that nobody has followed for a while.
func (b *broker) sweepIdle(now time.Time) {
	for len(b.idle) > 0 && now.Sub(b.idle[0].shared.idleSince) > followLinger {
		t := b.idle[0]
		b.idle[0] = nil
		b.idle = b.idle[1:]
		switch {
		case len(t.subs) > 0 || t.isAwaited() || b.topics[t.name] != t:
		case t.shared.filling: // another topic of that name would take the answer for its own
			b.setIdle(t, now)
		default:
			t.dropStash()
			t.state = nil // for sweepHistory, if it has it
			delete(b.topics, t.name)
			b.shared.unfollow(t.name)
		}
	}
	if len(b.idle) == 0 {
		b.idle = nil
	}
}

func (t *topic) isAwaited() bool {
	for _, p := range t.shared.parked {
		if p.cmd != nil {
			return true
		}
	}
	return false
}

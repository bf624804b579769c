package pushlet

// resume says where a client stopped.
type resume struct {
	cursor cursor
	known  bool // false: there was a cursor, but it cannot be read
}

// handout is a position to give to a client that may come back with it.
func (b *broker) handout(s *subscription) msgID {
	if s.behind || b.shared != nil {
		return s.position()
	}
	return b.last
}

// rewind puts a client that just came back to where its cursor says, and returns the
// gaps. A topic that the cursor does not know is followed from now on.
func (b *broker) rewind(c *client, from *resume) (gaps []gap) {
	back := func(s *subscription, pos msgID) {
		b.setBehind(s, pos)
		if why := b.missing(s.topic, pos, from.known); why != "" {
			gaps = append(gaps, gap{s, why})
		}
	}
	for _, s := range c.topics {
		pos, ok := from.cursor.position(s.topic.hash)
		if from.known && !ok {
			pos = b.handout(s)
		}
		back(s, pos)
	}
	back(&c.all, from.cursor.all)
	return gaps
}

// A gap is a hole in what a client gets of one topic, and why.
type gap struct {
	sub *subscription
	why Reason
}

// missing says why messages after pos are no longer there, or "" if they all are.
func (b *broker) missing(t *topic, pos msgID, known bool) Reason {
	switch {
	case !known || pos.isZero():
		return gapUnknownCursor
	case b.reaches(t, pos):
		return ""
	case b.shared != nil:
		return b.cause(t, pos)
	case pos.lineage() != b.lineage || pos.before(b.start):
		return gapRestarted
	case b.last.before(pos):
		return gapUnknownCursor
	}
	return b.cause(t, pos)
}

// reaches reports whether memory has all that a client at pos has missed.
func (b *broker) reaches(t *topic, pos msgID) bool {
	if b.shared != nil {
		return b.holds(t, pos)
	}
	return pos.lineage() == b.lineage && !pos.before(t.floor()) && !b.last.before(pos)
}

// cause says why messages after pos are gone.
func (b *broker) cause(t *topic, pos msgID) Reason {
	if b.shared != nil {
		return b.sharedCause(t, pos)
	}
	return t.cause()
}

// tellGaps tells a client what it misses and puts it behind the gaps: one event for
// each reason to an SSE client, one for each topic to a client of JSON.
func (b *broker) tellGaps(c *client, gaps []gap) {
	for len(gaps) > 0 {
		why := gaps[0].why
		var others []gap
		var names []string
		for _, g := range gaps {
			if g.why != why {
				others = append(others, g)
				continue
			}
			g.sub.pos = g.sub.topic.floor()
			names = append(names, wireTopic(g.sub.topic.name))
			b.counters.gaps.add(why, 1)
			if c.form != formSSE {
				b.tell(c, jsonReply(c.form, wireTopic(g.sub.topic.name), eventGap, string(why), g.sub.pos, b.now))
			}
		}
		if c.form == formSSE {
			b.tell(c, sseGap(b.idLine(c), names, why))
		}
		gaps = others
	}
}

// setBehind marks a subscription as catching up from pos.
func (b *broker) setBehind(s *subscription, pos msgID) {
	if !s.behind {
		s.behind = true
		s.client.behind++
		b.behind[s.client] = struct{}{}
	}
	s.pos, s.slow, s.fallen, s.latest = pos, false, false, false
}

// setLive marks a subscription as fed by publish from now on. It has all there is.
func (b *broker) setLive(s *subscription) {
	if s.behind {
		s.behind, s.latest = false, false
		s.client.behind--
		if s.client.behind == 0 {
			delete(b.behind, s.client)
		}
	}
}

// fallBehind is for a live client whose queue has no room for f. What is queued it will
// still get; f and what follows it will be read from history once the queue is empty.
func (b *broker) fallBehind(c *client, f *frame) {
	b.counters.fellBehind.Add(1)
	for s := range c.subscriptions() {
		if s.behind {
			continue
		}
		pos := s.topic.last
		if pos == f.id {
			pos = f.prev
		}
		b.setBehind(s, pos)
		s.slow = true
	}
	if c.lag() {
		b.page(c)
	}
}

// A pageRead is what one subscription still has to get.
type pageRead struct {
	sub    *subscription
	frames []*frame
}

// page queues what a client that is behind has missed, up to a page, in the order of
// the IDs. If that is all, the client is live: no message can come in between, since
// only this goroutine adds any.
func (b *broker) page(c *client) {
	if c.bucket < 0 {
		return // it has been detached
	}
	more := c.behind > 0 && b.readPage(c)
	if c.leaving && !more {
		b.end(c, ReasonShutdown)
	}
	if c.paged(more) {
		b.runnable(c)
	}
}

// readPage reports whether there is more to read.
func (b *broker) readPage(c *client) (more bool) {
	reads, ok := b.pageReadsOf(c)
	if !ok {
		return false
	}
	defer clear(reads) // keep no message alive
	messages, bytes := 0, 0
	for r := oldest(reads); r != nil; r = oldest(reads) {
		f := r.frames[0]
		if messages >= pageMessages || bytes >= pageBytes || !b.replay(r.sub, f) {
			return true
		}
		r.frames = r.frames[1:]
		messages++
		bytes += f.size()
	}
	for _, r := range reads {
		b.setLive(r.sub)
	}
	return false
}

// pageReadsOf returns what c has to get, after it has dealt with what is gone from
// history. It reports false if the client is ended for that.
func (b *broker) pageReadsOf(c *client) (reads []pageRead, ok bool) {
	reads = b.pageReads[:0]
	for s := range c.subscriptions() {
		if !s.behind {
			continue
		}
		if !b.reaches(s.topic, s.pos) {
			b.applyPolicy(s)
			if s.slow && s.topic.policy == Disconnect {
				b.end(c, ReasonSlow)
				return nil, false
			}
			s.latest = s.slow && s.topic.policy == KeepLatest
			b.tellGaps(c, []gap{{s, b.cause(s.topic, s.pos)}})
			s.fallen = false
		}
		var frames []*frame
		if s.topic.state != nil {
			frames = s.topic.state.log.from(s.pos)
		}
		if s.latest {
			frames = newestByEvent(frames)
		}
		reads = append(reads, pageRead{s, frames})
	}
	b.pageReads = reads
	return reads, true
}

// applyPolicy counts and reports, once, that a slow client has lost messages.
func (b *broker) applyPolicy(s *subscription) {
	if !s.slow || s.fallen {
		return
	}
	s.fallen = true
	b.counters.slow.Add(1)
	b.report(&slowReport{SlowConsumer{Client: s.client.info.ID, Topic: s.topic.name, Policy: s.topic.policy}})
}

// oldest returns the read whose next message has the lowest ID, nil if all are done.
func oldest(reads []pageRead) (first *pageRead) {
	for i := range reads {
		r := &reads[i]
		if len(r.frames) > 0 && (first == nil || r.frames[0].id.before(first.frames[0].id)) {
			first = r
		}
	}
	return first
}

// replay offers f, from history, to a client that is behind, and reports whether it
// was queued. An SSE client gets the shared bytes if their "id:" is exactly its cursor.
func (b *broker) replay(s *subscription, f *frame) bool {
	c := s.client
	b.build(s.topic, f, c.form)
	before := s.pos
	s.pos = f.id
	var o outcome
	switch {
	case c.form != formSSE:
		o = c.offer(nil, f.forms[c.form].span())
	case len(c.topics) == 1 && s.topic != b.all && c.all.position() == f.all:
		o = c.offer(nil, f.forms[formSSE].span())
	default:
		o = c.offer(b.idLine(c), f.body())
	}
	f.release()
	if o == full {
		s.pos = before
		return false
	}
	return o != ignored
}

// sweepBehind applies the policy to clients that read so little that they do not even
// come to ask for what is gone.
func (b *broker) sweepBehind() {
	for c := range b.behind {
		for s := range c.subscriptions() {
			if !s.behind || !s.slow || b.reaches(s.topic, s.pos) {
				continue
			}
			b.applyPolicy(s)
			if s.topic.policy == Disconnect {
				b.flusher.abort(c, ReasonSlow)
			}
		}
	}
}

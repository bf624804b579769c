package pushlet

import "bytes"

// Which messages were queued for a client and not written when its connection ended, for
// Hooks.OnUndelivered. The queue holds only ranges of bytes. The adapter finds out where
// the messages in them begin and end; the broker, which messages those are: for nearly all
// by where their wire form ends in memory.

const (
	// maxUndelivered is how many messages of one connection are told, the newest.
	maxUndelivered = 1000
	// maxLookups bounds how long the broker looks among messages that came too late for
	// the client, and so how long the others wait.
	maxLookups = 16 << 10
)

// A leftover is the command to find out what was queued for a client; detach follows it.
type leftover struct {
	client   *client
	info     Client
	why      Reason
	total    int // messages, of which parts has the newest
	parts    []wirePart
	byEnding map[wireEnd]int // index in parts
}

func (*leftover) isCommand() {}

// A wirePart is where a message, or its shared part, is in memory.
type wirePart struct {
	seg      *segment
	from, to uint32
}

// A wireEnd is where it ends.
type wireEnd struct {
	seg *segment
	to  uint32
}

func newLeftover(c *client, info Client, why Reason, queue []span, total int) *leftover {
	l := &leftover{client: c, info: info, why: why, total: total}
	skip := total - maxUndelivered
	for _, s := range queue {
		for from := s.from - s.part; s.n > 0 && from < s.to; s.n-- {
			to := from + uint32(c.form.endOf(s.seg.buf[from:s.to]))
			if skip--; skip < 0 {
				l.parts = append(l.parts, wirePart{s.seg, from, to})
			}
			from = to
		}
	}
	l.byEnding = make(map[wireEnd]int, len(l.parts))
	for i, part := range l.parts {
		l.byEnding[wireEnd{part.seg, part.to}] = i
	}
	return l
}

// undelivered reports what was left over. Messages that are not in history any more, or of
// a topic that the client does not follow any more, are not found.
func (b *broker) undelivered(l *leftover) {
	c := l.client
	frames := make([]*frame, len(l.parts))
	alone := c.form == formSSE && len(c.topics) == 1
	misses := 0
	for s := range c.subscriptions() {
		if s.topic.state == nil {
			continue
		}
		log := &s.topic.state.log
		given := log.frames[log.head : len(log.frames)-len(log.from(s.position()))]
		hit := false
		for i := len(given) - 1; i >= 0 && misses < maxLookups; i-- {
			f := given[i]
			r := f.forms[c.form]
			if at, ok := l.byEnding[wireEnd{r.seg, r.to}]; ok {
				frames[at] = f
				hit = true
				continue
			}
			if misses++; hit && s.topic.policy != KeepLatest && !(alone && s.topic == b.all) {
				break // what is older was written
			}
		}
	}
	found := 0
	for i, f := range frames {
		if f == nil && alone {
			f = b.broadcastIn(l.parts[i])
		}
		if f != nil {
			frames[found] = f
			found++
		}
	}
	b.counters.unreported.Add(uint64(l.total - found))
	if found > 0 {
		b.report(&undeliveredReport{l.info, l.why, frames[:found]})
	}
}

// broadcastIn returns the broadcast that is in a client's bytes in the form that
// broadcastSSE has built: an "id:" line of their own, and the body.
func (b *broker) broadcastIn(part wirePart) *frame {
	line, body, ok := bytes.Cut(part.seg.buf[part.from:part.to], []byte("\n"))
	token, isID := bytes.CutPrefix(line, []byte("id: "))
	if !ok || !isID {
		return nil
	}
	at, ok := parseCursor(string(token))
	if !ok {
		return nil
	}
	f := b.all.find(at.all)
	if f == nil || f.forms[formSSE].seg == nil || !bytes.Equal(body, f.body().bytes()) {
		return nil
	}
	return f
}

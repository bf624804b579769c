package pushlet

import (
	"sync"
	"time"
)

// A client is one connection: a queue of bytes to write, what it follows, and how it
// ended. The broker offers it messages, a flusher writes them, and a goroutine of
// its adapter waits for the end of the connection.
type client struct {
	// Immutable after newClient.
	info      Client
	form      form
	env       *clientEnv
	transport transport
	since     time.Time
	again     func(topics []string) error // authorizes it anew; nil unless that is wanted
	wake      chan struct{}               // nil, or: tells the goroutine that flushes this client
	gone      chan struct{}               // nil, or: closed by abort

	// Owned by the broker.
	all      subscription    // to the broadcast log; its topic is nil without topics
	topics   []*subscription // often just &first
	first    subscription
	inline   [1]*subscription // topics begins here
	behind   int              // subscriptions that are behind
	bucket   int32            // heartbeat bucket, -1 while not attached
	index    int32            // place in it
	allAsked bool             // it subscribed to the broadcast log by name
	leaving  bool             // to end once nothing is behind
	activeAt time.Time        // for the idle timeout, to the precision of a heartbeat
	checks   int32            // how often it was to be authorized again

	// Guarded by mu, which is never held while something waits.
	mu         sync.Mutex
	control    uint32 // of bytes, those that isControl
	queue      []span // what is to be written, neighbours merged
	spare      [2]span
	bytes      int   // in queue
	messages   int   // in queue
	private    *lane // where bytes for this client alone go; nil when queue is empty
	scheduled  bool  // a flusher has it, will have it, or waits for the broker to page
	wantPage   bool  // the broker has more once the queue is empty
	writing    bool  // a flusher is between peek and wrote
	ending     bool  // nothing more is queued; closes when queue is empty
	closed     bool  // nothing more is written
	active     bool  // a message was written or a command came since the last heartbeat
	unanswered bool  // a ping was sent and nothing came since
	probe      probe
	reason     Reason
	settled    chan struct{} // nil, or: remains waits for it, until nobody writes
}

// clientEnv is what all clients of a Pushlet share.
type clientEnv struct {
	maxMessages int
	maxBytes    int
	maxTopics   int
	flusher     *flusher
	counters    *counters
	requestPage func(*client) // asks the broker for the next page of history
}

// A subscription is one client's place in one topic. It belongs to the broker.
type subscription struct {
	client *client
	topic  *topic
	pos    msgID // if behind: the last ID it was given; else that is topic.last
	index  int32 // place in topic.subs
	behind bool  // catching up: fed with pages of history, not by publish
	slow   bool  // behind because the queue was full, not because of a cursor
	fallen bool  // the slow-consumer policy has been applied to this fall
	latest bool  // policy KeepLatest: only the newest messages, until it is live
}

func newClient(info Client, form form, t transport, env *clientEnv, now time.Time) *client {
	c := &client{info: info, form: form, transport: t, env: env, since: now, activeAt: now, bucket: -1}
	c.scheduled = true // until the broker has attached it
	c.queue = c.spare[:0]
	c.topics = c.inline[:0]
	return c
}

// An outcome says what became of what was offered to a client.
type outcome uint8

const (
	queued   outcome = iota // a flusher will come to it
	runnable                // queued, and the caller has to see to it that one does
	full                    // not queued: over the limits
	ignored                 // not queued: the client is ending
)

// offer queues one message: the bytes own, which are for this client alone and may be
// none, then the shared span. It never blocks.
func (c *client) offer(own []byte, s span) outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return ignored
	}
	size := len(own) + s.len()
	if c.messages > 0 && (c.messages >= c.env.maxMessages || c.bytes-int(c.control)+size > c.env.maxBytes) {
		return full
	}
	if len(own) > 0 {
		c.pushPrivate(own)
	}
	c.push(s)
	return c.schedule()
}

// maxControl is how many bytes of answers may be queued, whatever messages are: 1 KiB for
// each topic that a client may follow, so that what it gets for following them all at once
// fits, which is an answer and a gap for each; and at least 64 KiB, and no more than 8 MiB.
func (env *clientEnv) maxControl() int { return min(max(env.maxTopics, 64), 8<<10) << 10 }

// isControl reports whether s holds answers, pings and the like, which do not count against
// the limits of the messages. An SSE client gets none for the asking; what it has of its own
// is the "id:" lines of its messages.
func (c *client) isControl(s *span) bool { return s.n == 0 && c.form != formSSE }

// tell queues bytes for this client alone that are no message of a topic. It is full
// only for a client that asks and never reads the answers.
func (c *client) tell(b []byte) outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return ignored
	}
	if int(c.control) >= c.env.maxControl() {
		return full
	}
	c.pushPrivate(b)
	return c.schedule()
}

// finish queues the last bytes this client gets; the connection ends when all is
// written. Only the first reason counts.
func (c *client) finish(why Reason, farewell []byte) outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return ignored
	}
	c.ending = true
	c.reason = why
	if len(farewell) > 0 {
		c.pushPrivate(farewell)
	}
	return c.schedule()
}

// abort ends the connection now. What is queued is not written, see remains: a client that
// resumes gets it from history. It does not block, and only the first reason counts.
func (c *client) abort(why Reason) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	if !c.ending {
		c.reason = why
	}
	c.ending, c.closed = true, true
	c.mu.Unlock()

	if c.gone != nil {
		close(c.gone)
	}
	c.transport.close()
}

func (c *client) isEnding() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ending
}

// endReason returns why the connection ended, once it has.
func (c *client) endReason() Reason {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// push appends s to the queue or, where it follows the last span, extends that one.
func (c *client) push(s span) {
	c.bytes += s.len()
	c.messages += int(s.n)
	if c.isControl(&s) {
		c.control += uint32(s.len())
	}
	if last := len(c.queue) - 1; last >= 0 {
		q := &c.queue[last]
		if q.seg == s.seg && q.to == s.from {
			q.to = s.to
			q.n += s.n
			return
		}
	}
	c.queue = append(c.queue, s)
}

func (c *client) pushPrivate(b []byte) {
	if c.private == nil {
		c.private = new(lane)
		c.private.reserve(2 * len(b)) // more is to come, as a rule
	}
	c.push(c.private.put(0, b))
}

func (c *client) schedule() outcome {
	if c.scheduled {
		return queued
	}
	c.scheduled = true
	return runnable
}

// kick brings a runnable client to a flusher.
func (c *client) kick() {
	if c.wake == nil {
		c.env.flusher.push(c)
		return
	}
	select {
	case c.wake <- struct{}{}:
	default: // it has been told
	}
}

// peek returns the bytes to write next, or nil if there are none. Several short spans
// are gathered in scratch; a long one, or the only one, is returned as it lies. Once
// for every heartbeat it says how to see whether the peer is lost.
func (c *client) peek(scratch []byte) (b []byte, due probe) {
	c.mu.Lock()
	defer c.mu.Unlock()
	due, c.probe = c.probe, probeNone
	if len(c.queue) == 0 || c.closed {
		return nil, due
	}
	c.writing = true
	if b := c.queue[0].bytes(); len(c.queue) == 1 || len(b) >= cap(scratch)/2 {
		return b, due
	}
	b = scratch[:0]
	for _, s := range c.queue {
		part := s.bytes()
		room := cap(b) - len(b)
		b = append(b, part[:min(room, len(part))]...)
		if len(part) >= room {
			break
		}
	}
	return b, due
}

// A next step of a flusher, after it has written something to a client.
type nextStep uint8

const (
	stepIdle nextStep = iota // nothing queued
	stepMore                 // more to write
	stepPage                 // nothing queued, but the broker has more in history
	stepEnd                  // all is written and the connection is to end
)

// wrote takes n written bytes off the queue and says how to go on. Each peek is followed
// by it, also if nothing was written. With stepIdle somebody else may become this client's
// flusher at once.
func (c *client) wrote(n int) (step nextStep, messages int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writing = false
	messages = c.take(n)
	if c.closed {
		if c.settled != nil {
			close(c.settled)
			c.settled = nil
		}
		return stepIdle, messages
	}
	if messages > 0 {
		c.active = true
	}
	switch {
	case len(c.queue) > 0:
		return stepMore, messages
	case c.ending:
		return stepEnd, messages
	case c.wantPage:
		return stepPage, messages
	}
	c.scheduled = false
	return stepIdle, messages
}

// take removes n bytes from the front of the queue and returns how many messages end
// in them.
func (c *client) take(n int) (messages int) {
	c.bytes -= n
	done := 0
	for n > 0 {
		s := &c.queue[done]
		if c.isControl(s) {
			c.control -= uint32(min(n, s.len()))
		}
		if n < s.len() {
			messages += s.cut(n, c.form)
			break
		}
		n -= s.len()
		messages += int(s.n)
		done++
	}
	c.messages -= messages
	if done == len(c.queue) {
		c.spare = [2]span{} // keep no segment alive
		c.queue = c.spare[:0]
		c.private = nil
		return messages
	}
	kept := copy(c.queue, c.queue[done:])
	clear(c.queue[kept:])
	c.queue = c.queue[:kept]
	return messages
}

// remains takes what was not written from a client that is closed, and returns it and how
// many messages that are; one that was written in part counts. It waits for a write that
// is under way, which does not last, since the transport is closed.
func (c *client) remains() (queue []span, messages int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writing {
		settled := make(chan struct{})
		c.settled = settled
		c.mu.Unlock()
		<-settled
		c.mu.Lock()
	}
	queue, messages = c.queue, c.messages
	c.queue, c.private = nil, nil
	c.bytes, c.messages, c.control = 0, 0, 0
	return queue, messages
}

// depth returns what is queued.
func (c *client) depth() (messages, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.messages, c.bytes
}

// heard notes that something came from the peer; command, that it wanted something.
func (c *client) heard(command bool) {
	c.mu.Lock()
	c.unanswered = false
	c.active = c.active || command
	c.mu.Unlock()
}

// A probe is how a flusher is to see whether the peer is still there.
type probe uint8

const (
	probeNone   probe = iota
	probeAcks         // does it acknowledge?
	probeAnswer       // it has not answered the last ping either
)

// beat is one heartbeat: it reports whether the client has been active since the last. It
// sends signal, a ping if an answer is expected, unless something is waiting to be written,
// which serves as well, or the last ping is unanswered.
func (c *client) beat(signal span, isPing bool) (o outcome, active bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	active, c.active = c.active, false
	c.probe = probeAcks
	switch {
	case c.ending || len(c.queue) > 0:
		return ignored, active
	case c.unanswered:
		c.probe = probeAnswer
	default:
		c.unanswered = isPing
		c.push(signal)
	}
	return c.schedule(), active
}

// lag notes that the broker has more for this client in history. It reports whether
// it is the broker's turn at once, since nothing is queued and nobody will ask.
func (c *client) lag() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wantPage = true
	return c.schedule() == runnable
}

// paged ends the broker's turn that stepPage began. It reports whether the client
// has something queued and needs a flusher.
func (c *client) paged(more bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wantPage = more
	c.scheduled = len(c.queue) > 0 || c.ending
	return c.scheduled
}

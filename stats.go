package pushlet

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Stats is what a Pushlet has done since it was made, and what there is now. Print it
// with fmt: it is one line.
//
// The maps have an entry for every reason that the library knows, also where it is 0;
// reasons that it does not know count together as "other".
type Stats struct {
	// Now.
	Clients           int // connections of both protocols
	SSE               int
	WebSocket         int
	Users             int           // distinct users that are connected here
	Topics            int           // that have a follower or a message in history
	Behind            int           // clients that are being fed from history
	Queued            int           // messages that wait in clients' queues, for each client
	QueuedBytes       int           // bytes that wait there, answers included; they are shared, so memory has fewer
	Inbox             int           // commands that wait for the broker, of 128: many mean that it is at its limit
	Distributed       bool          // topics are shared through Redis, and the Pushlet is running
	RedisDown         time.Duration // for how long Redis has not answered; 0 if it does, or is not used
	Stored            bool          // topics are kept by WithHistoryStore, and the Pushlet is running
	StoreDown         time.Duration // for how long that store has not worked; 0 if it does, or is not used
	PublishQueue      int           // messages that wait for Redis, or the store, to take them
	PublishQueueBytes int           // bytes of these

	// Since the start.
	Connected      uint64 // connections accepted
	Refused        uint64 // connections refused: limits, authorization, bad requests
	Published      uint64 // messages and broadcasts accepted
	Delivered      uint64 // messages written to clients
	Undelivered    uint64 // messages queued for a client and not written when its connection ended
	BytesSent      uint64 // bytes written to clients, heartbeats and answers included
	Resumes        uint64 // cursors honoured in full
	Gaps           uint64 // gap signals given, one for each topic
	FellBehind     uint64 // times a client's queue was full
	Slow           uint64 // times a slow client lost messages and the policy was applied
	WriteTimeouts  uint64 // connections closed because they took nothing
	ReportsDropped uint64 // calls of OnSlow and OnUndelivered left out; see Hooks
	RedisReads     uint64 // times a topic was read from Redis, because messages lacked
	Ingested       uint64 // messages published by WithIngest
	Bridged        uint64 // messages taken from channels by WithBridge
	Rejected       uint64 // entries and messages of these that could not be published
	Rollbacks      uint64 // times Redis had lost messages that this instance had published
	StoreReads     uint64 // times a topic was read from the store of WithHistoryStore

	Ended              map[Reason]uint64 // connections ended
	GapReasons         map[Reason]uint64 // Gaps by reason, as in pushlet.gap
	UndeliveredReasons map[Reason]uint64 // Undelivered, by why the connection ended
}

// String returns the numbers in one line. Reasons without a count are left out.
func (s Stats) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "clients=%d sse=%d websocket=%d users=%d topics=%d behind=%d queued=%d queued_bytes=%d inbox=%d "+
		"connected=%d refused=%d ended=%d%s published=%d delivered=%d undelivered=%d%s bytes=%d resumes=%d gaps=%d%s "+
		"fell_behind=%d slow=%d write_timeouts=%d reports_dropped=%d",
		s.Clients, s.SSE, s.WebSocket, s.Users, s.Topics, s.Behind, s.Queued, s.QueuedBytes, s.Inbox,
		s.Connected, s.Refused, sum(s.Ended), byReason(s.Ended), s.Published, s.Delivered,
		s.Undelivered, byReason(s.UndeliveredReasons), s.BytesSent, s.Resumes, s.Gaps, byReason(s.GapReasons),
		s.FellBehind, s.Slow, s.WriteTimeouts, s.ReportsDropped)
	fmt.Fprintf(&b, " distributed=%t redis_down=%v publish_queue=%d publish_queue_bytes=%d redis_reads=%d rollbacks=%d "+
		"ingested=%d bridged=%d rejected=%d stored=%t store_down=%v store_reads=%d",
		s.Distributed, s.RedisDown.Round(time.Millisecond), s.PublishQueue, s.PublishQueueBytes, s.RedisReads, s.Rollbacks,
		s.Ingested, s.Bridged, s.Rejected, s.Stored, s.StoreDown.Round(time.Millisecond), s.StoreReads)
	return b.String()
}

// byReason prints counts as "(idle:1 slow_consumer:2)", or not at all if there are none.
func byReason(counts map[Reason]uint64) string {
	var parts []string
	for why, n := range counts {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%s:%d", strings.ReplaceAll(string(why), " ", "_"), n))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	slices.Sort(parts)
	return "(" + strings.Join(parts, " ") + ")"
}

func sum(counts map[Reason]uint64) (n uint64) {
	for _, k := range counts {
		n += k
	}
	return n
}

// The reasons that are counted each by itself. An application may have reasons of its own,
// and Redis notes from a later version: these count as reasonOther, so that what is kept
// has a bound.
var (
	endReasons = [...]Reason{ReasonClientClosed, ReasonConnection, ReasonWriteTimeout, ReasonHeartbeat, ReasonSlow,
		ReasonProtocol, ReasonMaxAge, ReasonIdle, ReasonShutdown, ReasonUnavailable, ReasonDisconnected, ReasonUnauthorized}
	gapReasons = [...]Reason{gapTrimmed, gapExpired, gapRestarted, gapRolledBack, gapUnknownCursor}
)

const reasonOther Reason = "other"

// endCounts and gapCounts count by reason; the last place is for the others.
type (
	endCounts [len(endReasons) + 1]atomic.Uint64
	gapCounts [len(gapReasons) + 1]atomic.Uint64
)

func (k *endCounts) add(why Reason, n int) { addReason(k[:], endReasons[:], why, n) }
func (k *gapCounts) add(why Reason, n int) { addReason(k[:], gapReasons[:], why, n) }

func (k *endCounts) read() (map[Reason]uint64, uint64) { return readReasons(k[:], endReasons[:]) }
func (k *gapCounts) read() (map[Reason]uint64, uint64) { return readReasons(k[:], gapReasons[:]) }

func addReason(counts []atomic.Uint64, known []Reason, why Reason, n int) {
	i := slices.Index(known, why)
	if i < 0 {
		i = len(known)
	}
	counts[i].Add(uint64(n))
}

func readReasons(counts []atomic.Uint64, known []Reason) (by map[Reason]uint64, total uint64) {
	by = make(map[Reason]uint64, len(counts))
	for i, why := range known {
		by[why] = counts[i].Load()
	}
	by[reasonOther] = counts[len(known)].Load()
	return by, sum(by)
}

// counters are what the parts count as they go. All are safe for concurrent use; what
// is counted for every delivery is in the flusher's workers instead.
type counters struct {
	sse, webSocket     atomic.Int64
	connected, refused atomic.Uint64
	published          atomic.Uint64
	delivered, sent    atomic.Uint64 // by writers other than the flusher's workers
	resumes            atomic.Uint64
	fellBehind, slow   atomic.Uint64
	unreported         atomic.Uint64
	fills, rollbacks   atomic.Uint64
	storeReads         atomic.Uint64
	ingested, bridged  atomic.Uint64
	rejected           atomic.Uint64
	ended, undelivered endCounts
	gaps               gapCounts

	// followers counts the subscriptions to topics by form, so that publishers know
	// which forms are wanted. A moment late is no harm: the broker builds what lacks.
	followers [numForms]atomic.Int64
}

func (k *counters) wanted() (w wantedForms) {
	for m := range numForms {
		w[m] = k.followers[m].Load() > 0
	}
	return w
}

// A gauges is what only the broker knows.
type gauges struct {
	topics  int
	users   int
	behind  int
	clients []*client // of some heartbeat buckets
	next    int       // the bucket to go on with
}

// censusClients is how many clients the broker lists at once: that takes microseconds.
const censusClients = 8192

// Stats returns a snapshot. It waits for the broker to take note, which is soon, and looks
// at each client's queue, which with 100,000 clients takes some milliseconds, but holds up
// nobody. It may be called at any time, also before Start and after Stop, and by several
// at once.
func (p *Pushlet) Stats() Stats {
	k := &p.counters
	s := Stats{
		SSE:            int(k.sse.Load()),
		WebSocket:      int(k.webSocket.Load()),
		Inbox:          len(p.broker.inbox),
		Connected:      k.connected.Load(),
		Refused:        k.refused.Load(),
		Published:      k.published.Load(),
		Delivered:      k.delivered.Load(),
		BytesSent:      k.sent.Load(),
		Resumes:        k.resumes.Load(),
		FellBehind:     k.fellBehind.Load(),
		Slow:           k.slow.Load(),
		ReportsDropped: k.unreported.Load(),
		RedisReads:     k.fills.Load(),
		Ingested:       k.ingested.Load(),
		Bridged:        k.bridged.Load(),
		Rejected:       k.rejected.Load(),
		Rollbacks:      k.rollbacks.Load(),
		StoreReads:     k.storeReads.Load(),
	}
	s.Clients = s.SSE + s.WebSocket
	s.Ended, _ = k.ended.read()
	s.WriteTimeouts = s.Ended[ReasonWriteTimeout]
	s.UndeliveredReasons, s.Undelivered = k.undelivered.read()
	s.GapReasons, s.Gaps = k.gaps.read()
	for _, w := range p.flusher.workers {
		s.Delivered += w.delivered.Load()
		s.BytesSent += w.sent.Load()
	}
	p.gate.RLock()
	if p.shared != nil && p.state == stateRunning {
		s.PublishQueue, s.PublishQueueBytes = p.shared.depth()
		if p.connector != nil {
			s.Distributed, s.RedisDown = true, p.shared.down()
		} else {
			s.Stored, s.StoreDown = true, p.shared.down()
		}
	}
	p.gate.RUnlock()
	p.census(&s)
	return s
}

// census adds what the broker knows, and what is in the queues of the clients that it
// lists, some at a time, so that it never stops for long.
func (p *Pushlet) census(s *Stats) {
	answer := make(chan gauges, 1)
	g := gauges{clients: make([]*client, 0, min(s.Clients, censusClients))}
	for g.next < heartbeatBuckets {
		if p.tell(&census{answer: answer, from: g.next, clients: g.clients[:0]}) != nil {
			return
		}
		select {
		case g = <-answer:
		case <-p.broker.done:
			return
		}
		s.Topics, s.Users, s.Behind = g.topics, g.users, g.behind
		for _, c := range g.clients {
			messages, bytes := c.depth()
			s.Queued += messages
			s.QueuedBytes += bytes
		}
	}
}

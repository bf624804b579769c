package pushlet

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Stats is what a Pushlet has done since it was made, and what there is now. Print it
// with fmt.
type Stats struct {
	// Now.
	Clients   int // connections of both protocols
	SSE       int
	WebSocket int
	Users     int           // distinct users that are connected here
	Topics    int           // that have a follower or a message in history
	Behind    int           // clients that are being fed from history
	RedisDown time.Duration // for how long Redis has not answered; 0 if it does, or is not used
	StoreDown time.Duration // the same of the store of WithHistoryStore

	// Since the start.
	Connected      uint64 // connections accepted
	Refused        uint64 // connections refused: limits, authorization, bad requests
	Published      uint64 // messages and broadcasts accepted
	Delivered      uint64 // messages written to clients
	BytesSent      uint64 // bytes written to clients, heartbeats and answers included
	Resumes        uint64 // cursors honoured in full
	Gaps           uint64 // gap signals given, one for each topic
	FellBehind     uint64 // times a client's queue was full
	Slow           uint64 // times a slow client lost messages and the policy was applied
	WriteTimeouts  uint64 // connections closed because they took nothing
	ReportsDropped uint64 // calls of Hooks.OnSlow left out because it was too slow
	RedisReads     uint64 // times a topic was read from Redis, because messages lacked
	Ingested       uint64 // messages published by WithIngest
	Bridged        uint64 // messages taken from channels by WithBridge
	Rejected       uint64 // entries and messages of these that could not be published
	Rollbacks      uint64 // times Redis had lost messages that this instance had published
	StoreReads     uint64 // times a topic was read from the store of WithHistoryStore
}

// String returns the numbers in one line.
func (s Stats) String() string {
	return fmt.Sprintf("clients=%d sse=%d websocket=%d users=%d topics=%d behind=%d connected=%d refused=%d "+
		"published=%d delivered=%d bytes=%d resumes=%d gaps=%d fell_behind=%d slow=%d write_timeouts=%d "+
		"redis_down=%v redis_reads=%d ingested=%d bridged=%d rejected=%d rollbacks=%d store_down=%v store_reads=%d",
		s.Clients, s.SSE, s.WebSocket, s.Users, s.Topics, s.Behind, s.Connected, s.Refused,
		s.Published, s.Delivered, s.BytesSent, s.Resumes, s.Gaps, s.FellBehind, s.Slow, s.WriteTimeouts,
		s.RedisDown.Round(time.Millisecond), s.RedisReads, s.Ingested, s.Bridged, s.Rejected, s.Rollbacks,
		s.StoreDown.Round(time.Millisecond), s.StoreReads)
}

// counters are what the parts count as they go. All are safe for concurrent use; what
// is counted for every delivery is in the flusher's workers instead.
type counters struct {
	sse, webSocket       atomic.Int64
	connected, refused   atomic.Uint64
	published            atomic.Uint64
	delivered, sent      atomic.Uint64 // by writers other than the flusher's workers
	resumes, gaps        atomic.Uint64
	fellBehind, slow     atomic.Uint64
	timeouts, unreported atomic.Uint64
	fills, rollbacks     atomic.Uint64
	ingested, bridged    atomic.Uint64
	rejected             atomic.Uint64
	storeReads           atomic.Uint64

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

// gauges are what only the broker knows.
type gauges struct {
	topics int
	users  int
	behind int
}

// Stats returns a snapshot. It waits for the broker to take note, which is soon, and
// may be called at any time, also before Start and after Stop.
func (p *Pushlet) Stats() Stats {
	k := &p.counters
	s := Stats{
		SSE:            int(k.sse.Load()),
		WebSocket:      int(k.webSocket.Load()),
		Connected:      k.connected.Load(),
		Refused:        k.refused.Load(),
		Published:      k.published.Load(),
		Delivered:      k.delivered.Load(),
		BytesSent:      k.sent.Load(),
		Resumes:        k.resumes.Load(),
		Gaps:           k.gaps.Load(),
		FellBehind:     k.fellBehind.Load(),
		Slow:           k.slow.Load(),
		WriteTimeouts:  k.timeouts.Load(),
		ReportsDropped: k.unreported.Load(),
		RedisReads:     k.fills.Load(),
		Ingested:       k.ingested.Load(),
		Bridged:        k.bridged.Load(),
		Rejected:       k.rejected.Load(),
		Rollbacks:      k.rollbacks.Load(),
		StoreReads:     k.storeReads.Load(),
	}
	s.Clients = s.SSE + s.WebSocket
	for _, w := range p.flusher.workers {
		s.Delivered += w.delivered.Load()
		s.BytesSent += w.sent.Load()
	}
	p.gate.RLock()
	if p.shared != nil && p.state == stateRunning {
		if p.connector != nil {
			s.RedisDown = p.shared.down()
		} else {
			s.StoreDown = p.shared.down()
		}
	}
	p.gate.RUnlock()
	answer := make(chan gauges, 1)
	if p.tell(census{answer}) == nil {
		select {
		case g := <-answer:
			s.Topics, s.Users, s.Behind = g.topics, g.users, g.behind
		case <-p.broker.done:
		}
	}
	return s
}

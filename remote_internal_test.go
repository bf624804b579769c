package pushlet

import (
	"testing"
	"time"
)

// asked is a sharedLog that notes what it is asked for.
type asked struct{ fills []msgID }

func (a *asked) follow(string)             {}
func (a *asked) unfollow(string)           {}
func (a *asked) fill(_ string, from msgID) { a.fills = append(a.fills, from) }
func (a *asked) mark(string, msgID)        {}
func (a *asked) stale(string)              {}
func idIn(lineage, ms, counter uint64) msgID {
	return msgID{ms, lineage<<counterBits | counter<<nonceBits}
}
func (a *asked) last(t *testing.T, n int) msgID {
	t.Helper()
	if len(a.fills) != n {
		t.Fatalf("%d fills, want %d", len(a.fills), n)
	}
	return a.fills[n-1]
}

// A Redis that was emptied while a client waits for what the log has before memory: it is
// not told of a gap before the new log was read, and then the reason is "restarted".
func TestFillAfterWipe(t *testing.T) {
	const old, anew = 600_000, 700_000
	cfg := defaultConfig()
	now := time.Now()
	ms := uint64(now.UnixMilli())
	log := new(asked)
	f := newFlusher(0)
	var k counters
	b := newBroker(&cfg, f, &k, func(report) {}, now)
	b.verify = true
	b.share(log)
	b.apply(&sighting{lineage: old, now: ms, fresh: true, topics: []sighted{{name: broadcastTopic}}})
	c := newClient(Client{ID: "c"}, formText, &sharedTransport{}, &clientEnv{
		maxMessages: 10, maxBytes: 1000, flusher: f, counters: &k, requestPage: func(*client) {},
	}, now)
	b.apply(&attach{client: c})
	b.apply(&subscribe{client: c, topic: "a", resume: true, since: idIn(old, ms-2, 1), now: now})
	at := idIn(old, ms-1, 1)
	b.apply(&sighting{lineage: old, now: ms, fresh: true, topics: []sighted{{name: "a", last: at}}})
	if from := log.last(t, 1); from != idIn(old, ms-2, 1) {
		t.Fatal(from)
	}

	b.apply(&filled{topic: "a", from: log.fills[0], lineage: anew, now: ms + 2})
	if from := log.last(t, 2); !from.isZero() {
		t.Fatal(from)
	}
	b.unpark(b.all) // as when something else is known
	if len(b.waiting[c]) != 1 {
		t.Error("the client goes on before the new log was read")
	}
	// What was on its way from the old one does not make the new one look like it.
	b.apply(&arrival{&frame{topic: "a", id: idIn(old, ms, 1), prev: at, at: now, data: "old"}, now})
	b.apply(&filled{topic: "a", lineage: anew, now: ms + 2})
	topic := b.topics["a"]
	if got := topic.last.lineage(); got != anew || b.stateOf(topic).log.cause != gapRestarted {
		t.Errorf("the topic is at %v, because of %q", topic.last, b.stateOf(topic).log.cause)
	}
	if len(b.waiting[c]) != 0 || b.find(c, "a") == nil {
		t.Error("the client still waits")
	}
	if _, n := k.gaps.read(); n != 1 {
		t.Errorf("%d gaps, want 1", n)
	}
}

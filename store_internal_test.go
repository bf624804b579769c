package pushlet

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"
)

// sliceHistory is a store of broadcasts.
type sliceHistory struct {
	mu  sync.Mutex
	all []Message
}

func (h *sliceHistory) Append(_ context.Context, messages []Message) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, messages...)
	return nil
}

func (h *sliceHistory) After(_ context.Context, _ Audience, id string, limit int) (page []Message, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.all {
		if m.ID > id && len(page) < limit {
			page = append(page, m)
		}
	}
	return page, nil
}

func (h *sliceHistory) Last(context.Context, Audience) (Message, bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.all) == 0 {
		return Message{}, false, nil
	}
	return h.all[len(h.all)-1], true, nil
}

func (h *sliceHistory) Newest(ctx context.Context) (string, error) {
	m, _, err := h.Last(ctx, Audience{})
	return m.ID, err
}

// TestStoreHeals: should the broker ever be elsewhere than the store, it finds back to it
// instead of leaving out what does not follow.
func TestStoreHeals(t *testing.T) {
	t.Parallel()
	h := new(sliceHistory)
	p := New(WithHistoryStore(h), WithLogger(func() Logger { return stdLogger{} }))
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	publish := func(data string) msgID {
		if err := p.PublishToAll("message", data); err != nil {
			t.Fatal(err)
		}
		id, err := parseStoreID(h.all[len(h.all)-1].ID)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	log := p.shared.(*storeLog)
	first := publish("1")
	astray := newFrame(broadcastTopic, "message", "never stored", time.Now())
	astray.id, astray.prev = msgID{first.ms, first.seq + 1}, first
	p.broker.send(&arrival{astray, time.Now()})
	if at := log.inquire([]string{broadcastTopic}); at[0] != astray.id {
		t.Fatalf("the broker is at %v, want %v", at[0], astray.id)
	}
	time.Sleep(2 * time.Millisecond) // the next is later
	last := publish("2")
	for deadline := time.Now().Add(30 * time.Second); log.inquire([]string{broadcastTopic})[0] != last; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the broker is at %v, want %v", log.inquire([]string{broadcastTopic})[0], last)
		}
	}
	last = publish("3")
	if at := log.inquire([]string{broadcastTopic}); at[0] != last {
		t.Errorf("the broker is at %v, want %v", at[0], last)
	}
}

// TestJustBefore: what it returns sorts, as text, before the position and after all before it.
func TestJustBefore(t *testing.T) {
	for _, test := range []struct{ x, before msgID }{
		{msgID{}, msgID{}},
		{msgID{5, 1_500_000_000_000}, msgID{}},
		{msgID{1_700_000_000_000, 1_500_000_000_001}, msgID{1_700_000_000_000, 1_500_000_000_000}},
		{msgID{1_700_000_000_001, 0}, msgID{1_700_000_000_000, 2_199_023_255_551}},
	} {
		got := justBefore(test.x)
		if x := test.x.String(); got != "" && len(x) == storeIDLen && got >= x {
			t.Errorf("%q is not before %v", got, test.x)
		}
		if got == "" && test.x.ms > firstStoreMS || got != "" && strings.Compare(got, test.before.String()) < 0 {
			t.Errorf("%q is before %v", got, test.before)
		}
	}
}

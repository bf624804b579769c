package pushlet_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/pushlettest"
)

// The application's own history store.

// A faultyHistory is a store in memory that fails as a test wants.
type faultyHistory struct {
	*pushlettest.MemoryHistory

	mu     sync.Mutex
	before func(ctx context.Context, method string) error // instead of the call, if it returns an error
	after  func(method string) error                      // instead of the answer
	calls  map[string]int
	all    []pushlet.Message // that were ever stored
}

func newFaultyHistory() *faultyHistory {
	return &faultyHistory{MemoryHistory: pushlettest.NewMemoryHistory(), calls: make(map[string]int)}
}

// fail sets what goes wrong from now on; nil is nothing.
func (h *faultyHistory) fail(before func(ctx context.Context, method string) error, after func(method string) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before, h.after = before, after
}

func (h *faultyHistory) call(ctx context.Context, method string, do func() error) error {
	h.mu.Lock()
	before, after := h.before, h.after
	h.calls[method]++
	h.mu.Unlock()
	if before != nil {
		if err := before(ctx, method); err != nil {
			return err
		}
	}
	if err := do(); err != nil || after == nil {
		return err
	}
	return after(method)
}

func (h *faultyHistory) count(method string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls[method]
}

// stored returns the data of all messages for a topic.
func (h *faultyHistory) stored(topic string) (data []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.all {
		if m.Audience.String() == topic {
			data = append(data, m.Data)
		}
	}
	return data
}

func (h *faultyHistory) Append(ctx context.Context, messages []pushlet.Message) error {
	return h.call(ctx, "Append", func() error {
		if err := h.MemoryHistory.Append(ctx, messages); err != nil {
			return err
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, m := range messages {
			if n := len(h.all); n > 0 && m.ID <= h.all[n-1].ID || len(m.ID) != 27 {
				panic("the ID " + m.ID + " is not greater than the one before")
			}
			h.all = append(h.all, m)
		}
		return nil
	})
}

func (h *faultyHistory) After(ctx context.Context, a pushlet.Audience, id string, limit int) (page []pushlet.Message, err error) {
	err = h.call(ctx, "After", func() error {
		page, err = h.MemoryHistory.After(ctx, a, id, min(limit, 3)) // fewer than the limit is not the end
		return err
	})
	return page, err
}

func (h *faultyHistory) Last(ctx context.Context, a pushlet.Audience) (m pushlet.Message, ok bool, err error) {
	err = h.call(ctx, "Last", func() error { m, ok, err = h.MemoryHistory.Last(ctx, a); return err })
	return m, ok, err
}

func (h *faultyHistory) Newest(ctx context.Context) (id string, err error) {
	err = h.call(ctx, "Newest", func() error { id, err = h.MemoryHistory.Newest(ctx); return err })
	return id, err
}

func TestAudience(t *testing.T) {
	t.Parallel()
	for topic, want := range map[string]pushlet.Audience{
		"news":          {Topic: "news"},
		"*":             {},
		"@user/u001":    {User: "u001"},
		"@user/a/b":     {User: "a/b"},
		"@user/@user/*": {User: "@user/*"},
		"@user/":        {Topic: "@user/"}, // never everyone
		"@users/a":      {Topic: "@users/a"},
		"user/a":        {Topic: "user/a"},
	} {
		if got := pushlet.AudienceOf(topic); got != want || got.String() != topic {
			t.Errorf("%q is for %+v, %q; want %+v", topic, got, got.String(), want)
		}
	}
}

// storeSite is a process with that store.
func storeSite(t testing.TB, h pushlet.History, options ...pushlet.Option) *site {
	t.Helper()
	return newSite(t, withOptions(append([]pushlet.Option{pushlet.WithHistoryStore(h)}, options...)...))
}

// restart ends a process, and begins another with the same store.
func (s *site) restart(t testing.TB, h pushlet.History, options ...pushlet.Option) *site {
	t.Helper()
	check(t, s.p.Stop())
	return storeSite(t, h, options...)
}

func TestStoreResume(t *testing.T) {
	t.Parallel()
	h := newFaultyHistory()
	s := storeSite(t, h)
	s.publish(t, "a", "before the first client")
	st, hello, _ := s.connect(t, "topic=a&topic=b", "")
	if hello.Resumed {
		t.Error("resumed without a cursor")
	}
	s.publish(t, "a", "1")
	s.publish(t, "b", "2")
	check(t, s.p.PublishToAll("message", "3"))
	first := st.expectMessages("1")
	second := st.expectMessages("2")
	third := st.expectMessages("3")
	st.close()
	s.publish(t, "b", "4")
	s.publish(t, "a", "5")
	for range 2 {
		s = s.restart(t, h)
		s.ready(t)
		for _, test := range []struct {
			cursor string
			missed int
		}{{third.id, 3}, {second.id, 2}, {first.id, 1}} {
			st, hello, _ := s.connect(t, "topic=b&topic=a", test.cursor)
			if !hello.Resumed {
				t.Error("not resumed")
			}
			st.expectMessages(numbered(test.missed+1, 5)...)
			st.close()
		}
	}
	// Also while others have come since, and messages.
	s = s.restart(t, h)
	other, _, _ := s.connect(t, "topic=a&topic=b", "")
	check(t, s.p.PublishToAll("message", "6"))
	s.publish(t, "a", "7")
	other.expectMessages("6", "7")
	st, hello, _ = s.connect(t, "topic=a&topic=b", first.id)
	if !hello.Resumed {
		t.Error("not resumed")
	}
	st.expectMessages(numbered(2, 7)...)
	s.publish(t, "b", "8")
	st.expectMessages("8")
	other.expectMessages("8")
	if n := s.p.Stats().Gaps; n != 0 {
		t.Errorf("%d gaps, want none", n)
	}
}

// TestStoreResumeEmpty: a client that has seen a topic empty gets its first messages, from
// another process too.
func TestStoreResumeEmpty(t *testing.T) {
	t.Parallel()
	h := newFaultyHistory()
	s := storeSite(t, h)
	s.publish(t, "other", "0") // with an empty store the log begins anew
	st, _, e := s.connect(t, "topic=a", "")
	st.close()
	s.clientsGone(t)
	s = s.restart(t, h)
	st, _, later := s.connect(t, "topic=a", "")
	st.close()
	s.publish(t, "a", "1", "2")
	for range 2 {
		for _, cursor := range []string{e.id, later.id} {
			st, hello, _ := s.connect(t, "topic=a", cursor)
			if !hello.Resumed {
				t.Error("not resumed")
			}
			st.expectMessages("1", "2")
			st.close()
		}
		s = s.restart(t, h)
	}
}

func TestStoreResumeWebSocket(t *testing.T) {
	t.Parallel()
	h := newFaultyHistory()
	s := wsServe(t, pushlet.WithHistoryStore(h))
	c := s.connect("")
	start := c.subscribe("a")
	s.publish("a", "0")
	one := c.expect("a", "message", "0").ID
	s.broadcast("message", "all")
	all := c.expect("*", "message", "all").ID
	s.publish("a", "1")
	s.publish("b", "2")
	check(t, s.Stop())

	s = wsServe(t, pushlet.WithHistoryStore(h))
	c = s.connect("")
	s.broadcast("message", "more")
	c.send(`{"action":"subscribe","topic":"*","since":%q}`, all)
	c.expect("*", "pushlet.subscribed", "")
	c.expect("*", "message", "more")
	c.send(`{"action":"subscribe","topic":"a","since":%q}`, one)
	c.expect("a", "pushlet.subscribed", "")
	c.expect("a", "message", "1")
	c.send(`{"action":"subscribe","topic":"b","since":%q}`, start) // since then it had none but this
	c.expect("b", "pushlet.subscribed", "")
	c.expect("b", "message", "2")
}

// TestStoreGap: what the store has removed is signalled.
func TestStoreGap(t *testing.T) {
	t.Parallel()
	h := newFaultyHistory()
	s := storeSite(t, h)
	st, _, _ := s.connect(t, "topic=a&topic=b", "")
	s.publish(t, "a", "0", "1", "2")
	cursors := []string{st.expectMessages("0").id, st.expectMessages("1").id, st.expectMessages("2").id}
	st.close()
	s.publish(t, "b", "b")
	s = s.restart(t, h)
	h.Trim(pushlet.Audience{Topic: "a"}, 1)
	st, hello, _ := s.connect(t, "topic=a&topic=b", cursors[0])
	if hello.Resumed {
		t.Error("resumed although a message is missing")
	}
	st.expectGap("trimmed", "a")
	st.expectMessages("2", "b")
	for _, cursor := range cursors[1:] {
		if _, hello, _ := s.connect(t, "topic=a&topic=b", cursor); !hello.Resumed {
			t.Error("not resumed although nothing is missing")
		}
	}
	// Without the newest message nobody knows in another process, in this one it is known.
	h.Trim(pushlet.Audience{Topic: "a"}, 0)
	st, hello, _ = s.connect(t, "topic=a", cursors[2])
	if !hello.Resumed {
		t.Error("not resumed although nothing is missing")
	}
	s.publish(t, "a", "3")
	st.expectMessages("3")
	h.Trim(pushlet.Audience{Topic: "a"}, 0)
	s = s.restart(t, h)
	st, _, _ = s.connect(t, "topic=a", cursors[2])
	st.expectGap("expired", "a")
	s.publish(t, "a", "4")
	st.expectMessages("4")
}

// TestStoreLimits: a client resumes as far back as WithHistory allows, from any number of
// messages in the store.
func TestStoreLimits(t *testing.T) {
	t.Parallel()
	h := newFaultyHistory()
	s := storeSite(t, h)
	st, _, e := s.connect(t, "topic=a", "")
	s.publish(t, "a", numbered(1, 50)...)
	var cursors []string
	for _, d := range numbered(1, 50) {
		cursors = append(cursors, st.expectMessages(d).id)
	}
	s = s.restart(t, h, pushlet.WithHistory(20, 1<<20, time.Hour))
	st, _, _ = s.connect(t, "topic=a", cursors[29])
	st.expectMessages(numbered(31, 50)...)
	for _, cursor := range []string{cursors[28], cursors[0], e.id} {
		st, _, _ := s.connect(t, "topic=a", cursor)
		st.expectGap("trimmed", "a")
		st.expectMessages(numbered(31, 50)...)
	}
	s = s.restart(t, h, pushlet.WithHistory(0, 0, 0))
	st, _, _ = s.connect(t, "topic=a", cursors[49])
	s.publish(t, "a", "51")
	st.expectMessages("51")
}

var errFault = errors.New("fault")

// TestStoreAppendFails: whatever becomes of an Append, clients get exactly what is stored.
func TestStoreAppendFails(t *testing.T) {
	t.Parallel()
	down := func(context.Context, string) error { return errFault }
	on := func(want string, do func() error) func(context.Context, string) error {
		return func(_ context.Context, method string) error {
			if method == want {
				return do()
			}
			return nil
		}
	}
	onAfter := func(want string, do func() error) func(string) error {
		f := on(want, do)
		return func(method string) error { return f(context.Background(), method) }
	}
	fault := func() error { return errFault }
	doPanic := func() error { panic(errFault) }
	for _, test := range []struct {
		name   string
		before func(context.Context, string) error
		after  func(string) error
		want   error // nil: it is published
		stored bool
		unsure bool // nobody could be asked what became of it
	}{
		{"before", on("Append", fault), nil, pushlet.ErrUncertain, false, false},
		{"before, and it says so", on("Append", func() error { return fmt.Errorf("%w: %w", pushlet.ErrUnavailable, errFault) }), nil, pushlet.ErrUnavailable, false, false},
		{"after", nil, onAfter("Append", fault), nil, true, false},
		{"panic before", on("Append", doPanic), nil, pushlet.ErrUncertain, false, false},
		{"panic after", nil, onAfter("Append", doPanic), nil, true, false},
		{"positions cannot be read", on("Last", fault), nil, pushlet.ErrUnavailable, false, false},
		{"down", down, nil, pushlet.ErrUncertain, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := newFaultyHistory()
			s := storeSite(t, h)
			s.publish(t, "a", "0")
			st, _, e := s.connect(t, "topic=a", "")
			topic := "a"
			if test.name == "positions cannot be read" {
				topic = "b"
			}
			want := []string{}
			for i := range 3 {
				data := fmt.Sprint("fault ", i)
				h.fail(test.before, test.after)
				err := s.p.Publish(topic, "message", data)
				if i > 0 && test.unsure {
					test.want = pushlet.ErrUnavailable // it is known to be down
				}
				h.fail(nil, nil)
				switch {
				case test.want == nil && err != nil, test.want != nil && !errors.Is(err, test.want):
					t.Fatalf("Publish: %v, want %v", err, test.want)
				case errors.Is(err, pushlet.ErrUncertain) && errors.Is(err, pushlet.ErrUnavailable):
					t.Fatalf("Publish: %v, which is both", err)
				case err != nil && !strings.Contains(test.name, "panic") && !errors.Is(err, errFault):
					t.Errorf("Publish: %v, without the cause", err)
				}
				if test.stored {
					want = append(want, data)
				}
				if !test.unsure || i == 2 {
					good := fmt.Sprint("good ", i)
					eventually(t, "a message published", func() bool { return s.p.Publish("a", "message", good) == nil })
					want = append(want, good)
				}
			}
			st.expectMessages(want...)
			eventually(t, "it is ready", func() bool { return s.p.Ready() == nil })
			s = s.restart(t, h)
			st, hello, _ := s.connect(t, "topic=a", e.id)
			if !hello.Resumed {
				t.Error("not resumed")
			}
			st.expectMessages(want...)
			if got := h.stored("a"); !slices.Equal(got, append([]string{"0"}, want...)) {
				t.Errorf("stored %q, want %q", got, want)
			}
		})
	}
}

// TestStoreUncertain: a message of which nobody knows what became of it is delivered as soon
// as that is known, also if nothing is published after it.
func TestStoreUncertain(t *testing.T) {
	t.Parallel()
	h := newFaultyHistory()
	s := storeSite(t, h)
	s.publish(t, "a", "0")
	st, _, _ := s.connect(t, "topic=a", "")
	for i := range 3 {
		failed := false
		h.fail(func(_ context.Context, method string) error {
			if failed {
				return errFault
			}
			return nil
		}, func(string) error { failed = true; return errFault })
		data := fmt.Sprint("uncertain ", i)
		if err := s.p.Publish("a", "message", data); !errors.Is(err, pushlet.ErrUncertain) || !errors.Is(err, errFault) {
			t.Fatalf("Publish: %v, want %v", err, pushlet.ErrUncertain)
		}
		if err := s.p.Ready(); !errors.Is(err, pushlet.ErrUnavailable) || !errors.Is(err, errFault) {
			t.Errorf("Ready: %v, want %v", err, pushlet.ErrUnavailable)
		}
		if err := s.p.Publish("a", "message", "refused"); !errors.Is(err, pushlet.ErrUnavailable) {
			t.Errorf("Publish: %v, want %v", err, pushlet.ErrUnavailable)
		}
		h.fail(nil, nil)
		st.expectMessages(data)
	}
	s.publish(t, "a", "1")
	st.expectMessages("1")
}

// TestStoreWentBack: a store that has lost messages is noticed when it is read again.
func TestStoreWentBack(t *testing.T) {
	t.Parallel()
	h := newFaultyHistory()
	s := storeSite(t, h)
	s.publish(t, "a", "0")
	st, _, e := s.connect(t, "topic=a", "")
	away, _, _ := s.connect(t, "topic=b", e.id)
	s.publish(t, "a", "1", "2")
	st.expectMessages("1", "2")
	h.fail(func(_ context.Context, method string) error {
		if method == "Append" {
			h.MemoryHistory = pushlettest.NewMemoryHistory()
			return errFault
		}
		return nil
	}, nil)
	if err := s.p.Publish("a", "message", "lost"); !errors.Is(err, pushlet.ErrUncertain) {
		t.Errorf("Publish: %v, want %v", err, pushlet.ErrUncertain)
	}
	h.fail(nil, nil)
	expectGaps(st, "restarted", "*", "a")
	expectGaps(away, "restarted", "*", "b")
	s.publish(t, "a", "3")
	st.expectMessages("3")
	check(t, s.p.PublishToAll("message", "4"))
	st.expectMessages("4")
	away.expectMessages("4")
	st, _, _ = s.connect(t, "topic=a", e.id)
	st.expectGap("restarted", "a", "*")
	st.expectMessages("3", "4")
}

func TestStoreDownAtStart(t *testing.T) {
	t.Parallel()
	h := newFaultyHistory()
	h.fail(func(context.Context, string) error { return errFault }, nil)
	s := storeSite(t, h)
	if err := s.p.Ready(); !errors.Is(err, pushlet.ErrUnavailable) {
		t.Errorf("Ready: %v, want %v", err, pushlet.ErrUnavailable)
	}
	if err := s.p.Publish("a", "message", "0"); !errors.Is(err, pushlet.ErrUnavailable) || !errors.Is(err, errFault) {
		t.Errorf("Publish: %v, want %v", err, pushlet.ErrUnavailable)
	}
	if s.p.Stats().StoreDown == 0 {
		t.Error("Stats does not say that the store is down")
	}
	time.AfterFunc(50*time.Millisecond, func() { h.fail(nil, nil) })
	st := s.follow(t, "topic=a") // waits
	st.expectHello()
	s.ready(t)
	s.publish(t, "a", "1")
	st.expectMessages("1")
	if got := s.p.Stats(); got.StoreDown != 0 {
		t.Errorf("StoreDown is %v", got.StoreDown)
	}
	// A store with IDs of somebody else.
	other := pushlettest.NewMemoryHistory()
	check(t, other.Append(t.Context(), []pushlet.Message{{ID: "1", Audience: pushlet.Audience{Topic: "a"}}}))
	s = storeSite(t, other)
	if err := s.p.Publish("a", "message", "0"); !errors.Is(err, pushlet.ErrUnavailable) {
		t.Errorf("Publish: %v, want %v", err, pushlet.ErrUnavailable)
	}
}

func TestStoreAndRedis(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "localhost:1"})
	defer client.Close()
	p := newPushlet(t, pushlet.WithHistoryStore(pushlettest.NewMemoryHistory()), pushlet.WithRedis(client))
	if err := p.Start(); err == nil || !strings.Contains(err.Error(), "WithHistoryStore") {
		t.Errorf("Start: %v", err)
	}
	if err := newPushlet(t, pushlet.WithHistoryStore(nil)).Start(); err == nil {
		t.Error("Start takes a nil store")
	}
}

// TestStoreHangs: a store that does not answer holds up publishers no longer than they want.
func TestStoreHangs(t *testing.T) {
	t.Parallel()
	h := newFaultyHistory()
	s := storeSite(t, h, pushlet.WithPublishTimeout(100*time.Millisecond))
	s.publish(t, "a", "0")
	st, _, _ := s.connect(t, "topic=a", "")
	release := make(chan struct{})
	h.fail(func(_ context.Context, method string) error { <-release; return nil }, nil)
	results := make(chan error, 2)
	go func() { results <- s.p.Publish("a", "message", "1") }()
	eventually(t, "the first is being stored", func() bool { return h.count("Append") == 2 })
	if err := s.p.Publish("a", "message", "2"); !errors.Is(err, pushlet.ErrUnavailable) {
		t.Errorf("the second: %v, want %v", err, pushlet.ErrUnavailable)
	}
	if err := <-results; !errors.Is(err, pushlet.ErrUncertain) {
		t.Errorf("the first: %v, want %v", err, pushlet.ErrUncertain)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.p.PublishContext(ctx, "a", "message", "3"); !errors.Is(err, context.Canceled) {
		t.Errorf("the third: %v, want %v", err, context.Canceled)
	}

	// Nor does Shutdown wait for ever.
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.p.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v, want %v", err, context.DeadlineExceeded)
	}
	close(release)
	check(t, s.p.Stop())
	st.close()
	s = storeSite(t, h)
	if got := h.stored("a"); !slices.Equal(got, []string{"0", "1"}) && !slices.Equal(got, []string{"0"}) {
		t.Errorf("stored %q", got)
	}
}

// TestStoreBatches: messages that wait are stored together, in their order.
func TestStoreBatches(t *testing.T) {
	t.Parallel()
	const publishers, each = 16, 50
	h := newFaultyHistory()
	h.fail(func(_ context.Context, method string) error {
		if method == "Append" {
			time.Sleep(2 * time.Millisecond)
		}
		return nil
	}, nil)
	s := storeSite(t, h)
	st, _, _ := s.connect(t, "topic=a&topic=b", "")
	var all sync.WaitGroup
	for i := range publishers {
		all.Go(func() {
			for j := range each {
				if err := s.p.Publish([]string{"a", "b"}[j%2], "message", fmt.Sprint(i, " ", j)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	next := make(map[string]int)
	for range publishers * each {
		e := st.next()
		from, n, _ := strings.Cut(e.data, " ")
		if n != strconv.Itoa(next[from]) {
			t.Fatalf("publisher %s: message %s, want %d", from, n, next[from])
		}
		next[from]++
	}
	all.Wait()
	if n := h.count("Append"); n > publishers*each/2 {
		t.Errorf("%d calls of Append for %d messages", n, publishers*each)
	}
}

// strangeHistory returns what is for somebody else, in the place of what was asked for.
type strangeHistory struct{ *faultyHistory }

func (h strangeHistory) After(ctx context.Context, a pushlet.Audience, id string, limit int) ([]pushlet.Message, error) {
	page, err := h.faultyHistory.After(ctx, a, id, limit)
	for i := range page {
		page[i].Audience, page[i].Data = pushlet.Audience{User: a.Topic}, "secret"
	}
	return page, err
}

// TestStoreReturnsOthers: what a store gives for the wrong audience reaches nobody, and the
// client is told that it lacks something.
func TestStoreReturnsOthers(t *testing.T) {
	t.Parallel()
	h := newFaultyHistory()
	s := storeSite(t, h)
	st, _, e := s.connect(t, "topic=a", "")
	s.publish(t, "a", "0", "1")
	st.expectMessages("0", "1")
	st.close()
	var book logBook
	s = s.restart(t, strangeHistory{h}, pushlet.WithLogger(book.logger))
	st, hello, _ := s.connect(t, "topic=a", e.id)
	if hello.Resumed {
		t.Error("resumed")
	}
	st.expectGap("trimmed", "a")
	s.publish(t, "a", "2")
	st.expectMessages("2")
	if !slices.ContainsFunc(book.all(), func(l logLine) bool { return strings.Contains(l.text, "none of this log") }) {
		t.Errorf("the log does not tell of it: %v", book.all())
	}
}

// TestStoreOld: the newest message of a topic is there for those who come back, however old
// it is, as without a store.
func TestStoreOld(t *testing.T) {
	t.Parallel()
	for _, stored := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(2 * 365 * 24 * time.Hour) // fake time begins in 2000
			h := newFaultyHistory()
			options := []pushlet.Option{pushlet.WithHistory(100, 1<<20, time.Minute)}
			if stored {
				options = append(options, pushlet.WithHistoryStore(h))
			}
			boot := func() *pushlet.Pushlet {
				p := newPushlet(t, options...)
				check(t, p.Start())
				return p
			}
			p := boot()
			x := startExchange(t, p, "topic=a", "")
			var cursors []string
			for i := range 4 {
				check(t, p.Publish("a", "message", strconv.Itoa(i)))
				cursors = append(cursors, x.cursor())
				time.Sleep(time.Second)
			}
			x.leave()
			<-x.done
			time.Sleep(time.Hour)
			if stored {
				check(t, p.Stop())
				p = boot()
			}
			expect := func(cursor string, want ...string) {
				t.Helper()
				x := startExchange(t, p, "topic=a", cursor)
				var got []string
				for _, e := range x.arrived()[1:] {
					got = append(got, e.data)
				}
				if !slices.Equal(got, want) {
					t.Errorf("stored=%t: got %q, want %q", stored, got, want)
				}
				x.leave()
				<-x.done
			}
			expect(cursors[3])
			expect(cursors[2], "3")
			expect(cursors[1], `{"topics":["a"],"reason":"expired"}`, "3")
			check(t, p.Stop())
		})
	}
}

// TestStoreModel runs random processes, clients, publishes and faults in fake time: each
// client gets every message that is stored exactly once and in order, or a gap event, and
// where the store keeps everything there is no gap.
func TestStoreModel(t *testing.T) {
	t.Parallel()
	runs := 150
	if testing.Short() {
		runs = 30
	}
	if n, err := strconv.Atoi(os.Getenv("PUSHLET_MODEL_RUNS")); err == nil {
		runs = n / 100 // it takes a hundred times as long as one of the others
	}
	for seed := range uint64(runs) {
		ok := t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runStoreModel(t, seed) })
		})
		if !ok {
			return
		}
	}
}

var storeTopics = []string{"a", "b", "a/b"}

// A storeClient is a client of the model.
type storeClient struct {
	x      *exchange
	topics []string
	cursor string
	next   map[string]int  // of each topic: the message that is to come
	free   map[string]bool // of each topic: it may be any, since a gap was signalled
	before map[string]bool // of each topic: or one before
}

func runStoreModel(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	time.Sleep(2 * 365 * 24 * time.Hour) // fake time begins in 2000
	h := newFaultyHistory()
	trims := r.IntN(2) == 0
	faults := r.IntN(40)
	var calm atomic.Bool
	var mu sync.Mutex // the store is called by several goroutines
	luck := rand.New(rand.NewPCG(seed, 8))
	chance := func(percent int) bool {
		mu.Lock()
		defer mu.Unlock()
		return !calm.Load() && luck.IntN(100) < percent
	}
	h.fail(func(_ context.Context, method string) error {
		switch {
		case !chance(faults):
			return nil
		case chance(20):
			panic("before")
		case method == "Append" && chance(20):
			return fmt.Errorf("%w: %w", pushlet.ErrUnavailable, errFault)
		}
		return errFault
	}, func(string) error {
		switch {
		case !chance(faults):
			return nil
		case chance(20):
			panic("after")
		}
		return errFault
	})

	var p *pushlet.Pushlet
	boot := func() {
		p = newPushlet(t, pushlet.WithHistoryStore(h), pushlet.WithHistory(1000, 1<<20, time.Hour))
		check(t, p.Start())
	}
	boot()
	clients := make([]*storeClient, 3)
	for i := range clients {
		clients[i] = &storeClient{topics: storeTopics[:1+r.IntN(3)], next: make(map[string]int), free: make(map[string]bool), before: make(map[string]bool)}
	}
	read := func(c *storeClient) {
		if c.x == nil {
			return
		}
		for _, e := range c.x.arrived() {
			c.cursor = e.id
			switch e.name {
			case "pushlet.connected":
				for _, topic := range append([]string{"*"}, c.topics...) {
					if _, known := c.next[topic]; !known { // or earlier, if the store has what it did not say yet
						c.next[topic], c.before[topic] = len(h.stored(topic)), true
					}
				}
			case "pushlet.gap":
				if !trims {
					t.Fatalf("a gap although nothing was removed: %v", e)
				}
				for _, topic := range append([]string{"*"}, c.topics...) {
					if strings.Contains(e.data, strconv.Quote(topic)) {
						c.free[topic] = true
					}
				}
			default:
				topic, _, _ := strings.Cut(e.data, " ")
				at := slices.Index(h.stored(topic), e.data)
				if at < 0 {
					t.Fatalf("message %q was not stored", e.data)
				}
				if n := c.next[topic]; at != n && !c.free[topic] && !(c.before[topic] && at < n) {
					t.Fatalf("message %d of %q, want %d", at, topic, n)
				}
				c.next[topic], c.free[topic], c.before[topic] = at+1, false, false
			}
		}
	}
	leave := func(c *storeClient) {
		if c.x != nil {
			read(c)
			c.x.leave()
			<-c.x.done
			c.x = nil
		}
	}
	number := 0
	publish := func() {
		for _, c := range clients {
			read(c) // to know since when it is connected
		}
		number++
		var topic, data string
		var err error
		if r.IntN(4) == 0 {
			topic, data = "*", fmt.Sprint("* ", number)
			err = p.PublishToAll("message", data)
		} else {
			topic = storeTopics[r.IntN(3)]
			data = fmt.Sprint(topic, " ", number)
			err = p.Publish(topic, "message", data)
		}
		is := slices.Contains(h.stored(topic), data)
		switch {
		case err == nil && !is:
			t.Fatalf("%q was published but is not stored", data)
		case err != nil && !errors.Is(err, pushlet.ErrUncertain) && is:
			t.Fatalf("%q is stored, but Publish returned %v", data, err)
		}
	}
	connect := func(c *storeClient) {
		query := ""
		for _, topic := range c.topics {
			query += "&topic=" + topic
		}
		c.x = startExchange(t, p, query[1:], c.cursor)
	}
	calm.Store(true)
	publish() // with an empty store the log begins anew
	calm.Store(false)
	for range 150 {
		c := clients[r.IntN(len(clients))]
		switch n := r.IntN(100); {
		case n < 50:
			publish()
		case n < 60:
			connectStore(c, leave, connect)
		case n < 70:
			leave(c)
		case n < 75:
			time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
		case n < 78:
			time.Sleep(time.Duration(r.IntN(40)) * time.Second)
		case n < 81:
			for _, c := range clients {
				leave(c)
			}
			check(t, p.Stop())
			boot()
		case n < 84 && trims:
			h.Trim(pushlet.Audience{Topic: storeTopics[r.IntN(3)]}, 1+r.IntN(3))
			h.Trim(pushlet.Audience{}, 1+r.IntN(3))
		default:
			read(c)
		}
	}
	calm.Store(true)
	time.Sleep(time.Minute)
	for _, c := range clients {
		connectStore(c, leave, connect)
	}
	time.Sleep(time.Minute)
	for range 2 * len(storeTopics) {
		publish()
	}
	for _, topic := range storeTopics {
		check(t, p.Publish(topic, "message", topic+" end"))
	}
	check(t, p.PublishToAll("message", "* end"))
	for _, c := range clients {
		read(c)
		for _, topic := range append([]string{"*"}, c.topics...) {
			if n := len(h.stored(topic)); c.next[topic] != n {
				t.Fatalf("a client has %d messages of %q, want %d; its connection has ended: %t", c.next[topic], topic, n, c.x.ended())
			}
		}
		leave(c)
	}
	check(t, p.Stop())
}

// connectStore lets a client come back, unless it is there.
func connectStore(c *storeClient, leave, connect func(*storeClient)) {
	if c.x != nil && c.x.ended() {
		leave(c)
	}
	if c.x == nil {
		connect(c)
	}
}

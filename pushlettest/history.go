package pushlettest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
)

// MemoryHistory is a [pushlet.History] in memory: for tests, and to show how little one
// has to do. It keeps everything until Trim. What it keeps outlives the Pushlet that it
// was given to, but not the process.
type MemoryHistory struct {
	mu     sync.RWMutex
	logs   map[pushlet.Audience][]pushlet.Message // each in the order of the IDs
	newest string
}

// NewMemoryHistory returns an empty one.
func NewMemoryHistory() *MemoryHistory {
	return &MemoryHistory{logs: make(map[pushlet.Audience][]pushlet.Message)}
}

// Append implements [pushlet.History].
func (h *MemoryHistory) Append(ctx context.Context, messages []pushlet.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range messages {
		h.logs[m.Audience] = append(h.logs[m.Audience], m)
		h.newest = m.ID
	}
	return nil
}

// After implements [pushlet.History].
func (h *MemoryHistory) After(ctx context.Context, audience pushlet.Audience, id string, limit int) ([]pushlet.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	log := h.logs[audience]
	from, found := slices.BinarySearchFunc(log, id, func(m pushlet.Message, id string) int { return strings.Compare(m.ID, id) })
	if found {
		from++
	}
	return slices.Clone(log[from:min(len(log), from+limit)]), nil
}

// Last implements [pushlet.History].
func (h *MemoryHistory) Last(ctx context.Context, audience pushlet.Audience) (pushlet.Message, bool, error) {
	if err := ctx.Err(); err != nil {
		return pushlet.Message{}, false, err
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	log := h.logs[audience]
	if len(log) == 0 {
		return pushlet.Message{}, false, nil
	}
	return log[len(log)-1], true, nil
}

// Newest implements [pushlet.History].
func (h *MemoryHistory) Newest(ctx context.Context) (string, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.newest, ctx.Err()
}

// Trim removes all but the newest messages of an audience. A store may do so at any time,
// but must keep the newest one for a while: see [pushlet.History].
func (h *MemoryHistory) Trim(audience pushlet.Audience, keep int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	log := h.logs[audience]
	h.logs[audience] = slices.Clone(log[max(0, len(log)-keep):])
}

// A HistoryOption tells [TestHistory] more about a store.
type HistoryOption func(*historyTest)

// HistoryReopen lets TestHistory end the use of a store and begin it anew, as another
// process would, and check that everything is still there. reopen returns the new one.
func HistoryReopen(reopen func(t *testing.T, h pushlet.History) pushlet.History) HistoryOption {
	return func(s *historyTest) { s.reopen = reopen }
}

// HistoryTrim lets TestHistory have a store remove all but the newest messages of an
// audience, in the way the store does this by itself.
func HistoryTrim(trim func(t *testing.T, h pushlet.History, audience pushlet.Audience, keep int)) HistoryOption {
	return func(s *historyTest) { s.trim = trim }
}

// TestHistory checks that a store does what [pushlet.History] asks for, in subtests. open
// returns an empty one, each time another, and has t close it in the end. It is called from
// a test of the store:
//
//	func TestHistory(t *testing.T) {
//		pushlettest.TestHistory(t, func(t *testing.T) pushlet.History { return open(t) })
//	}
//
// A store that removes messages by age or number must keep at least 2,000 messages of an
// audience for a minute while it is tested.
func TestHistory(t *testing.T, open func(t *testing.T) pushlet.History, options ...HistoryOption) {
	t.Helper()
	s := historyTest{open: open}
	for _, o := range options {
		o(&s)
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Empty", s.empty},
		{"Order", s.order},
		{"Limit", s.limit},
		{"Audiences", s.audiences},
		{"AllOrNothing", s.allOrNothing},
		{"Exact", s.exact},
		{"Large", s.large},
		{"Removed", s.removed},
		{"Concurrent", s.concurrent},
		{"Cancelled", s.cancelled},
		{"Reopen", s.reopened},
	} {
		t.Run(test.name, test.run)
	}
}

type historyTest struct {
	open   func(t *testing.T) pushlet.History
	reopen func(t *testing.T, h pushlet.History) pushlet.History
	trim   func(t *testing.T, h pushlet.History, audience pushlet.Audience, keep int)
}

var (
	historyNews     = pushlet.Audience{Topic: "news"}
	historyEveryone = pushlet.Audience{}
	historyAnn      = pushlet.Audience{User: "ann"}
)

// A scribe appends numbered messages to a store.
type scribe struct {
	t    *testing.T
	h    pushlet.History
	n    int
	prev map[pushlet.Audience]string
	all  []pushlet.Message
}

func (s *historyTest) scribe(t *testing.T) *scribe {
	t.Helper()
	return &scribe{t: t, h: s.open(t), prev: make(map[pushlet.Audience]string)}
}

const historyTime = 1_700_000_000_000

func historyID(n int) string { return fmt.Sprintf("%d-%d", historyTime+n/3, 1_500_000_000_000+n) }

// message returns the next message.
func (w *scribe) message(audience pushlet.Audience, data string) pushlet.Message {
	w.n++
	m := pushlet.Message{
		ID: historyID(w.n), Prev: w.prev[audience], Audience: audience, Event: "message", Data: data,
		Time: time.UnixMilli(historyTime + int64(w.n)),
	}
	if m.Prev == "" {
		m.Prev = fmt.Sprintf("%d-1500000000000", historyTime-1000)
	}
	w.prev[audience] = m.ID
	return m
}

// append stores messages in one call.
func (w *scribe) append(messages ...pushlet.Message) {
	w.t.Helper()
	if err := w.h.Append(w.t.Context(), messages); err != nil {
		w.t.Fatalf("Append of %d messages: %v", len(messages), err)
	}
	w.all = append(w.all, messages...)
}

// of returns what was stored for an audience after an ID.
func (w *scribe) of(audience pushlet.Audience, id string) (messages []pushlet.Message) {
	for _, m := range w.all {
		if m.Audience == audience && m.ID > id {
			messages = append(messages, m)
		}
	}
	return messages
}

// expect compares what the store has for an audience with what was stored.
func (w *scribe) expect(audience pushlet.Audience) {
	w.t.Helper()
	want := w.of(audience, "")
	expectMessages(w.t, readHistory(w.t, w.h, audience, "", 100), want)
	last, ok, err := w.h.Last(w.t.Context(), audience)
	switch {
	case err != nil:
		w.t.Fatalf("Last(%v): %v", audience, err)
	case ok != (len(want) > 0):
		w.t.Fatalf("Last(%v) reports %t, want %t", audience, ok, !ok)
	case ok:
		expectMessages(w.t, []pushlet.Message{last}, want[len(want)-1:])
	}
}

func (w *scribe) expectNewest() {
	w.t.Helper()
	want := ""
	if len(w.all) > 0 {
		want = w.all[len(w.all)-1].ID
	}
	if got, err := w.h.Newest(w.t.Context()); err != nil || got != want {
		w.t.Errorf("Newest returns %q, %v; want %q", got, err, want)
	}
}

// readHistory reads all after an ID, in pages.
func readHistory(t *testing.T, h pushlet.History, audience pushlet.Audience, id string, limit int) (all []pushlet.Message) {
	t.Helper()
	for {
		page, err := h.After(t.Context(), audience, id, limit)
		if err != nil {
			t.Fatalf("After(%v, %q): %v", audience, id, err)
		}
		if len(page) > limit {
			t.Fatalf("After(%v, %q) returns %d messages, want at most %d", audience, id, len(page), limit)
		}
		if len(page) == 0 {
			return all
		}
		if page[0].ID <= id {
			t.Fatalf("After(%v, %q) returns %q", audience, id, page[0].ID)
		}
		all = append(all, page...)
		id = page[len(page)-1].ID
	}
}

func expectMessages(t *testing.T, got, want []pushlet.Message) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d messages, want %d", len(got), len(want))
	}
	for i, g := range got {
		w := want[i]
		switch {
		case g.ID != w.ID || g.Prev != w.Prev || g.Audience != w.Audience || g.Event != w.Event:
			t.Fatalf("message %d is %s after %s for %q, event %q; want %s after %s for %q, %q",
				i, g.ID, g.Prev, g.Audience, g.Event, w.ID, w.Prev, w.Audience, w.Event)
		case g.Time.UnixMilli() != w.Time.UnixMilli():
			t.Fatalf("the time of %s is %v, want %v", g.ID, g.Time, w.Time)
		case g.Data != w.Data:
			t.Fatalf("the data of %s is %.50q, %d bytes; want %.50q, %d bytes", g.ID, g.Data, len(g.Data), w.Data, len(w.Data))
		}
	}
}

func (s *historyTest) empty(t *testing.T) {
	w := s.scribe(t)
	for _, a := range []pushlet.Audience{historyNews, historyEveryone, historyAnn} {
		w.expect(a)
	}
	w.expectNewest()
	expectMessages(t, readHistory(t, w.h, historyNews, historyID(5), 10), nil)
}

func (s *historyTest) order(t *testing.T) {
	w := s.scribe(t)
	for i := range 30 {
		var batch []pushlet.Message
		for j := range 1 + i%4 {
			batch = append(batch, w.message([]pushlet.Audience{historyNews, historyEveryone, historyAnn}[(i+j)%3], fmt.Sprint(i, j)))
		}
		w.append(batch...)
		w.expectNewest()
	}
	for _, a := range []pushlet.Audience{historyNews, historyEveryone, historyAnn} {
		w.expect(a)
	}
}

func (s *historyTest) limit(t *testing.T) {
	w := s.scribe(t)
	for range 25 {
		w.append(w.message(historyNews, "a"), w.message(historyAnn, "b"))
	}
	for _, limit := range []int{1, 2, 7, 24, 25, 26, 1000} {
		expectMessages(t, readHistory(t, w.h, historyNews, "", limit), w.of(historyNews, ""))
	}
	// From the ID of every message of any audience, and from some that are of none.
	ids := []string{"1000000000000-1000000000000", historyID(0), historyID(w.n + 1), fmt.Sprintf("%d-9999999999999", historyTime+5)}
	for _, m := range w.all {
		ids = append(ids, m.ID)
	}
	for _, id := range ids {
		expectMessages(t, readHistory(t, w.h, historyNews, id, 10), w.of(historyNews, id))
	}
}

// audiences checks that nobody gets what is for others.
func (s *historyTest) audiences(t *testing.T) {
	w := s.scribe(t)
	names := []string{
		"a", "A", "a/b", "a/", "/a", "b", "ab", "a b", " a", "a ", "a%", "a_", "a*", "a?", "a'", `a"`, "a;--", "a.b", "..", "../a", "a\\b",
		"user/a", "topic/a", "u", "t", "ä", "a\u0308", "日本語", "日本", "🙂", "\u00ff", strings.Repeat("x", 254), strings.Repeat("x", 255),
		"0", "00", "null", "NULL", "-1", historyID(1),
	}
	all := []pushlet.Audience{historyEveryone}
	for _, name := range names {
		all = append(all, pushlet.Audience{Topic: name}, pushlet.Audience{User: name})
	}
	for _, name := range []string{"*", "**", "@user/a", "@", "user"} { // as topics they are reserved, or near to that
		all = append(all, pushlet.Audience{User: name})
	}
	all = append(all, pushlet.Audience{Topic: "@"}, pushlet.Audience{Topic: "@users/a"}, pushlet.Audience{Topic: "@user0"})
	for range 3 {
		var batch []pushlet.Message
		for _, a := range all {
			batch = append(batch, w.message(a, "for "+a.String()))
		}
		w.append(batch...)
	}
	for _, a := range all {
		w.expect(a)
	}
	for _, a := range []pushlet.Audience{{Topic: "nobody"}, {User: "nobody"}, {Topic: "x"}, {User: "x"}, {User: "a/b/c"}} {
		w.expect(a)
	}
}

func (s *historyTest) allOrNothing(t *testing.T) {
	w := s.scribe(t)
	w.append(w.message(historyNews, "before"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	prev := w.prev[historyNews]
	batch := []pushlet.Message{w.message(historyNews, "1"), w.message(historyAnn, "2"), w.message(historyEveryone, "3")}
	if err := w.h.Append(ctx, batch); err == nil {
		w.all = append(w.all, batch...) // it did not look at the context
	} else if newest, err := w.h.Newest(t.Context()); err != nil {
		t.Fatalf("Newest: %v", err)
	} else if newest == batch[2].ID {
		w.all = append(w.all, batch...) // it was stored nevertheless
	} else {
		w.prev[historyNews] = prev
		delete(w.prev, historyAnn)
		delete(w.prev, historyEveryone)
	}
	w.expectNewest()
	for _, a := range []pushlet.Audience{historyNews, historyAnn, historyEveryone} {
		w.expect(a)
	}
	w.append(w.message(historyAnn, "after"), w.message(historyNews, "after"))
	w.expectNewest()
	for _, a := range []pushlet.Audience{historyNews, historyAnn, historyEveryone} {
		w.expect(a)
	}
}

func (s *historyTest) exact(t *testing.T) {
	w := s.scribe(t)
	texts := []string{
		"", " ", "\n", "\r\n", "\r", "\x00", "a\x00b", "\x00\x00", "line\nline\n", "tab\t", "\u2028", "\ufeffbom", "\ufffd", "日本語 🙂", `{"a":"b\\n"}`,
		"'; DROP TABLE messages; --", "\\", "%s%d%n", strings.Repeat("\x00", 1000), "\x7f\u0080", " both ends ",
	}
	for i, text := range texts {
		m := w.message(historyNews, text)
		m.Event = []string{"message", "user-login", "日本語", "a b", " ", strings.Repeat("e", 255), "'\"", "\t"}[i%8]
		m.Time = time.UnixMilli([]int64{historyTime, 1, 1_000_000_000_123, 253402300799999}[i%4])
		w.append(m)
	}
	w.expect(historyNews)
}

func (s *historyTest) large(t *testing.T) {
	w := s.scribe(t)
	large := strings.Repeat("0123456789abcde\n", 1<<16) // 1 MiB
	w.append(w.message(historyNews, large), w.message(historyNews, "small"), w.message(historyAnn, large[1:]))
	for range 4 {
		w.append(w.message(historyNews, large[5:]))
	}
	w.expect(historyNews)
	w.expect(historyAnn)
	var batch []pushlet.Message
	for i := range 1000 {
		batch = append(batch, w.message(historyEveryone, fmt.Sprint(i)))
	}
	w.append(batch...)
	w.expect(historyEveryone)
	w.expectNewest()
}

// removed checks that what was removed is not there any more, and all else is.
func (s *historyTest) removed(t *testing.T) {
	if s.trim == nil {
		t.Skip("no HistoryTrim")
	}
	w := s.scribe(t)
	for range 20 {
		w.append(w.message(historyNews, "a"), w.message(historyAnn, "b"))
	}
	remove := func(keep int) {
		t.Helper()
		s.trim(t, w.h, historyNews, keep)
		news := w.of(historyNews, "")
		gone := len(news) - keep
		expectMessages(t, readHistory(t, w.h, historyNews, "", 10), news[gone:])
		expectMessages(t, readHistory(t, w.h, historyNews, news[gone-1].ID, 10), news[gone:])
		expectMessages(t, readHistory(t, w.h, historyNews, news[0].ID, 10), news[gone:])
		last, ok, err := w.h.Last(t.Context(), historyNews)
		if err != nil || !ok || last.ID != news[len(news)-1].ID {
			t.Errorf("Last returns %s, %t, %v; want %s", last.ID, ok, err, news[len(news)-1].ID)
		}
		w.expect(historyAnn)
		w.expectNewest()
	}
	remove(5)
	remove(1)
	w.append(w.message(historyNews, "c"))
	remove(1)
}

// concurrent reads while messages are appended: a reader sees each batch whole or not at all.
func (s *historyTest) concurrent(t *testing.T) {
	const batches, size = 60, 5
	w := s.scribe(t)
	var all sync.WaitGroup
	var written atomic.Bool // all there will be
	for range 4 {
		all.Go(func() {
			for seen := 0; seen < batches*size; {
				over := written.Load()
				id := ""
				if seen > 0 {
					id = historyID(seen)
				}
				newest, err1 := w.h.Newest(t.Context())
				page, err2 := w.h.After(t.Context(), historyNews, id, size*batches)
				last, ok, err3 := w.h.Last(t.Context(), historyNews)
				if err := errors.Join(err1, err2, err3); err != nil {
					t.Errorf("while messages are appended: %v", err)
					return
				}
				if over && len(page) == 0 {
					t.Errorf("After ends with message %d", seen)
					return
				}
				for _, m := range page {
					if seen++; m.ID != historyID(seen) {
						t.Errorf("message %d is %s, want %s", seen, m.ID, historyID(seen))
						return
					}
				}
				switch {
				case len(page) > 0 && seen%size != 0:
					t.Errorf("%d messages, which is a part of an Append", seen)
					return
				case newest != "" && seen > 0 && newest > historyID(seen):
					t.Errorf("Newest was %s before After ended with %s", newest, historyID(seen))
					return
				case seen > 0 && (!ok || last.ID < historyID(seen)):
					t.Errorf("Last is %s after After ended with %s", last.ID, historyID(seen))
					return
				}
			}
		})
	}
	for range batches {
		var batch []pushlet.Message
		for range size {
			batch = append(batch, w.message(historyNews, "a"))
		}
		if err := w.h.Append(t.Context(), batch); err != nil {
			t.Errorf("Append: %v", err)
			break
		}
	}
	written.Store(true)
	all.Wait()
}

// cancelled checks that no method hangs, or panics, when its context is done.
func (s *historyTest) cancelled(t *testing.T) {
	w := s.scribe(t)
	w.append(w.message(historyNews, "a"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if page, err := w.h.After(ctx, historyNews, "", 10); err == nil && len(page) != 1 {
			t.Errorf("After returns %d messages and no error, want 1 or an error", len(page))
		}
		if _, ok, err := w.h.Last(ctx, historyNews); err == nil && !ok {
			t.Error("Last returns nothing and no error")
		}
		if id, err := w.h.Newest(ctx); err == nil && id == "" {
			t.Error("Newest returns nothing and no error")
		}
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("a method has not returned for 20 seconds, although its context is done")
	}
	w.expect(historyNews)
}

func (s *historyTest) reopened(t *testing.T) {
	if s.reopen == nil {
		t.Skip("no HistoryReopen")
	}
	w := s.scribe(t)
	for i := range 3 {
		w.append(w.message(historyNews, fmt.Sprint(i)), w.message(historyAnn, fmt.Sprint(i)), w.message(historyEveryone, "\x00"))
		w.h = s.reopen(t, w.h)
		w.expectNewest()
		for _, a := range []pushlet.Audience{historyNews, historyAnn, historyEveryone} {
			w.expect(a)
		}
	}
}

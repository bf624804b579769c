package pushlet_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
)

// A lostBook is what OnUndelivered was told.
type lostBook struct {
	mu  sync.Mutex
	all []pushlet.Undelivered
}

func (b *lostBook) note(u pushlet.Undelivered) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, u)
}

// wait returns what was told when that and what was left out is all that was undelivered.
func (b *lostBook) wait(t *testing.T, p *pushlet.Pushlet) []pushlet.Undelivered {
	t.Helper()
	var told []pushlet.Undelivered
	eventually(t, "a connection has ended and what it lacks was told", func() bool {
		s := p.Stats()
		b.mu.Lock()
		defer b.mu.Unlock()
		told = slices.Clone(b.all)
		ended := uint64(0)
		for _, n := range s.Ended {
			ended += n
		}
		return ended == s.Connected && uint64(len(told))+s.ReportsDropped == s.Undelivered
	})
	return told
}

// publishMix publishes numbered messages of many lengths to topics in turn, and broadcasts,
// and returns what was published: "topic event data".
func publishMix(t *testing.T, p *pushlet.Pushlet, n int, topics ...string) (published []string) {
	t.Helper()
	topics = append(topics, "*")
	random := rand.NewChaCha8([32]byte{})
	for i := range n {
		topic, event := topics[i%len(topics)], fmt.Sprint("event", i%3)
		noise := make([]byte, i*797%2000) // which cannot be compressed
		_, _ = random.Read(noise)
		data := fmt.Sprintf("%d %x", i, noise)
		if topic == "*" {
			check(t, p.PublishToAll(event, data))
		} else {
			check(t, p.Publish(topic, event, data))
		}
		published = append(published, topic+" "+event+" "+data)
	}
	return published
}

// TestUndelivered: what a peer that reads nothing finds in its socket in the end, and what
// OnUndelivered was told, are together exactly what was published, in order.
func TestUndelivered(t *testing.T) {
	t.Parallel()
	const n = 900
	options := func(b *lostBook, timeout time.Duration) []pushlet.Option {
		return []pushlet.Option{
			pushlet.WithHistory(2*n, 64<<20, time.Hour), pushlet.WithQueue(2*n, 64<<20), pushlet.WithCompression(),
			pushlet.WithWriteTimeout(timeout),
			pushlet.WithHooks(pushlet.Hooks{OnUndelivered: b.note}),
		}
	}
	verify := func(t *testing.T, p *pushlet.Pushlet, b *lostBook, why pushlet.Reason, protocol string, published, received []string, exact bool) {
		t.Helper()
		told := b.wait(t, p)
		var lacking []string
		ids := make(map[string]bool)
		for _, u := range told {
			lacking = append(lacking, u.Topic+" "+u.Event+" "+u.Data)
			if u.Client.Protocol != protocol || u.Client.ID == "" || u.Why != why || u.ID == "" || ids[u.ID] {
				t.Fatalf("told %+.200v", u)
			}
			ids[u.ID] = true
		}
		if why == pushlet.ReasonWriteTimeout && len(lacking) > 0 { // it may have ended while others were published
			published = published[:slices.Index(published, lacking[len(lacking)-1])+1]
		}
		twice := len(received) + len(lacking) - len(published)
		if len(lacking) == 0 || twice < 0 || twice > 0 && exact || twice > 16 {
			t.Fatalf("%d received, %d undelivered, want together %d; %v", len(received), len(lacking), len(published), p.Stats())
		}
		if !slices.Equal(received, published[:len(received)]) || !slices.Equal(lacking, published[len(published)-len(lacking):]) {
			t.Errorf("%d received and %d undelivered are not what was published", len(received), len(lacking))
		}
		s := p.Stats()
		if s.Undelivered != uint64(len(lacking)) || s.UndeliveredReasons[why] != s.Undelivered ||
			exact && s.Delivered+s.Undelivered != uint64(len(published)) || s.Queued != 0 {
			t.Errorf("%v, want %d undelivered", s, len(lacking))
		}
	}
	for why, topics := range map[pushlet.Reason][]string{pushlet.ReasonWriteTimeout: {"a"}, pushlet.ReasonShutdown: {"a", "b", "c"}} {
		timeout := time.Minute
		end := func(p *pushlet.Pushlet) {
			over, cancel := context.WithCancel(t.Context())
			cancel()
			p.Shutdown(over)
		}
		if why == pushlet.ReasonWriteTimeout {
			timeout, end = 400*time.Millisecond, func(*pushlet.Pushlet) {}
		}
		query := "topic=" + strings.Join(topics, "&topic=")
		for i, tr := range transports[:3] {
			t.Run(fmt.Sprintf("%s of %d", tr.name, len(topics)), func(t *testing.T) {
				t.Parallel()
				var b lostBook
				s := tr.site(t, withSmallBuffers(), withOptions(options(&b, timeout)...))
				st, _ := followSlowly(t, s, query, 4<<10)
				published := publishMix(t, s.p, n, topics...)
				end(s.p)
				b.wait(t, s.p)
				var received []string
				for {
					e, err := st.read()
					if err != nil {
						break
					}
					// Over SSE a client is not told the topic: find it.
					whole := slices.IndexFunc(published, func(m string) bool { return strings.HasSuffix(m, " "+e.name+" "+e.data) })
					if whole < 0 {
						t.Fatalf("received %v", e)
					}
					received = append(received, published[whole])
				}
				verify(t, s.p, &b, why, "sse", published, received, i < 2)
			})
		}
		t.Run(fmt.Sprintf("JSON of %d", len(topics)), func(t *testing.T) {
			t.Parallel()
			var b lostBook
			s := newSite(t, withSmallBuffers(), withOptions(options(&b, timeout)...))
			conn := s.dialBuffer(t, 4<<10)
			request(t, conn, "format=json&"+query, "HTTP/1.1")
			st := jsonStream{receive(t, conn)}
			for _, topic := range topics {
				st.expect(topic, "pushlet.subscribed", "")
			}
			published := publishMix(t, s.p, n, topics...)
			end(s.p)
			b.wait(t, s.p)
			var received []string
			for {
				e, err := st.read()
				if err != nil {
					break
				}
				m := wsDecode(t, []byte(e.data))
				received = append(received, m.Topic+" "+m.Event+" "+m.Data)
			}
			verify(t, s.p, &b, why, "sse", published, received, true)
		})
		for _, header := range [][]string{nil, {"Sec-WebSocket-Protocol", "pushlet.text"}, {"Sec-WebSocket-Extensions", "permessage-deflate; server_no_context_takeover; client_no_context_takeover"}} {
			t.Run(fmt.Sprintf("WebSocket of %d %s", len(topics), strings.Join(header, " ")), func(t *testing.T) {
				t.Parallel()
				var b lostBook
				s := wsServeSmall(t, options(&b, timeout)...)
				r := s.raw("?"+query, header...)
				for range topics {
					if m := r.next(); m.Event != "pushlet.subscribed" {
						t.Fatal(m)
					}
				}
				published := publishMix(t, s.Pushlet, n, topics...)
				end(s.Pushlet)
				b.wait(t, s.Pushlet)
				var received []string
				for {
					w, err := r.tryRead()
					if err != nil {
						break
					}
					if w.opcode() == wsPing {
						continue
					}
					m := wsDecode(t, w.body(t))
					received = append(received, m.Topic+" "+m.Event+" "+m.Data)
				}
				verify(t, s.Pushlet, &b, why, "websocket", published, received, true)
			})
		}
	}
}

// TestUndeliveredAtShutdown: when Shutdown has to cut a connection it waits until the hook
// was told.
func TestUndeliveredAtShutdown(t *testing.T) {
	t.Parallel()
	const n = 200
	var b lostBook
	s := newSite(t, withSmallBuffers(), withOptions(pushlet.WithHooks(pushlet.Hooks{OnUndelivered: b.note})))
	followSlowly(t, s, "topic=a", 4<<10)
	for i := range n {
		s.publish(t, "a", kilobyte(i))
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	s.p.Shutdown(over)
	got := s.p.Stats()
	if len(b.all) == 0 || got.Undelivered != uint64(len(b.all)) || got.UndeliveredReasons[pushlet.ReasonShutdown] != got.Undelivered {
		t.Errorf("told of %d; %v", len(b.all), got)
	}
	for i, u := range b.all {
		if u.Why != pushlet.ReasonShutdown || u.Data != kilobyte(n-len(b.all)+i) {
			t.Fatalf("told of %.20q, %s", u.Data, u.Why)
		}
	}
}

// TestUndeliveredOfOneWhoReads: a client that has read everything and leaves at once has
// nothing undelivered, however short the time between the write and its end.
func TestUndeliveredOfOneWhoReads(t *testing.T) {
	t.Parallel()
	var b lostBook
	s := newSite(t, withOptions(pushlet.WithHooks(pushlet.Hooks{OnUndelivered: b.note})))
	for i := range 300 {
		topic := fmt.Sprint(i)
		st := s.rawFollow(t, "topic="+topic)
		st.expectHello()
		s.publish(t, topic, "hello")
		st.expectMessages("hello")
		st.close()
	}
	s.clientsGone(t)
	if told := b.wait(t, s.p); len(told) > 0 {
		t.Errorf("told of %+v", told)
	}
}

// TestUndeliveredBounds: no more than 1,000 messages of a connection are told, the newest,
// and none that history does not hold any more; the others are counted.
func TestUndeliveredBounds(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name                 string
		n, history, most, by int
	}{
		{"of one connection", 3000, 5000, 1000, 1000},
		{"of history", 800, 100, 100, 100},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var b lostBook
			s := newSite(t, withSmallBuffers(), withOptions(
				pushlet.WithHistory(test.history, 64<<20, time.Hour),
				pushlet.WithHooks(pushlet.Hooks{OnUndelivered: b.note}),
			))
			st, _ := followSlowly(t, s, "topic=a", 4<<10)
			for i := range test.n {
				s.publish(t, "a", kilobyte(i))
			}
			eventually(t, "messages wait", func() bool { return s.p.Stats().Queued > test.most })
			st.close()
			told := b.wait(t, s.p)
			got := s.p.Stats()
			if len(told) != test.most || got.Undelivered <= uint64(test.most) || got.ReportsDropped != got.Undelivered-uint64(test.most) {
				t.Fatalf("told of %d, want %d; %v", len(told), test.most, got)
			}
			for i, u := range told {
				if u.Data != kilobyte(test.n-test.most+i) {
					t.Fatalf("told of %.20q", u.Data)
				}
			}
		})
	}
}

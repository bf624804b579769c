package pushlet_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
)

// withSmallBuffers gives the server's connections small send buffers, so that a client
// that does not read is noticed before megabytes lie in the system.
func withSmallBuffers() siteOption {
	return withServer(func(srv *httptest.Server) {
		srv.Config.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
			if t, ok := conn.(*tls.Conn); ok {
				conn = t.NetConn()
			}
			_ = conn.(*net.TCPConn).SetWriteBuffer(16 << 10)
			return ctx
		}
	})
}

// followSlowly opens an event stream on a connection that holds little, and reads only
// the first event.
func followSlowly(t *testing.T, s *site, query string, buffer int) (*stream, hello) {
	t.Helper()
	conn := s.dialBuffer(t, buffer)
	request(t, conn, query, "HTTP/1.1")
	st := receive(t, conn)
	st.buf = make([]byte, 512)
	h, _ := st.expectHello()
	return st, h
}

// kilobyte returns 1 KiB that begins with a number.
func kilobyte(n int) string { return fmt.Sprintf("%-1024d", n) }

// number returns the number that an event's data begins with.
func number(e event) int {
	digits, _, _ := strings.Cut(e.data, " ")
	n, _ := strconv.Atoi(digits)
	return n
}

// heapInUse returns the live bytes of the heap.
func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestStalledClients: 5 % of the clients never read. The others get everything, memory
// stays bounded, and what happens to the stalled ones is what their topic's policy says,
// and is told to the hook.
func TestStalledClients(t *testing.T) {
	const (
		readersEach, stalledEach = 63, 3
		queue, history           = 256, 256
		rounds, burst            = 700, 100
		events                   = 4
	)
	policies := map[string]pushlet.SlowPolicy{
		"skip/x":   pushlet.Skip,
		"cut/x":    pushlet.Disconnect,
		"latest/x": pushlet.KeepLatest,
	}
	var mu sync.Mutex
	reports := make(map[pushlet.SlowConsumer]int)
	reasons := make(map[string]pushlet.Reason)
	s := newSite(t, withSmallBuffers(), withOptions(
		pushlet.WithQueue(queue, 1<<20),
		pushlet.WithHistory(history, 1<<20, time.Hour),
		pushlet.WithTopicSlowPolicy("cut/", pushlet.Disconnect),
		pushlet.WithTopicSlowPolicy("latest/", pushlet.KeepLatest),
		pushlet.WithHooks(pushlet.Hooks{
			OnSlow: func(r pushlet.SlowConsumer) {
				mu.Lock()
				defer mu.Unlock()
				reports[r]++
			},
			OnDisconnect: func(c pushlet.Client, why pushlet.Reason) {
				mu.Lock()
				defer mu.Unlock()
				reasons[c.ID] = why
			},
		}),
	))

	type stalledClient struct {
		*stream
		id, topic string
	}
	var stalled []stalledClient
	var got atomic.Int64
	var readers sync.WaitGroup
	for topic := range policies {
		for range stalledEach {
			st, h := followSlowly(t, s, "topic="+topic, 4<<10)
			stalled = append(stalled, stalledClient{st, h.Client, topic})
		}
		for range readersEach {
			st, _, _ := s.connect(t, "topic="+topic, "")
			st.buf = make([]byte, 32<<10)
			readers.Go(func() {
				for n := range rounds {
					e, err := st.read()
					if err != nil || number(e) != n {
						t.Errorf("a client of %s that reads got %v, %v, want number %d", topic, e, err, n)
						return
					}
					got.Add(1)
				}
			})
		}
	}

	before := heapInUse()
	for n := range rounds {
		for topic := range policies {
			check(t, s.p.Publish(topic, fmt.Sprint("event", n%events), kilobyte(n)))
		}
		if (n+1)%burst == 0 { // no faster than the others read
			want := int64(n+1) * readersEach * int64(len(policies))
			eventually(t, "those who read have everything", func() bool { return got.Load() >= want || t.Failed() })
		}
	}
	readers.Wait()
	// Queues and history hold what they may, once for all clients of a topic.
	if grown, most := heapInUse()-before, int64(16<<20); grown > most {
		t.Errorf("the heap has grown by %d bytes, want at most %d", grown, most)
	}
	eventually(t, "all stalled clients are reported", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(reports) >= len(stalled)
	})
	mu.Lock()
	for _, st := range stalled {
		if n := reports[pushlet.SlowConsumer{Client: st.id, Topic: st.topic, Policy: policies[st.topic]}]; n != 1 {
			t.Errorf("%d reports about a client of %s with policy %v, want 1; all: %v", n, st.topic, policies[st.topic], reports)
		}
	}
	if len(reports) != len(stalled) {
		t.Errorf("reports about %d clients, want %d", len(reports), len(stalled))
	}
	mu.Unlock()
	stats := s.p.Stats()
	if stats.Slow != uint64(len(stalled)) || stats.FellBehind < stats.Slow || stats.ReportsDropped != 0 {
		t.Errorf("%v, want %d slow", stats, len(stalled))
	}

	// Now the stalled clients read.
	check(t, s.p.PublishToAll("live", strconv.Itoa(rounds)))
	for _, st := range stalled {
		n := 0
		e, err := st.read()
		for ; err == nil && e.name != "pushlet.gap"; e, err = st.read() {
			if number(e) != n {
				t.Fatalf("a stalled client of %s got number %d, want %d", st.topic, number(e), n)
			}
			n++
		}
		var want []int
		switch policies[st.topic] {
		case pushlet.Disconnect:
			mu.Lock()
			if err == nil || reasons[st.id] != pushlet.ReasonSlow {
				t.Errorf("a stalled client of %s: %v, reason %q, want the end because of %q", st.topic, e, reasons[st.id], pushlet.ReasonSlow)
			}
			mu.Unlock()
			continue
		case pushlet.Skip:
			want = sequence(rounds-history, rounds)
		case pushlet.KeepLatest:
			want = sequence(rounds-events, rounds)
		}
		var g gap
		if err != nil || json.Unmarshal([]byte(e.data), &g) != nil || g.Reason != "trimmed" || !slices.Equal(g.Topics, []string{st.topic}) {
			t.Fatalf("a stalled client of %s got %v, %v, want a gap", st.topic, e, err)
		}
		for _, n := range want {
			if e := st.next(); number(e) != n {
				t.Fatalf("after its gap a client of %s got number %d, want %d", st.topic, number(e), n)
			}
		}
	}
}

// TestStalledOnOneTopic: a client that has fallen out of the history of one topic loses
// nothing of the others, and is told of the one.
func TestStalledOnOneTopic(t *testing.T) {
	const rounds, history, every = 1000, 100, 100
	for _, flooded := range []string{"a", "*"} {
		t.Run(flooded, func(t *testing.T) {
			var reports []pushlet.SlowConsumer // of one goroutine; Stop waits for it
			s := newSite(t, withSmallBuffers(), withOptions(
				pushlet.WithQueue(100, 1<<20), pushlet.WithHistory(history, 1<<20, time.Hour),
				pushlet.WithHooks(pushlet.Hooks{OnSlow: func(r pushlet.SlowConsumer) { reports = append(reports, r) }}),
			))
			publish := func(topic, event, data string) {
				t.Helper()
				if topic == "*" {
					check(t, s.p.PublishToAll(event, data))
				} else {
					check(t, s.p.Publish(topic, event, data))
				}
			}
			others := map[string][]string{"a": {"*", "b"}, "*": {"a", "b"}}[flooded]
			st, h := followSlowly(t, s, "topic=a&topic=b", 4<<10)
			for n := range rounds {
				publish(flooded, "flood", kilobyte(n))
				if n%every == 0 {
					for _, topic := range others {
						publish(topic, topic, strconv.Itoa(n/every))
					}
				}
			}
			eventually(t, "the client is slow", func() bool { return s.p.Stats().Slow == 1 })
			st.buf = make([]byte, 64<<10)
			next, gaps := map[string]int{}, 0
			for next["flood"] < rounds {
				e := st.next()
				switch {
				case e.name == "pushlet.gap":
					var g gap
					if err := json.Unmarshal([]byte(e.data), &g); err != nil || g.Reason != "trimmed" || !slices.Equal(g.Topics, []string{flooded}) {
						t.Errorf("gap %v, want of %s", e, flooded)
					}
					gaps++
					next["flood"] = rounds - history
				case number(e) != next[e.name]:
					t.Fatalf("%v, want number %d", e, next[e.name])
				default:
					next[e.name]++
				}
			}
			for _, topic := range others {
				if next[topic] != rounds/every {
					t.Errorf("%d messages of %s, want %d", next[topic], topic, rounds/every)
				}
			}
			st.close()
			check(t, s.p.Stop())
			want := []pushlet.SlowConsumer{{Client: h.Client, Topic: flooded, Policy: pushlet.Skip}}
			if gaps != 1 || !slices.Equal(reports, want) {
				t.Errorf("%d gaps, reports %v, want 1 and %v", gaps, reports, want)
			}
		})
	}
}

// fillSocket publishes to the one client, which reads nothing, until its socket takes no more: until
// for a second nothing of a message has left.
func fillSocket(t *testing.T, s *site, topic string) {
	t.Helper()
	for n := uint64(1); ; n++ {
		check(t, s.p.Publish(topic, "fill", kilobyte(0)))
		for deadline := time.Now().Add(time.Second); s.p.Stats().Delivered < n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				return
			}
		}
	}
}

// TestKeepLatestUntilCaughtUp: under KeepLatest a client gets only the newest message of
// each event after its gap, also if they do not fit into its queue at once.
func TestKeepLatestUntilCaughtUp(t *testing.T) {
	const flood, history = 400, 60
	s := newSite(t, withSmallBuffers(), withOptions(
		pushlet.WithQueue(1, 1), pushlet.WithHistory(history, 1<<20, time.Hour), pushlet.WithSlowPolicy(pushlet.KeepLatest)))
	st, _ := followSlowly(t, s, "topic=a", 4<<10)
	fillSocket(t, s, "a") // else it may catch up, on a busy machine, while the flood goes on
	for n := range flood {
		check(t, s.p.Publish("a", "often", kilobyte(n)))
	}
	check(t, s.p.Publish("a", "once", "1"))
	for n := range history / 2 {
		check(t, s.p.Publish("a", "often", kilobyte(flood+n)))
	}
	eventually(t, "the client is slow", func() bool { return s.p.Stats().Slow >= 1 })
	var got []event // since the last gap
	last := kilobyte(flood + history/2 - 1)
	for e := st.next(); ; e = st.next() {
		if got = append(got, e); e.name == "pushlet.gap" {
			got = nil
		}
		if e.data == last {
			break
		}
	}
	// What was newest when the gap was told may have been under way.
	if n := len(got); n < 2 || n > 3 || got[n-2].name != "once" {
		t.Errorf("%d events after the gap, want once and the last often", n)
	}
	eventually(t, "the client has caught up", func() bool { return s.p.Stats().Behind == 0 })
	s.publish(t, "a", "live")
	st.expectMessages("live")
}

// sequence returns from, from+1, …, to.
func sequence(from, to int) (numbers []int) {
	for n := from; n <= to; n++ {
		numbers = append(numbers, n)
	}
	return numbers
}

// TestBurst: a burst harms nobody who reads, whether it fits into the queues or has to
// come from history.
func TestBurst(t *testing.T) {
	for _, test := range []struct {
		name              string
		messages, clients int
		options           []pushlet.Option
	}{
		{"into the queue", 5000, 200, nil},
		{"through history", 1500, 30, []pushlet.Option{pushlet.WithQueue(100, 1<<20), pushlet.WithHistory(3000, 16<<20, time.Hour)}},
		{"through history by bytes", 1000, 30, []pushlet.Option{pushlet.WithQueue(1000, 2000), pushlet.WithHistory(3000, 16<<20, time.Hour)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, withOptions(test.options...))
			var readers sync.WaitGroup
			for range test.clients {
				st, _, _ := s.connect(t, "topic=a", "")
				st.buf = make([]byte, 64<<10)
				readers.Go(func() {
					for n := range test.messages {
						if e, err := st.read(); err != nil || number(e) != n {
							t.Errorf("got %v, %v, want number %d", e, err, n)
							return
						}
					}
				})
			}
			for n := range test.messages {
				s.publish(t, "a", strconv.Itoa(n))
			}
			readers.Wait()
			eventually(t, "all is counted", func() bool { return s.p.Stats().Delivered == uint64(test.messages*test.clients) })
			if got := s.p.Stats(); got.Gaps != 0 || got.Slow != 0 || got.Behind != 0 {
				t.Errorf("%v, want no gaps", got)
			}
		})
	}
}

// TestSlowThenFast: a client that reads a trickle while much is published, and then as
// fast as it can, ends with everything, or is told of every hole.
func TestSlowThenFast(t *testing.T) {
	t.Parallel()
	const (
		messages = 1000
		trickle  = 2500 * time.Millisecond
	)
	for _, test := range []struct {
		name    string
		history int
		whole   bool
	}{
		{"everything", messages, true},
		{"an honest gap", 100, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			together(t, transports[:3], func(t *testing.T, tr transport) {
				s := tr.site(t, withSmallBuffers(), withOptions(
					pushlet.WithQueue(50, 1<<20), pushlet.WithHistory(test.history, 64<<20, time.Hour)))
				st, _ := followSlowly(t, s, "topic=a", 16<<10)
				var publisher sync.WaitGroup
				defer publisher.Wait()
				publisher.Go(func() {
					for n := range messages {
						if err := s.p.Publish("a", "message", kilobyte(n)+strings.Repeat(" ", 3<<10)); err != nil {
							t.Error(err)
						}
						if n%10 == 0 {
							<-time.After(trickle / (messages / 10))
						}
					}
				})
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				begun := time.Now()
				gaps := 0
				for n := 0; n < messages; {
					if time.Since(begun) < trickle {
						<-tick.C
					} else {
						st.buf = make([]byte, 64<<10)
					}
					e := st.next()
					switch {
					case e.name == "pushlet.gap":
						gaps++
						e = st.next()
						if number(e) <= n {
							t.Fatalf("number %d after a gap before %d", number(e), n)
						}
						n = number(e) + 1
					case number(e) != n:
						t.Fatalf("number %d, want %d", number(e), n)
					default:
						n++
					}
				}
				publisher.Wait()
				if test.whole != (gaps == 0) {
					t.Errorf("%d gaps, want everything: %t", gaps, test.whole)
				}
			})
		})
	}
}

// ----- clients that take nothing, or little, for longer

// TestWriteTimeout: a client that takes nothing for the write timeout is closed, and
// counted.
func TestWriteTimeout(t *testing.T) {
	t.Parallel()
	together(t, transports[:4], func(t *testing.T, tr transport) {
		reasons := make(chan pushlet.Reason, 1)
		s := tr.site(t, withSmallBuffers(), withOptions(
			pushlet.WithWriteTimeout(300*time.Millisecond),
			pushlet.WithHooks(pushlet.Hooks{OnDisconnect: func(_ pushlet.Client, why pushlet.Reason) { reasons <- why }}),
		))
		s.connect(t, "topic=a", "")
		large := strings.Repeat("x", 1<<20)
		for range 8 { // HTTP/2 clients of Go take 4 MiB without reading
			s.publish(t, "a", large)
		}
		var why pushlet.Reason
		soon(t, "the connection is closed", func() { why = <-reasons })
		if why != pushlet.ReasonWriteTimeout {
			t.Errorf("reason %q, want %q", why, pushlet.ReasonWriteTimeout)
		}
		if got := s.p.Stats(); got.WriteTimeouts != 1 || got.Clients != 0 {
			t.Errorf("%v, want one write timeout", got)
		}
	})
}

// TestStallShorterThanWriteTimeout: a client that takes nothing for less than the write
// timeout is not cut, however short the heartbeat interval.
func TestStallShorterThanWriteTimeout(t *testing.T) {
	t.Parallel()
	const messages, stall = 1000, 3 * time.Second
	together(t, transports[:2], func(t *testing.T, tr transport) {
		s := tr.site(t, withSmallBuffers(), notStarted())
		check(t, s.p.SetHeartbeatInterval(300*time.Millisecond))
		check(t, s.p.Start())
		st, _ := followSlowly(t, s, "topic=a", 16<<10)
		for n := range messages {
			s.publish(t, "a", kilobyte(n))
		}
		<-time.After(stall)
		st.buf = make([]byte, 64<<10)
		for n := range messages {
			e, err := st.read()
			if err != nil || number(e) != n {
				t.Fatalf("after a stall of %v: %v, %v, want number %d; %v", stall, e, err, n, s.p.Stats())
			}
		}
	})
}

// TestShortHeartbeat: a heartbeat interval that is senselessly short does not keep what
// is published from a client that reads.
func TestShortHeartbeat(t *testing.T) {
	t.Parallel()
	for _, interval := range []time.Duration{time.Millisecond, 1} {
		t.Run(interval.String(), func(t *testing.T) {
			s := newSite(t, withSmallBuffers())
			check(t, s.p.SetHeartbeatInterval(interval))
			st, _ := followSlowly(t, s, "topic=a", 16<<10)
			st.buf = make([]byte, 64<<10)
			large := strings.Repeat("x", 1<<20)
			for range 4 {
				s.publish(t, "a", large)
			}
			st.expectMessages(large, large, large, large)
		})
	}
}

// TestTrickle: a client that takes a little all the time is not one that takes nothing,
// even if it needs longer than the write timeout for what is written at once.
func TestTrickle(t *testing.T) {
	t.Parallel()
	const timeout, trickle = 800 * time.Millisecond, 4 * time.Second
	together(t, transports[:3], func(t *testing.T, tr transport) {
		s := tr.site(t, withSmallBuffers(), withOptions(pushlet.WithWriteTimeout(timeout)))
		st, _ := followSlowly(t, s, "topic=a", 4<<10)
		large := strings.Repeat("x", 1<<20)
		s.publish(t, "a", large)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		buf := make([]byte, 1<<10) // 20 KB/s
		for begun := time.Now(); time.Since(begun) < trickle; <-tick.C {
			lift := st.limit(patience)
			n, err := st.body.Read(buf)
			lift()
			st.ready = append(st.ready, st.parser.feed(buf[:n])...)
			if err != nil {
				t.Fatalf("after %v: %v; %v", time.Since(begun), err, s.p.Stats())
			}
		}
		st.expectMessages(large)
	})
}

// TestDisconnectPolicy: a client that has fallen out of history is ended under policy
// Disconnect, though a writer is waiting for its socket.
func TestDisconnectPolicy(t *testing.T) {
	together(t, transports[:4], func(t *testing.T, tr transport) {
		reasons := make(chan pushlet.Reason, 1)
		s := tr.site(t, withSmallBuffers(), withOptions(
			pushlet.WithQueue(10, 16<<20), pushlet.WithHistory(10, 16<<20, time.Hour), pushlet.WithSlowPolicy(pushlet.Disconnect),
			pushlet.WithHooks(pushlet.Hooks{OnDisconnect: func(_ pushlet.Client, why pushlet.Reason) { reasons <- why }}),
		))
		check(t, s.p.SetHeartbeatInterval(time.Second))
		s.connect(t, "topic=a", "")
		for range 60 {
			s.publish(t, "a", strings.Repeat("x", 256<<10))
		}
		var why pushlet.Reason
		soon(t, "the connection is ended", func() { why = <-reasons })
		if why != pushlet.ReasonSlow {
			t.Errorf("reason %q, want %q", why, pushlet.ReasonSlow)
		}
		if got := s.p.Stats(); got.Slow != 1 || got.Clients != 0 {
			t.Errorf("%v, want one slow client", got)
		}
	})
}

// TestStalledHTTP2Connection: a peer that reads nothing at all from an HTTP/2 connection,
// not even resets, is for the server's WriteByteTimeout to end: a write timeout resets its
// stream, which is one more frame on a connection that takes none.
func TestStalledHTTP2Connection(t *testing.T) {
	t.Parallel()
	s := newSite(t, withHTTP2(), withSmallBuffers(), withOptions(pushlet.WithWriteTimeout(300*time.Millisecond)),
		withServer(func(srv *httptest.Server) {
			srv.Config.HTTP2 = &http.HTTP2Config{WriteByteTimeout: time.Second}
		}))
	conn := dialHTTP2(t, s, "topic=a")
	t.Cleanup(func() { conn.Close() })
	eventually(t, "the client is there", func() bool { return s.p.Stats().Topics == 1 })
	for range 8 {
		s.publish(t, "a", strings.Repeat("x", 1<<20))
	}
	// What lasts longest is Go's: when it closes a TLS connection it tries for 5 seconds
	// to say so.
	const limit = 20 * time.Second
	for deadline := time.Now().Add(limit); s.p.Stats().Clients > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still there %v after a write timeout of 300 ms", limit)
		}
	}
}

// dialHTTP2 asks for an event stream on an HTTP/2 connection (RFC 9113) whose windows
// are wide open, and reads nothing.
func dialHTTP2(t *testing.T, s *site, query string) net.Conn {
	t.Helper()
	raw := s.dialBuffer(t, 4<<10).(*tls.Conn).NetConn()
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	check(t, conn.HandshakeContext(t.Context()))
	frame := func(kind, flags byte, streamID uint32, payload []byte) {
		head := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
		_, err := conn.Write(append(binary.BigEndian.AppendUint32(head, streamID), payload...))
		check(t, err)
	}
	const widest = 1<<31 - 1
	_, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	check(t, err)
	frame(4, 0, 0, binary.BigEndian.AppendUint32([]byte{0, 4}, widest))   // SETTINGS: initial window size
	frame(8, 0, 0, binary.BigEndian.AppendUint32(nil, widest-(1<<16-1)))  // WINDOW_UPDATE of the connection
	path := "/events?" + query                                            // HPACK (RFC 7541): from the static table,
	headers := append([]byte{0x82, 0x87, 0x04, byte(len(path))}, path...) // GET, https, and :path and
	headers = append(headers, 0x01, byte(len("example.com")))             // :authority with literal values
	frame(1, 0x4|0x1, 1, append(headers, "example.com"...))               // HEADERS: END_HEADERS, END_STREAM
	return conn
}

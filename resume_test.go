package pushlet_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usual2970/pushlet"
)

// ----- a client that comes back gets what it missed

func TestResume(t *testing.T) {
	s := newSite(t)
	s.publish(t, "a", "before the first client")
	st, h, _ := s.connect(t, "topic=a", "")
	if h.Resumed {
		t.Error("resumed without a cursor")
	}
	s.publish(t, "a", "1", "2")
	first := st.expectMessages("1")
	second := st.expectMessages("2")
	st.close()
	s.publish(t, "a", "3", "4")
	check(t, s.p.PublishToAll("message", "5"))
	s.publish(t, "a", "6")
	published := numbered(1, 6)

	for _, test := range []struct {
		name, query string
		headers     []string
		seen        int // messages before the cursor, -1 without one
	}{
		{"header", "topic=a", []string{"Last-Event-ID", second.id}, 2},
		{"query", "topic=a&lastEventId=" + second.id, nil, 2},
		{"header before query", "topic=a&lastEventId=" + first.id, []string{"Last-Event-ID", second.id}, 2},
		{"older", "topic=a&lastEventId=" + first.id, nil, 1},
		{"empty query", "topic=a&lastEventId=", []string{"Last-Event-ID", second.id}, 2},
		{"empty", "topic=a&lastEventId=", nil, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			st := s.follow(t, test.query, test.headers...)
			h, _ := st.expectHello()
			if want := test.seen >= 0; h.Resumed != want {
				t.Errorf("resumed = %t, want %t", h.Resumed, want)
			}
			if test.seen >= 0 {
				st.expectMessages(published[test.seen:]...)
			}
			live := "live in " + test.name
			s.publish(t, "a", live)
			published = append(published, live)
			st.expectMessages(live)
		})
	}
	if got := s.p.Stats(); got.Resumes != 5 || got.Gaps != 0 {
		t.Errorf("%v, want 5 resumes without a gap", got)
	}
}

// TestResumeBeforeFirstMessage: the first event of a stream has a cursor already.
func TestResumeBeforeFirstMessage(t *testing.T) {
	s := newSite(t)
	for _, query := range []string{"topic=never-used", "topic=n1&topic=n2", ""} {
		st, h, e := s.connect(t, query, "")
		st.close()
		s.publish(t, h.Topics[0], "missed")
		check(t, s.p.PublishToAll("message", "missed by all"))
		st, h, e = s.connect(t, query, e.id)
		if !h.Resumed {
			t.Errorf("?%s: not resumed", query)
		}
		st.expectMessages("missed", "missed by all")
		st.close()
		// Where nothing was missed there is no gap either.
		for range 2 {
			st, h, e = s.connect(t, query, e.id)
			st.expectMessages("missed", "missed by all")
			st.close()
		}
	}
	if got := s.p.Stats().Gaps; got != 0 {
		t.Errorf("%d gaps, want none", got)
	}
}

// TestResumeSeveralTopics has a client of three topics and the broadcasts come back from
// every point of its stream, with the topics of its URL changed.
func TestResumeSeveralTopics(t *testing.T) {
	s := newSite(t)
	st, _, e := s.connect(t, "topic=a&topic=b&topic=c", "")
	type message struct{ topic, data string }
	var log []message
	cursors := []string{e.id}
	for _, topic := range []string{"a", "a", "b", "*", "c", "*", "*", "b", "a", "c", "*", "b"} {
		m := message{topic, fmt.Sprintf("%s%d", topic, len(log))}
		if topic == "*" {
			check(t, s.p.PublishToAll("message", m.data))
		} else {
			s.publish(t, topic, m.data)
		}
		log = append(log, m)
		cursors = append(cursors, st.expectMessages(m.data).id)
	}
	st.close()
	s.publish(t, "new", "before it was followed")

	for i, topics := range [][]string{
		{"a", "b", "c"},
		{"c", "b", "a"},
		{"b", "c", "b", "a", "c"},
		{"new", "c", "a", "b"}, // followed from now on
		{"a", "c"},
		{"b"},
		{"new"},
	} {
		for from, cursor := range cursors {
			end := fmt.Sprintf("end %d %d", i, from) // a topic of which it gets one message
			query := url.Values{"topic": append(slices.Clone(topics), end)}.Encode()
			st, h, _ := s.connect(t, query, cursor)
			if !h.Resumed {
				t.Errorf("?%s: not resumed", query)
			}
			s.publish(t, end, end)
			for _, m := range log[from:] {
				if m.topic == "*" || slices.Contains(topics, m.topic) {
					st.expectMessages(m.data)
				}
			}
			st.expectMessages(end)
			st.close()
		}
	}
	if got := s.p.Stats().Gaps; got != 0 {
		t.Errorf("%d gaps, want none", got)
	}
}

// TestResumeWhileMessagesFlow has clients that come back after every few messages, at
// random, while several publish: each gets everything once and in order.
func TestResumeWhileMessagesFlow(t *testing.T) {
	const perTopic = 150
	together(t, transports[:4], func(t *testing.T, tr transport) {
		s := tr.site(t)
		topics := []string{"a", "b", "*"}
		var publishers, followers sync.WaitGroup
		for i := range 4 {
			query := []string{"topic=a&topic=b", "topic=b&topic=a"}[i%2]
			_, _, e := s.connect(t, query, "")
			f := &follower{site: s, t: t, query: query, cursor: e.id}
			followers.Go(func() {
				next := map[string]int{"a": 1, "b": 1, "*": 1}
				done := 0
				err := f.follow(func(e event) verdict {
					topic, number, _ := strings.Cut(e.data, " ")
					if want := strconv.Itoa(next[topic]); number != want {
						t.Errorf("message %q, want number %s", e.data, want)
						return enough
					}
					if next[topic]++; next[topic] > perTopic {
						done++
					}
					switch {
					case done == len(topics):
						return enough
					case rand.N(25) == 0:
						return comeBack
					}
					return stay
				})
				if err != nil || len(f.gaps) > 0 {
					t.Errorf("error %v, gaps %v, want none", err, f.gaps)
				}
			})
		}
		for _, topic := range topics {
			publishers.Go(func() {
				for i := range perTopic {
					data := fmt.Sprint(topic, " ", i+1)
					var err error
					if topic == "*" {
						err = s.p.PublishToAll("message", data)
					} else {
						err = s.p.Publish(topic, "message", data)
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		publishers.Wait()
		soon(t, "all clients have everything", followers.Wait)
	})
}

// TestResumeAfterCut cuts a stream after each of its first bytes. What the client has
// not completely got, it gets the next time; only one that was cut before it had a
// cursor begins anew.
func TestResumeAfterCut(t *testing.T) {
	s := newSite(t)
	conn := s.dial(t)
	request(t, conn, "topic=cut", "HTTP/1.1")
	whole := receive(t, conn)
	var raw bytes.Buffer
	whole.body = io.TeeReader(whole.body, &raw)
	whole.expectHello()
	s.publish(t, "cut", "0", "1")
	whole.expectMessages("0", "1")
	length := raw.Len()
	for n := 1; n < length; n += 3 {
		topic := fmt.Sprintf("cut%d", n)
		st := s.rawFollow(t, "topic="+topic)
		s.publish(t, topic, "0", "1")
		var parser eventParser
		lift := st.limit(patience)
		first := make([]byte, n)
		_, err := io.ReadFull(st.body, first)
		check(t, err)
		lift()
		st.close()
		got := parser.feed(first)
		if parser.lastID == "" {
			continue
		}
		s.publish(t, topic, "2")
		st, h, _ := s.connect(t, "topic="+topic, parser.lastID)
		if !h.Resumed {
			t.Errorf("cut after %d bytes: not resumed", n)
		}
		st.expectMessages(numbered(len(got)-1, 2)...) // the first was pushlet.connected
		st.close()
	}
}

// ----- gaps

func TestGapRestarted(t *testing.T) {
	before, after := newSite(t), newSite(t)
	_, _, e := before.connect(t, "topic=a&topic=b", "")
	after.publish(t, "a", "1")
	check(t, after.p.PublishToAll("message", "2"))
	for range 2 { // it stays a gap until the client has been told
		st, h, hello := after.connect(t, "topic=a&topic=b", e.id)
		if h.Resumed {
			t.Error("resumed with the cursor of another process")
		}
		g := st.expectGap("restarted", "a", "b", "*")
		st.expectMessages("1", "2")
		st.close()
		// The cursor of pushlet.connected is from before the gap, that of the gap after it.
		st, _, _ = after.connect(t, "topic=a&topic=b", hello.id)
		st.expectGap("restarted", "a", "b", "*")
		st.close()
		st, h, _ = after.connect(t, "topic=a&topic=b", g.id)
		if !h.Resumed {
			t.Error("not resumed from the cursor of the gap")
		}
		st.expectMessages("1", "2")
		st.close()
	}
	if got, want := after.p.Stats().Gaps, uint64(4*3); got != want {
		t.Errorf("%d gaps, want %d", got, want)
	}
}

// TestGapUnknownCursor: whatever a client sends as a cursor, it gets a stream.
func TestGapUnknownCursor(t *testing.T) {
	s := newSite(t)
	_, _, e := s.connect(t, "topic=a", "")
	s.publish(t, "a", "1")
	for _, token := range []string{
		"x", "0", "1732000000000-0", "null", "undefined", "-1", "*", "%", "AA", "AQ", "AQAA",
		e.id[:len(e.id)-1], e.id[1:], e.id + "A", e.id + "=", e.id + "====", "A" + e.id,
		strings.Repeat("A", 100), strings.Repeat("A", 10_000), strings.Repeat("_", 4000), "消息", "a b", "'; DROP TABLE messages",
	} {
		st, h, _ := s.connect(t, "topic=a&lastEventId="+url.QueryEscape(token), "")
		if h.Resumed {
			t.Errorf("cursor %.50q: resumed", token)
		}
		st.expectGap("unknown_cursor", "a", "*")
		st.expectMessages("1")
		st.close()
	}
}

func TestGapTrimmed(t *testing.T) {
	long := strings.Repeat("x", 99)
	for _, test := range []struct {
		name    string
		options []pushlet.Option
		fit     int // messages of 100 bytes that history holds
	}{
		{"by number", []pushlet.Option{pushlet.WithHistory(10, 1<<20, time.Hour)}, 10},
		{"by bytes", []pushlet.Option{pushlet.WithHistory(1000, 10*(100+len("message")), time.Hour)}, 10},
		{"to one", []pushlet.Option{pushlet.WithHistory(1, 1<<20, time.Hour)}, 1},
		{"by bytes to one", []pushlet.Option{pushlet.WithHistory(1000, 1, time.Hour)}, 1},
		{"by prefix", []pushlet.Option{pushlet.WithTopicHistory("a", 3, 1<<20, time.Hour)}, 3},
		{"by the longest prefix", []pushlet.Option{
			pushlet.WithTopicHistory("a/", 3, 1<<20, time.Hour),
			pushlet.WithTopicHistory("a", 5, 1<<20, time.Hour),
			pushlet.WithTopicHistory("a/b/c", 7, 1<<20, time.Hour),
		}, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, withOptions(test.options...))
			st, _, e := s.connect(t, "topic=a/b", "")
			s.publish(t, "a/b", "0"+long)
			seen := st.expectMessages("0" + long)
			st.close()
			var missed []string
			for i := range test.fit {
				missed = append(missed, fmt.Sprint((i+1)%10)+long)
			}
			s.publish(t, "a/b", missed...)

			// All that it missed is there, and one message less is not enough for the other.
			st, h, _ := s.connect(t, "topic=a/b", seen.id)
			if !h.Resumed {
				t.Error("not resumed, though nothing is missing")
			}
			st.expectMessages(missed...)
			st.close()
			st, h, _ = s.connect(t, "topic=a/b", e.id)
			if h.Resumed {
				t.Error("resumed, though a message is missing")
			}
			st.expectGap("trimmed", "a/b")
			st.expectMessages(missed...)
		})
	}
}

// TestHistoryOff: a client that comes back is told of a gap, unless nothing can have
// been missed.
func TestHistoryOff(t *testing.T) {
	for _, option := range []pushlet.Option{
		pushlet.WithHistory(0, 1<<20, time.Hour),
		pushlet.WithHistory(1000, 0, time.Hour),
		pushlet.WithHistory(1000, 1<<20, 0),
		pushlet.WithTopicHistory("", 0, 0, 0),
	} {
		s := newSite(t, withOptions(option))
		stays, _, _ := s.connect(t, "topic=a", "")
		st, _, _ := s.connect(t, "topic=a", "")
		s.publish(t, "a", "1")
		e := st.expectMessages("1")
		st.close()
		s.publish(t, "a", "2")
		st, h, _ := s.connect(t, "topic=a", e.id)
		if h.Resumed {
			t.Error("resumed without history")
		}
		st.expectGap("trimmed", "a")
		s.publish(t, "a", "3")
		st.expectMessages("3")
		stays.expectMessages("1", "2", "3")
		st.close()

		check(t, s.p.PublishToAll("message", "4"))
		st, _, _ = s.connect(t, "topic=a", stays.expectMessages("4").id)
		check(t, s.p.PublishToAll("message", "5"))
		for e := st.next(); e.data != "5"; e = st.next() { // an unneeded gap is no harm
			if e.name != "pushlet.gap" {
				t.Errorf("event %v, want 5", e)
			}
		}
	}
}

// ----- history in time

// inBubble runs a test of a Pushlet in fake time. A heartbeat of five minutes makes the
// hours pass faster.
func inBubble(t *testing.T, test func(*testing.T, *pushlet.Pushlet), options ...pushlet.Option) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := newPushlet(t, options...)
		check(t, p.SetHeartbeatInterval(5*time.Minute))
		check(t, p.Start())
		test(t, p)
	})
}

// arrivals describes what has come: the data of messages, and the reasons of gaps.
func arrivals(t *testing.T, x *exchange) (what []string) {
	t.Helper()
	for _, e := range x.arrived() {
		switch e.name {
		case "pushlet.connected":
			var h hello
			check(t, json.Unmarshal([]byte(e.data), &h))
			what = append(what, fmt.Sprintf("resumed %t", h.Resumed))
		case "pushlet.gap":
			var g gap
			check(t, json.Unmarshal([]byte(e.data), &g))
			what = append(what, fmt.Sprint("gap ", g.Topics, g.Reason))
		default:
			what = append(what, e.data)
		}
	}
	return what
}

func expectArrivals(t *testing.T, x *exchange, want ...string) {
	t.Helper()
	if got := arrivals(t, x); !slices.Equal(got, want) {
		t.Errorf("arrived: %q, want %q", got, want)
	}
}

// cursorOf opens a stream, leaves it at once, and returns its cursor.
func cursorOf(t *testing.T, p *pushlet.Pushlet, query string) string {
	t.Helper()
	x := startExchange(t, p, query, "")
	events := x.arrived()
	x.leave()
	<-x.done
	if len(events) != 1 {
		t.Fatalf("events %v, want pushlet.connected", events)
	}
	return events[0].id
}

func TestHistoryAge(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pushlet.Pushlet) {
		start := cursorOf(t, p, "topic=a")
		check(t, p.Publish("a", "message", "1"))
		time.Sleep(time.Minute)
		check(t, p.Publish("a", "message", "2"))
		time.Sleep(3*time.Minute + 50*time.Second)
		expectArrivals(t, startExchange(t, p, "topic=a", start), "resumed true", "1", "2")

		time.Sleep(time.Minute) // the first is more than 5 minutes old
		x := startExchange(t, p, "topic=a", start)
		expectArrivals(t, x, "resumed false", "gap [a]expired", "2")

		// The newest stays for a day, so that whoever has seen it is not told of a gap.
		time.Sleep(23*time.Hour + 50*time.Minute)
		x = startExchange(t, p, "topic=a", x.cursor())
		expectArrivals(t, x, "resumed true")
	})
}

// TestLastMessageAge: a topic is forgotten some time after its last message and its last
// follower. To come back from before is a gap then, since nobody knows what was there.
func TestLastMessageAge(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pushlet.Pushlet) {
		start := cursorOf(t, p, "topic=a")
		check(t, p.Publish("a", "message", "1"))
		time.Sleep(50 * time.Minute)
		x := startExchange(t, p, "topic=a", start)
		expectArrivals(t, x, "resumed true", "1")
		time.Sleep(time.Hour)
		expectArrivals(t, x)
		x.leave()
		time.Sleep(50 * time.Minute) // it counts from when that client left
		expectArrivals(t, startExchange(t, p, "topic=a", start), "resumed true", "1")
	}, pushlet.WithLastMessageAge(time.Hour))
	inBubble(t, func(t *testing.T, p *pushlet.Pushlet) {
		start := cursorOf(t, p, "topic=a")
		check(t, p.Publish("a", "message", "1"))
		time.Sleep(time.Hour + 10*time.Minute)
		if got := p.Stats().Topics; got != 0 {
			t.Errorf("%d topics, want none", got)
		}
		x := startExchange(t, p, "topic=a", start)
		expectArrivals(t, x, "resumed false", "gap [a]expired")
		check(t, p.Publish("a", "message", "2"))
		expectArrivals(t, x, "2")
	}, pushlet.WithLastMessageAge(time.Hour))
}

// TestLastMessageAgeWithinHistory: the last message of a topic outlives its history; it
// does not leave before it.
func TestLastMessageAgeWithinHistory(t *testing.T) {
	for _, messages := range []int{2, 1} {
		t.Run(fmt.Sprint(messages), func(t *testing.T) {
			inBubble(t, func(t *testing.T, p *pushlet.Pushlet) {
				start := cursorOf(t, p, "topic=a")
				for _, data := range numbered(1, messages) {
					check(t, p.Publish("a", "message", data))
				}
				time.Sleep(time.Minute)
				want := append([]string{"resumed true"}, numbered(1, messages)...)
				expectArrivals(t, startExchange(t, p, "topic=a", start), want...)
			}, pushlet.WithLastMessageAge(0))
		})
	}
}

// TestIdleTopicsAreForgotten: topics that nobody uses any more cost nothing.
func TestIdleTopicsAreForgotten(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pushlet.Pushlet) {
		for i := range 1000 {
			check(t, p.Publish(fmt.Sprintf("a/%d", i), "message", "x"))
			check(t, p.Publish(fmt.Sprintf("off/%d", i), "message", "x"))
		}
		for i := range 100 {
			cursorOf(t, p, fmt.Sprintf("topic=b/%d", i))
		}
		if got, want := p.Stats().Topics, 1000; got != want {
			t.Errorf("%d topics, want %d", got, want)
		}
		time.Sleep(time.Hour + 10*time.Minute)
		if got := p.Stats().Topics; got != 0 {
			t.Errorf("%d topics, want none", got)
		}
	}, pushlet.WithLastMessageAge(time.Hour), pushlet.WithTopicHistory("off/", 0, 0, 0))
}

// ----- cursors

// A browser sends a Last-Event-ID to another origin without asking first if it is no
// longer than that and has no other characters than these among them (WHATWG Fetch,
// "CORS-safelisted request-header").
const maxSafeHeader = 128

var safeToken = regexp.MustCompile(`^[0-9A-Za-z_-]+$`)

func TestCursorTokens(t *testing.T) {
	for _, topics := range []int{1, 6} {
		t.Run(fmt.Sprint(topics), func(t *testing.T) {
			s := newSite(t)
			var query []string
			for i := range topics {
				query = append(query, fmt.Sprintf("topic=topic/%d", i))
			}
			st, _, e := s.connect(t, strings.Join(query, "&"), "")
			longest := 0
			see := func(e event) {
				longest = max(longest, len(e.id))
				if !safeToken.MatchString(e.id) || len(e.id) > maxSafeHeader {
					t.Fatalf("cursor %q of %d bytes", e.id, len(e.id))
				}
			}
			see(e)
			for i := range 500 {
				var err error
				if n := i % (topics + 1); n == topics {
					err = s.p.PublishToAll("message", "x")
				} else {
					err = s.p.Publish(fmt.Sprintf("topic/%d", n), "message", "x")
				}
				check(t, err)
				see(st.expectMessages("x"))
			}
			t.Logf("the longest cursor of %d topics has %d bytes", topics, longest)
		})
	}
}

// TestCursorTokensInTime has topics whose last messages are hours apart.
func TestCursorTokensInTime(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pushlet.Pushlet) {
		x := startExchange(t, p, "topic=1&topic=2&topic=3&topic=4&topic=5&topic=6", "")
		for _, topic := range numbered(1, 6) {
			check(t, p.PublishToAll("message", "for all"))
			check(t, p.Publish(topic, "message", topic))
			time.Sleep(40 * time.Minute)
		}
		longest := 0
		for _, e := range x.arrived() {
			longest = max(longest, len(e.id))
		}
		if longest > maxSafeHeader {
			t.Errorf("a cursor has %d bytes, want at most %d", longest, maxSafeHeader)
		}
		t.Logf("the longest cursor of 6 topics has %d bytes", longest)
	})
}

// TestResumeManyTopics: as many topics as the limit allows can be resumed.
func TestResumeManyTopics(t *testing.T) {
	for _, topics := range []int{100, 1000} {
		t.Run(fmt.Sprint(topics), func(t *testing.T) {
			s := newSite(t, withOptions(pushlet.WithMaxTopics(topics)))
			query := make(url.Values)
			for i := range topics {
				query.Add("topic", strconv.Itoa(i))
			}
			st, _, e := s.connect(t, query.Encode(), "")
			for _, n := range rand.Perm(topics)[:10] {
				s.publish(t, strconv.Itoa(n), "1")
				e = st.expectMessages("1")
			}
			st.close()
			s.publish(t, strconv.Itoa(topics-1), "2")
			st, h, _ := s.connect(t, query.Encode(), e.id)
			if !h.Resumed {
				t.Fatalf("not resumed: %v", st.next())
			}
			st.expectMessages("2")
		})
	}
}

// ----- the moment of joining

// TestJoinWhileMessagesFlow: from its first event on a client misses nothing, and what a
// new client gets is the end of the topic, without a hole.
func TestJoinWhileMessagesFlow(t *testing.T) {
	const messages, clients = 2000, 20
	s := newSite(t)
	var next atomic.Int64
	var connected, joined sync.WaitGroup
	for range clients {
		connected.Add(1)
		joined.Go(func() {
			arrived := sync.OnceFunc(connected.Done)
			defer arrived()
			before := next.Load() // published before we ask for the stream
			st, err := s.tryFollow(t, "topic=a")
			if err != nil {
				t.Error(err)
				return
			}
			defer st.close()
			if e, err := st.read(); err != nil || e.name != "pushlet.connected" {
				t.Errorf("first event %v, %v", e, err)
				return
			}
			arrived()
			last := int64(0)
			for last < messages {
				e, err := st.read()
				if err != nil {
					t.Errorf("after message %d: %v", last, err)
					return
				}
				n, _ := strconv.ParseInt(e.data, 10, 64)
				if last == 0 && n <= before || last != 0 && n != last+1 {
					t.Errorf("message %d after %d, connected after %d", n, last, before)
					return
				}
				last = n
			}
		})
		for range messages / clients / 2 {
			check(t, s.p.Publish("a", "message", fmt.Sprint(next.Load()+1)))
			next.Add(1)
		}
	}
	for next.Load() < messages {
		if next.Load() == messages-1 {
			soon(t, "all have joined", connected.Wait) // who comes after the last message gets none
		}
		check(t, s.p.Publish("a", "message", fmt.Sprint(next.Load()+1)))
		next.Add(1)
	}
	soon(t, "all have everything", joined.Wait)
}

package pushlet_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usual2970/pushlet"
)

// Resuming on a WebSocket with "since": exactly what was missed, or a gap that says why.

// wsEverything is history that nothing falls out of.
func wsEverything() pushlet.Option { return pushlet.WithHistory(1<<20, 1<<30, time.Hour) }

func TestWebSocketResume(t *testing.T) {
	s := wsServe(t)
	c := s.connect("")
	start := c.subscribe("t")
	ids := make([]string, 10)
	for i := range ids {
		s.publish("t", fmt.Sprint(i))
		ids[i] = c.expect("t", "message", fmt.Sprint(i)).ID
	}
	// replayed checks that what follows is everything from message first on, and then what
	// is live.
	live := 0
	replayed := func(t *testing.T, c *wsClient, first int) {
		t.Helper()
		for i := first; i < len(ids); i++ {
			if m := c.expect("t", "message", fmt.Sprint(i)); m.ID != ids[i] {
				t.Errorf("message %d has ID %s, was %s", i, m.ID, ids[i])
			}
		}
		live++
		other := fmt.Sprintf("live %d", live)
		s.publish("t/2", other) // to see that nothing else came before it
		c.expect("t/2", "message", other)
	}
	t.Run("by command", func(t *testing.T) {
		c := s.connect("?topic=t/2")
		c.expect("t/2", "pushlet.subscribed", "")
		for _, first := range []int{0, 1, 5, 9, 10} { // each begins the topic anew
			since := start
			if first > 0 {
				since = ids[first-1]
			}
			c.send(`{"action":"subscribe","topic":"t","since":%q}`, since)
			if m := c.expect("t", "pushlet.subscribed", ""); m.ID != since {
				t.Errorf("subscribed from %s, asked for %s", m.ID, since)
			}
			replayed(t, c, first)
		}
	})
	t.Run("by URL", func(t *testing.T) {
		c := s.connect("?topic=t&topic=t/2&since=" + ids[3])
		want := map[string][]string{"t": {"pushlet.subscribed "}, "t/2": {"pushlet.subscribed "}}
		for i := 4; i < len(ids); i++ {
			want["t"] = append(want["t"], fmt.Sprintf("message %d", i))
		}
		for i := range live { // published after ids[3]: IDs order the messages of all topics
			want["t/2"] = append(want["t/2"], fmt.Sprintf("message live %d", i+1))
		}
		c.expectEach(want)
		replayed(t, c, len(ids))
	})
	t.Run("without since", func(t *testing.T) {
		c := s.connect("?topic=t/2")
		c.expect("t/2", "pushlet.subscribed", "")
		if id := c.subscribe("t"); wsCompareIDs(id, ids[9]) < 0 {
			t.Errorf("subscribed from %s, the newest message is %s", id, ids[9])
		}
		replayed(t, c, len(ids))
	})
	if st := s.Stats(); st.Gaps != 0 || st.Resumes != 7 {
		t.Errorf("%d gaps, %d resumes; want 0, 7", st.Gaps, st.Resumes)
	}
}

func TestWebSocketResumeBroadcast(t *testing.T) {
	s := wsServe(t)
	c := s.connect("")
	since := c.subscribe("*")
	for i := range 5 {
		s.broadcast("notice", fmt.Sprint(i))
		s.publish("t", fmt.Sprint(i))
		if m := c.expect("*", "notice", fmt.Sprint(i)); i == 1 {
			since = m.ID
		}
	}
	c.Close()
	c = s.connect("")
	c.send(`{"action":"subscribe","topics":["*","t"],"since":%q}`, since)
	c.expectEach(map[string][]string{
		"*": {"pushlet.subscribed ", "notice 2", "notice 3", "notice 4"},
		"t": {"pushlet.subscribed ", "message 1", "message 2", "message 3", "message 4"}, // the 1 came after the notice
	})
	s.broadcast("notice", "5")
	c.expect("*", "notice", "5")
}

// One command resumes each topic from its own position, and follows others from now on.
func TestWebSocketResumeEach(t *testing.T) {
	s := wsServe(t)
	c := s.connect("?topic=a&topic=b")
	a := c.expect("a", "pushlet.subscribed", "").ID
	c.expect("b", "pushlet.subscribed", "")
	all := c.subscribe("*")
	s.publish("b", "1")
	b := c.expect("b", "message", "1").ID
	c.Close()
	s.publish("a", "2")
	s.publish("b", "3")
	s.publish("new", "4")
	s.publish("null", "5")
	s.broadcast("", "6")
	c = s.connect("")
	c.send(`{"action":"subscribe","topics":["*","a","b","new","null","lost"],"since":{"a":%q,"b":%q,"*":%q,"null":null,"lost":"","other":"1-1"}}`, a, b, all)
	c.expectEach(map[string][]string{
		"*": {"pushlet.subscribed ", "message 6"}, "a": {"pushlet.subscribed ", "message 2"}, "b": {"pushlet.subscribed ", "message 3"},
		"new": {"pushlet.subscribed "}, "null": {"pushlet.subscribed "}, "lost": {"pushlet.subscribed ", "pushlet.gap unknown_cursor"},
	})
	s.publish("new", "7")
	c.expect("new", "message", "7")
}

// A gap is told after pushlet.subscribed and before what there is, and has the ID from
// which there is no hole.
func TestWebSocketGaps(t *testing.T) {
	gap := func(t *testing.T, s *wsServer, topic, since, why string, then ...string) {
		t.Helper()
		c := s.connect("")
		c.send(`{"action":"subscribe","topic":%q,"since":%q}`, topic, since)
		c.expect(topic, "pushlet.subscribed", "")
		id := c.expect(topic, "pushlet.gap", why).ID
		for _, data := range then {
			c.expect(topic, "message", data)
		}
		c.ping()
		c.send(`{"action":"subscribe","topic":%q,"since":%q}`, topic, id)
		c.expect(topic, "pushlet.subscribed", "")
		for _, data := range then { // the same, without a gap
			c.expect(topic, "message", data)
		}
		c.ping()
		c.Close()
	}
	publish := func(s *wsServer, n int) (before string) {
		c := s.connect("")
		before = c.subscribe("t")
		for i := range n {
			s.publish("t", fmt.Sprint(i))
			c.expect("t", "message", fmt.Sprint(i))
		}
		c.Close()
		return before
	}
	t.Run("trimmed", func(t *testing.T) {
		s := wsServe(t, pushlet.WithHistory(3, 1<<20, time.Hour))
		gap(t, s, "t", publish(s, 5), "trimmed", "2", "3", "4")
	})
	t.Run("no history", func(t *testing.T) {
		s := wsServe(t, pushlet.WithHistory(0, 0, 0))
		gap(t, s, "t", publish(s, 5), "trimmed")
	})
	t.Run("expired", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := wsServePipes(t, pushlet.WithHistory(1000, 1<<20, time.Minute))
			since := publish(s, 5)
			time.Sleep(3 * time.Minute)
			gap(t, s, "t", since, "expired", "4") // the newest always stays
		})
	})
	t.Run("forgotten", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := wsServePipes(t, pushlet.WithHistory(1000, 1<<20, time.Minute), pushlet.WithLastMessageAge(time.Hour))
			since := publish(s, 5)
			time.Sleep(2 * time.Hour)
			if n := s.Stats().Topics; n != 0 {
				t.Errorf("%d topics after their last message's age, want 0", n)
			}
			gap(t, s, "t", since, "expired")
		})
	})
	t.Run("restarted", func(t *testing.T) {
		since := publish(wsServe(t), 5)
		s := wsServe(t)
		gap(t, s, "t", since, "restarted")
		gap(t, s, "*", since, "restarted")
		publish(s, 2)
		gap(t, s, "t", since, "restarted", "0", "1")
	})
	t.Run("unknown cursor", func(t *testing.T) {
		s := wsServe(t)
		publish(s, 2)
		for _, since := range []string{
			"", "0", "0-0", "-", "1-", "-1", "00-1", "1-01", "+1-1", "1_000-1", " 1-1", "1-1-1", "x-y", "ID",
			"18446744073709551616-0", "99999999999999999999999-1", "\u0661-\u0661",
			"WiY_8AAAAA", strings.Repeat("1", 60_000) + "-1",
		} {
			gap(t, s, "t", since, "unknown_cursor", "0", "1")
		}
	})
	t.Run("the future", func(t *testing.T) {
		s := wsServe(t)
		since := publish(s, 2)
		_, seq, _ := strings.Cut(since, "-")
		gap(t, s, "t", "18446744073709551615-"+seq, "unknown_cursor", "0", "1")
	})
	t.Run("by URL", func(t *testing.T) {
		s := wsServe(t)
		publish(s, 1)
		c := s.connect("?topic=t&since=")
		c.expect("t", "pushlet.subscribed", "")
		c.expect("t", "pushlet.gap", "unknown_cursor")
		c.expect("t", "message", "0")
		c.ping()
	})
}

// Several topics of one command, some with a hole: each has its own answer and gap.
func TestWebSocketGapOfOneTopic(t *testing.T) {
	s := wsServe(t, pushlet.WithTopicHistory("short", 1, 1<<20, time.Hour))
	c := s.connect("")
	since := c.subscribe("long", "short")
	for i := range 3 {
		s.publish("long", fmt.Sprint(i))
		s.publish("short", fmt.Sprint(i))
	}
	c = s.connect("")
	c.send(`{"action":"subscribe","topics":["long","short"],"since":%q}`, since)
	c.expectEach(map[string][]string{
		"long":  {"pushlet.subscribed ", "message 0", "message 1", "message 2"},
		"short": {"pushlet.subscribed ", "pushlet.gap trimmed", "message 2"},
	})
	c.ping()
}

// The timestamp of a gap is when it was found.
func TestWebSocketGapTimestamp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := wsServePipes(t)
		c := s.connect("?topic=t")
		c.expect("t", "pushlet.subscribed", "")
		s.publish("t", "long ago")
		c.expect("t", "message", "long ago")
		c.Close()
		time.Sleep(time.Hour)
		c = s.connect("?topic=t&since=x")
		c.expect("t", "pushlet.subscribed", "")
		// The broker has no clock but the ticks, of which there is at least one a second.
		if age := time.Since(c.expect("t", "pushlet.gap", "unknown_cursor").Timestamp); age > 2*time.Second {
			t.Errorf("the gap's timestamp is %v ago", age)
		}
	})
}

// Clients are cut off at random moments, some within a frame, and come back with the IDs
// they have seen, while messages and broadcasts flow: each gets each exactly once, in order.
func TestWebSocketResumeAgainAndAgain(t *testing.T) {
	const (
		clients  = 4
		messages = 600 // of all topics
		ahead    = 150 // how far the publisher is ahead of the average client
	)
	topics := []string{"*", "a", "b"}
	s := wsServe(t, wsEverything(), pushlet.WithQueue(50, 16<<10), pushlet.WithCompression())

	pace := make(chan struct{}, clients*messages) // one for each message that a client has got
	ready := make(chan struct{}, clients)
	var following sync.WaitGroup
	for i := range clients {
		seed := rand.Uint64()
		f := &wsFollower{s: s, rand: rand.New(rand.NewPCG(seed, 0)), topics: topics, pace: pace}
		if i%2 == 1 {
			f.header = []string{wsExtensions, "permessage-deflate"}
		}
		following.Go(func() {
			defer func() {
				if t.Failed() {
					t.Logf("client %d: seed %d", i, seed)
				}
			}()
			f.run(ready, messages)
		})
	}
	ended := make(chan struct{})
	go func() { defer close(ended); following.Wait() }()
	wait := func(signal <-chan struct{}) {
		select {
		case <-signal:
		case <-ended:
			t.Fatal("the clients have given up")
		}
	}
	for range clients {
		wait(ready)
	}
	for i := range messages {
		if i >= ahead {
			for range clients {
				wait(pace)
			}
		}
		topic, n := topics[i%len(topics)], i/len(topics)
		data := fmt.Sprintf("%d %s", n, strings.Repeat("x", rand.IntN(2000)))
		if topic == "*" {
			s.broadcast("message", data)
		} else {
			s.publish(topic, data)
		}
	}
	<-ended
	if st := s.Stats(); st.Gaps != 0 {
		t.Errorf("%d gaps", st.Gaps)
	} else {
		t.Logf("%d connections, %d resumes of a topic, queues full %d times", st.Connected, st.Resumes, st.FellBehind)
	}
}

// A wsFollower follows topics over many connections.
type wsFollower struct {
	s      *wsServer
	rand   *rand.Rand
	header []string
	topics []string
	pace   chan<- struct{}

	since map[string]string // the last ID of each topic
	next  map[string]int    // what its next message must say
	got   int
}

// run follows the topics until it has got all messages. It signals when it has begun.
func (f *wsFollower) run(ready chan<- struct{}, total int) {
	f.since, f.next = make(map[string]string), make(map[string]int)
	r := f.connect()
	ready <- struct{}{}
	for f.got < total {
		f.follow(r, total)
		r = f.connect()
	}
	r.text(`{"action":"ping"}`)
	for range f.topics {
		f.take(r.next())
	}
	r.expect("", "pushlet.pong", "")
}

// connect begins a connection and subscribes to everything, from where the last one
// ended. The broadcast log comes first: the other topics bring its live messages.
func (f *wsFollower) connect() *wsRaw {
	r := f.s.raw("", f.header...)
	for _, topic := range f.topics {
		if since, ok := f.since[topic]; ok {
			r.text(`{"action":"subscribe","topic":%q,"since":%q}`, topic, since)
		} else {
			r.text(`{"action":"subscribe","topic":%q}`, topic)
		}
	}
	for len(f.since) < len(f.topics) {
		f.take(r.next())
	}
	return r
}

// follow reads some messages, then breaks the connection somehow.
func (f *wsFollower) follow(r *wsRaw, total int) {
	defer r.Close()
	for range f.rand.IntN(40) {
		if f.got == total {
			return
		}
		f.take(r.next())
	}
	if f.rand.IntN(2) == 0 { // within a frame
		r.SetReadDeadline(time.Now().Add(wsPatience))
		_, _ = r.br.Discard(min(f.rand.IntN(300), r.br.Buffered()))
	}
}

// take checks one frame.
func (f *wsFollower) take(m wsMessage) {
	t := f.s.t
	switch m.Event {
	case "pushlet.subscribed":
		if since, ok := f.since[m.Topic]; ok && since != m.ID {
			t.Errorf("topic %s: subscribed from %s, asked for %s", m.Topic, m.ID, since)
		}
	case "message":
		var n int
		if _, err := fmt.Sscanf(m.Data, "%d ", &n); err != nil {
			t.Errorf("topic %s: %v in %.50q", m.Topic, err, m.Data)
		}
		if want := f.next[m.Topic]; n != want {
			t.Errorf("topic %s: got message %d, want %d", m.Topic, n, want)
		}
		f.next[m.Topic] = n + 1
		f.got++
		f.pace <- struct{}{}
	default:
		t.Errorf("got %+v", m)
	}
	f.since[m.Topic] = m.ID
}

// A client that subscribes to the broadcast log after other topics has got live broadcasts
// already; since begins it anew from there, as for every topic that is subscribed twice.
func TestWebSocketResumeBroadcastAfterTopics(t *testing.T) {
	s := wsServe(t)
	c := s.connect("")
	since := c.subscribe("*")
	s.broadcast("", "missed")
	c.expect("*", "message", "missed")
	c.Close()
	c = s.connect("?topic=t")
	c.expect("t", "pushlet.subscribed", "")
	s.broadcast("", "live")
	c.expect("*", "message", "live")
	c.send(`{"action":"subscribe","topic":"*","since":%q}`, since)
	c.expect("*", "pushlet.subscribed", "")
	c.expect("*", "message", "missed")
	c.expect("*", "message", "live")
	c.ping()
}

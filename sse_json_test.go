package pushlet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
)

// Event streams of JSON, "?format=json": what the WebSocket says, in an EventSource.

// A jsonStream is such a stream.
type jsonStream struct{ *stream }

// followJSON opens one, and reads the first event, which tells the heartbeat interval.
func (s *site) followJSON(t testing.TB, query string) jsonStream {
	t.Helper()
	st := jsonStream{s.follow(t, "format=json&"+query)}
	if e := st.stream.expect("pushlet.heartbeat", "30000"); e.id != "" {
		t.Fatalf("%v has the id %q", e, e.id)
	}
	return st
}

// nextMessage reads the next object; heartbeats are passed over.
func (s jsonStream) nextMessage() wsMessage {
	s.t.Helper()
	e := s.next()
	for e.name == "pushlet.heartbeat" {
		e = s.next()
	}
	if e.name != "message" || e.id != "" {
		s.t.Fatalf("event %v with id %q, want an unnamed one without", e, e.id)
	}
	return wsDecode(s.t, []byte(e.data))
}

func (s jsonStream) expect(topic, event, data string) wsMessage {
	s.t.Helper()
	m := s.nextMessage()
	if m.Topic != topic || m.Event != event || m.Data != data {
		s.t.Fatalf("got %.300q\nwant topic %q event %q data %.300q", m, topic, event, data)
	}
	return m
}

func (s jsonStream) expectError(topic, why string) {
	s.t.Helper()
	if m := s.nextMessage(); m.Topic != topic || m.Event != "pushlet.error" || !strings.Contains(m.Data, why) {
		s.t.Fatalf("got %.300q\nwant pushlet.error for topic %q that says %q", m, topic, why)
	}
}

// TestSSEJSONWire has every byte of a response's body.
func TestSSEJSONWire(t *testing.T) {
	s := newSite(t)
	conn := s.dial(t)
	request(t, conn, "format=json&topic=news&topic=users/123/notifications", "HTTP/1.1")
	eventually(t, "the client is there", func() bool { return s.p.Stats().Topics == 2 })
	check(t, s.p.Publish("news", "", "Hello, World!"))
	check(t, s.p.Publish("users/123/notifications", "new-message", "你有一条新消息"))
	check(t, s.p.Publish("news", "lines", "one\r\n\r\ntwo\n"))
	check(t, s.p.PublishToAll("message", "for all"))
	golden(t, "sse_json_response.txt", s.lastBytes(t, conn, append(slices.Clip(volatile),
		replacement{`"id":"[0-9]+-[0-9]+"`, `"id":"ID"`},
		replacement{`"timestamp":"[-0-9T:.]+Z"`, `"timestamp":"TIME"`})))
}

// Each topic is resumed from its own position, whatever transport the stream takes, and a
// position is that of the WebSocket.
func TestSSEJSONResumes(t *testing.T) {
	inflated := slices.DeleteFunc(slices.Clone(transports), func(tr transport) bool { return tr.gzip })
	together(t, inflated, func(t *testing.T, tr transport) {
		s := newSite(t, append(slices.Clip(tr.options), withUsers())...)
		st := s.followJSON(t, "topic=a&topic=b&user=ann")
		st.expect("a", "pushlet.subscribed", "")
		b := st.expect("b", "pushlet.subscribed", "").ID
		mine := st.expect("@user", "pushlet.subscribed", "").ID
		check(t, s.p.Publish("a", "x", "1"))
		a := st.expect("a", "x", "1").ID
		check(t, s.p.PublishToAll("", "2"))
		all := st.expect("*", "message", "2").ID
		st.close()
		s.clientsGoneTo(t, 0)

		check(t, s.p.Publish("a", "", "3"))
		check(t, s.p.PublishToAll("", "4"))
		check(t, s.p.Publish("b", "", "5"))
		check(t, s.p.PublishToUsers([]string{"ann"}, "", "6"))
		st = s.followJSON(t, fmt.Sprintf("user=ann&topic=a&since=%s&topic=new&since=&topic=b&since=%s&topic=*&since=%s&topic=@user&since=%s", a, b, all, mine))
		st.expect("*", "pushlet.subscribed", "")
		want := map[string][]string{
			"*": {"4"}, "a": {"", "3"}, "b": {"", "5"}, "new": {""}, "@user": {"", "6"},
		}
		for range 8 {
			m := st.nextMessage()
			if left := want[m.Topic]; len(left) == 0 || left[0] != m.Data || (m.Event == "pushlet.subscribed") != (m.Data == "") {
				t.Fatalf("got %q, left are %q", m, want)
			}
			want[m.Topic] = want[m.Topic][1:]
		}
		check(t, s.p.Publish("new", "", "7"))
		st.expect("new", "message", "7")
		if n := s.p.Stats().Gaps; n != 0 {
			t.Errorf("%d gaps", n)
		}
	})
}

// What lies behind is told for each topic.
func TestSSEJSONGap(t *testing.T) {
	s := newSite(t, withOptions(pushlet.WithHistory(1, 1<<20, time.Hour)))
	st := s.followJSON(t, "topic=a")
	at := st.expect("a", "pushlet.subscribed", "").ID
	for i := range 3 {
		check(t, s.p.Publish("a", "", fmt.Sprint(i)))
	}
	st = s.followJSON(t, "topic=a&since="+at)
	st.expect("a", "pushlet.subscribed", "")
	gap := st.expect("a", "pushlet.gap", "trimmed")
	st.expect("a", "message", "2")
	st = s.followJSON(t, "topic=a&since="+gap.ID)
	st.expect("a", "pushlet.subscribed", "")
	st.expect("a", "message", "2")
	st = s.followJSON(t, "topic=a&since=nonsense")
	st.expect("a", "pushlet.subscribed", "")
	st.expect("a", "pushlet.gap", "unknown_cursor")
}

// What is wrong with one topic is said, and the others go on: an EventSource could see
// neither a status nor a reason.
func TestSSEJSONRefusals(t *testing.T) {
	s := newSite(t, withUsers(), withOptions(
		pushlet.WithMaxTopics(3),
		pushlet.WithAuthorize(func(_ *http.Request, topic string) error {
			if strings.HasPrefix(topic, "private") {
				return errors.New("not yours")
			}
			return nil
		})))
	st := s.followJSON(t, "topic=a&topic=private&topic=%00&topic=@user/ann&topic=@user&topic=a&topic=/&topic=b&topic=c&topic=d&topic=e")
	st.expect("a", "pushlet.subscribed", "")
	st.expectError("private", "not yours")
	st.expectError("", "invalid topic")
	st.expectError("", "reserved")
	st.expectError("@user", "no user")
	st.expect("b", "pushlet.subscribed", "")
	st.expect("c", "pushlet.subscribed", "")
	st.expectError("d", "more than 3 topics")
	st.expectError("e", "more than 3 topics")
	check(t, s.p.Publish("b", "", "x"))
	st.expect("b", "message", "x")

	for query, why := range map[string]string{
		"format=xml&topic=a":                       `unknown format "xml"`,
		"format=json&topic=a&since=1&since=2":      "since: one for all topics",
		"format=json&topic=%zz":                    "query",
		"format=json&topic=a&topic=b&since=&since": "",
	} {
		if a := s.answer(t, http.MethodHead, query); (a.status == http.StatusOK) != (why == "") {
			t.Errorf("HEAD %s: %d", query, a.status)
		}
		if why == "" {
			continue
		}
		if a := s.answer(t, http.MethodGet, query); a.status != http.StatusBadRequest || !strings.Contains(a.body, why) {
			t.Errorf("%s: %d %q, want 400 and %q", query, a.status, a.body, why)
		}
	}
}

// A request for very many topics ends where its answers would fill memory.
func TestSSEJSONFloodOfTopics(t *testing.T) {
	var asked int
	s := newSite(t, withOptions(
		pushlet.WithMaxTopics(2),
		pushlet.WithHijack(false), // so that nobody reads while the topics are followed
		pushlet.WithAuthorize(func(*http.Request, string) error { asked++; return errors.New(strings.Repeat("no", 500)) })))
	var query strings.Builder
	const topics = 9_000 // net/url takes 10,000 parameters
	for i := range topics {
		fmt.Fprintf(&query, "topic=%d&", i)
	}
	resp, err := s.get(t.Context(), "format=json&"+query.String())
	check(t, err)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status %s", resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body) // it ends
	resp.Body.Close()
	s.clientsGoneTo(t, 0)
	if asked == 0 || asked >= topics/2 {
		t.Errorf("asked for %d topics although nobody read the answers (%v)", asked, err)
	}
}

// A client hears heartbeats, which to an EventSource comments are not, and why it is
// disconnected.
func TestSSEJSONHeartbeatAndDisconnect(t *testing.T) {
	together(t, transports[:4], func(t *testing.T, tr transport) {
		s := newSite(t, append(slices.Clip(tr.options), withUsers())...)
		st := s.followJSON(t, "topic=a&user=ann")
		st.expect("a", "pushlet.subscribed", "")
		st.expect("@user", "pushlet.subscribed", "")
		check(t, s.p.SetHeartbeatInterval(10*time.Millisecond))
		for range 3 {
			st.stream.expect("pushlet.heartbeat", "")
		}
		check(t, s.p.SetHeartbeatInterval(time.Hour))
		n, err := s.p.Disconnect(context.Background(), "ann", "logged out")
		if n != 1 || err != nil {
			t.Fatalf("Disconnect: %d, %v", n, err)
		}
		st.expect("", "pushlet.disconnected", "logged out")
		st.expectEnd()
	})
}

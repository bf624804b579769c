package pushlet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
)

// push posts a body to HandlePush. The headers come in pairs.
func (s *site) push(t testing.TB, body string, headers ...string) answer {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/push", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	w := httptest.NewRecorder()
	s.p.HandlePush(w, r)
	if !json.Valid(w.Body.Bytes()) {
		t.Errorf("the answer is not JSON: %q", w.Body)
	}
	return answer{w.Code, w.Header(), strings.TrimSpace(w.Body.String())}
}

func (a answer) expect(t testing.TB, status int, body string) {
	t.Helper()
	if a.status != status || a.body != body {
		t.Errorf("answer %d %s, want %d %s", a.status, a.body, status, body)
	}
}

func TestHandlePush(t *testing.T) {
	s := newSite(t, withUsers(), withOptions(pushlet.WithPushAuthorize(pushlet.AllowPush)))
	ann, _, _ := s.connect(t, "topic=news&user=ann", "")
	bob, _, _ := s.connect(t, "user=bob", "")
	s.push(t, `{"uids":["ann","carol"],"topics":["news"],"events":[{"event":"note","data":"hello\nworld"},{"data":{"a": [1, 2]}}]}`).
		expect(t, 200, `{"events":[{"published":3,"duplicates":0,"clients":2},{"published":3,"duplicates":0,"clients":2}]}`)
	for range 2 { // as ann, and as a follower of news
		ann.expect("note", "hello\nworld")
	}
	for range 2 {
		ann.expect("message", `{"a": [1, 2]}`)
	}
	s.push(t, `{"events":[{"event":"message","data":"to all"},{"data":null},{"data":1.50},{"data":""}]}`, "Content-Type", "application/json; charset=utf-8").
		expect(t, 200, `{"events":[`+strings.Repeat(`{"published":1,"duplicates":0,"clients":2},`, 3)+`{"published":1,"duplicates":0,"clients":2}]}`)
	for _, c := range []*stream{ann, bob} {
		c.expectMessages("to all", "null", "1.50", "")
	}
}

// TestHandlePushRefuses: of what is refused nothing is published, and the answer says why.
func TestHandlePushRefuses(t *testing.T) {
	s := newSite(t, withUsers(), withOptions(pushlet.WithMaxMessageSize(20), pushlet.WithMaxPushSize(200),
		pushlet.WithPushAuthorize(func(r *http.Request) error {
			switch r.Header.Get("Authorization") {
			case "":
				return fmt.Errorf("%w: who are you?", pushlet.ErrUnauthenticated)
			case "eve":
				return errors.New("not you")
			case "panic":
				panic("no")
			}
			return nil
		})))
	c, _, _ := s.connect(t, "topic=a&user=ann", "")
	ok := []string{"Authorization", "me"}
	for _, test := range []struct {
		body    string
		headers []string
		status  int
		why     string
	}{
		{`{"events":[{"data":"x"}]}`, nil, 401, "pushlet: unauthenticated: who are you?"},
		{`{"events":[{"data":"x"}]}`, []string{"Authorization", "eve"}, 403, "not you"},
		{`{"events":[{"data":"x"}]}`, []string{"Authorization", "panic"}, 403, "pushlet: authorization failed"},
		{`{"events":[{"data":"x"}]}`, append(ok, "Content-Type", "text/plain"), 415, "Content-Type is not application/json"},
		{``, ok, 400, "body: EOF"},
		{`[]`, ok, 400, "body: json: cannot unmarshal array into Go value of type pushlet.pushBody"},
		{`{"events":[{"data":"x"}]} {}`, ok, 400, "body: more than one JSON value"},
		{`{"uid":["ann"],"events":[{"data":"x"}]}`, ok, 400, `body: json: unknown field "uid"`},
		{`{"uids":[],"events":[{"data":"x"}]}`, ok, 400, "uids: empty; leave it out to reach everyone"},
		{`{"uids":null,"events":[{"data":"x"}]}`, ok, 400, "uids: empty; leave it out to reach everyone"},
		{`{"topics":null,"events":[{"data":"x"}]}`, ok, 400, "topics: empty; leave it out to reach everyone"},
		{`{"uids":"ann","events":[{"data":"x"}]}`, ok, 400, "uids: json: cannot unmarshal string into Go value of type []string"},
		{`{"uids":["ann",""],"events":[{"data":"x"}]}`, ok, 400, "uids[1]: pushlet: invalid user: empty"},
		{`{"topics":["a","*"],"events":[{"data":"x"}]}`, ok, 400, `topics[1]: pushlet: reserved name: topic "*"`},
		{`{"topics":["@user/ann"],"events":[{"data":"x"}]}`, ok, 400, `topics[0]: pushlet: reserved name: topic "@user/ann"`},
		{`{"topics":["a"]}`, ok, 400, "events: missing or empty"},
		{`{"topics":["a"],"events":[]}`, ok, 400, "events: missing or empty"},
		{`{"topics":["a"],"events":[{"data":"x"},{"event":"x"}]}`, ok, 400, "events[1].data: missing"},
		{`{"topics":["a"],"events":[{"data":"x"},{"event":"x\ny","data":""}]}`, ok, 400, `events[1]: pushlet: invalid event name: CR, LF or NUL in "x\ny"`},
		{`{"topics":["a"],"events":[{"data":"x"},{"event":"pushlet.gap","data":""}]}`, ok, 400, `events[1]: pushlet: reserved name: event "pushlet.gap"`},
		{`{"topics":["a"],"events":[{"data":"x"},{"data":"123456789012345678901"}]}`, ok, 400, "events[1]: pushlet: message too large: 21 bytes, at most 20"},
		{`{"topics":["a"],"events":[{"data":"x"}]}` + strings.Repeat(" ", 200), ok, 413, "body: over 200 bytes"},
		{`{"topics":["a"],"events":[{"data":"x"}]}`, append(ok, "Idempotency-Key", strings.Repeat("x", 256)), 400, "pushlet: invalid push: key: 256 bytes, at most 255"},
	} {
		a := s.push(t, test.body, test.headers...)
		var got struct{ Error string }
		if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != test.status || got.Error != test.why {
			t.Errorf("%.60s: %d %q, want %d %q", test.body, a.status, got.Error, test.status, test.why)
		}
	}
	if a := s.push(t, "", ok...); a.header.Get("Cache-Control") != "no-store" {
		t.Error("may be cached")
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/push", nil)
	w := httptest.NewRecorder()
	s.p.HandlePush(w, r)
	if w.Code != 405 || w.Header().Get("Allow") != "POST" {
		t.Errorf("GET: %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
	s.publish(t, "a", "only this")
	c.expectMessages("only this")
	off := newSite(t)
	off.push(t, `{"events":[{"data":"x"}]}`).expect(t, 403, `{"error":"pushing is off: there is no WithPushAuthorize"}`)
}

func TestHandlePushStates(t *testing.T) {
	s := newSite(t, notStarted(), withOptions(pushlet.WithPushAuthorize(pushlet.AllowPush)))
	a := s.push(t, `{"events":[{"data":"x"}]}`)
	a.expect(t, 503, `{"error":"pushlet: not started"}`)
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

// TestPushKey: what is pushed again with the same key is not published again, also when two
// do so at once, and on another instance.
func TestPushKey(t *testing.T) {
	for _, db := range []string{"alone", "redis", "store"} {
		t.Run(db, func(t *testing.T) {
			sites := usersSites(t, db)
			one, other := sites[0], sites[len(sites)-1]
			c, _, _ := one.connect(t, "topic=a&user=ann", "")
			push := pushlet.Push{Users: []string{"ann"}, Topics: []string{"a"}, Events: []pushlet.Event{{Data: "1"}, {Data: "2"}}, Key: "k"}
			var mu sync.Mutex
			published, duplicates := 0, 0
			var all sync.WaitGroup
			for i := range 20 {
				all.Go(func() {
					results, err := sites[i%len(sites)].p.Push(t.Context(), push)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					for _, r := range results {
						if r.Err != nil {
							t.Error(r.Err)
						}
						published += r.Published
						duplicates += r.Duplicates
					}
				})
			}
			all.Wait()
			if published != 4 || duplicates != 76 {
				t.Errorf("%d published, %d duplicates; want 4 and 76", published, duplicates)
			}
			push.Key = "another"
			results, err := other.p.Push(t.Context(), push)
			check(t, err)
			if results[0].Published != 2 || results[1].Published != 2 {
				t.Errorf("%+v", results)
			}
			var got []string
			for range 8 {
				got = append(got, c.next().data)
			}
			if slices.Sort(got); strings.Join(got, "") != "11112222" {
				t.Errorf("got %q", got)
			}
			one.publish(t, "a", "the end")
			c.expectMessages("the end")
		})
	}
}

// TestPushKeyRedis: keys are within a batch with other messages, and links and positions stay
// right around those that are left out.
func TestPushKeyRedis(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	s := instances(t, 1, client)[0]
	c, _, _ := s.connect(t, "topic=a&topic=b", "")
	const publishers, each = 16, 40
	var all sync.WaitGroup
	for range publishers {
		all.Go(func() {
			for i := range each {
				topic := string(rune('a' + i%3)) // nobody follows c
				if _, err := s.p.Push(t.Context(), pushlet.Push{Topics: []string{topic}, Events: []pushlet.Event{{Data: fmt.Sprint("keyed ", i)}}, Key: fmt.Sprint(i)}); err != nil {
					t.Error(err)
				}
				if err := s.p.Publish(topic, "", "free"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	check(t, s.p.PublishToAll("", "end"))
	seen := map[string]int{}
	for e := c.next(); e.data != "end"; e = c.next() {
		if e.name != "message" {
			t.Fatalf("%v", e)
		}
		seen[e.data]++
	}
	for i := range each {
		want := 1
		if i%3 == 2 {
			want = 0
		}
		if n := seen[fmt.Sprint("keyed ", i)]; n != want {
			t.Errorf("keyed %d: %d times, want %d", i, n, want)
		}
	}
	if want := publishers * (each - each/3); seen["free"] != want {
		t.Errorf("free: %d, want %d", seen["free"], want)
	}
	rdb := server.Client()
	keys, err := rdb.Keys(t.Context(), "pushlet{0}:k:*").Result()
	check(t, err)
	if len(keys) != each {
		t.Errorf("%d keys, want %d", len(keys), each)
	}
	ttl := rdb.PTTL(t.Context(), keys[0]).Val()
	if ttl < 23*time.Hour || ttl > 24*time.Hour {
		t.Errorf("a key is kept for %v", ttl)
	}
}

// TestPushDown: without Redis the result says for each event that nothing was published.
func TestPushDown(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	s := instances(t, 1, client, pushlet.WithPublishTimeout(100*time.Millisecond), pushlet.WithPushAuthorize(pushlet.AllowPush))[0]
	server.Stop()
	eventually(t, "down", func() bool { return s.p.Ready() != nil })
	results, err := s.p.Push(context.Background(), pushlet.Push{Users: []string{"ann", "bob"}, Events: []pushlet.Event{{Data: "1"}}})
	check(t, err)
	if r := results[0]; !errors.Is(r.Err, pushlet.ErrUnavailable) || r.Published != 0 ||
		!strings.Contains(r.Err.Error(), `user "ann"`) || !strings.Contains(r.Err.Error(), `user "bob"`) {
		t.Errorf("%+v", r)
	}
	if a := s.push(t, `{"events":[{"data":"x"}]}`); a.status != 503 || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "unavailable") {
		t.Errorf("%+v", a)
	}
	if _, err := s.p.Disconnect(t.Context(), "ann", ""); !errors.Is(err, pushlet.ErrUnavailable) && !errors.Is(err, pushlet.ErrUncertain) {
		t.Errorf("Disconnect: %v", err)
	}
}

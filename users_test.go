package pushlet_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/pushlettest"
)

// userOf takes the user of a connection from its URL.
func userOf(r *http.Request) (string, error) { return r.URL.Query().Get("user"), nil }

func withUsers() siteOption { return withOptions(pushlet.WithIdentity(userOf)) }

func TestPublishToUsers(t *testing.T) {
	for _, db := range []string{"alone", "redis", "store"} {
		t.Run(db, func(t *testing.T) {
			sites := usersSites(t, db)
			one, other := sites[0], sites[len(sites)-1]
			ann1, h, _ := one.connect(t, "topic=a&user=ann", "")
			if want := []string{"a", "@user"}; !slices.Equal(h.Topics, want) {
				t.Errorf("topics %q, want %q", h.Topics, want)
			}
			ann2, _, _ := other.connect(t, "topic=@user&user=ann", "")
			bob, _, at := other.connect(t, "user=bob", "")
			nobody, _, _ := one.connect(t, "topic=a", "")
			check(t, one.p.PublishToUsers([]string{"ann", "carol", "ann"}, "note", "for ann"))
			check(t, other.p.PublishToUsers([]string{"ann", "bob"}, "", "for both"))
			check(t, one.p.PublishToUsers(nil, "", "for none"))
			check(t, one.p.PublishToAll("", "for all"))
			for _, st := range []*stream{ann1, ann2} {
				st.expect("note", "for ann")
				st.expectMessages("for both", "for all")
			}
			bob.expectMessages("for both", "for all")
			nobody.expectMessages("for all")

			// Missed, and resumed on another instance.
			n := other.p.Stats().Clients
			bob.close()
			other.clientsGoneTo(t, n-1)
			check(t, one.p.PublishToUsers([]string{"bob"}, "", "missed"))
			bob, h, _ = one.connect(t, "user=bob", at.id)
			if !h.Resumed {
				t.Error("not resumed")
			}
			bob.expectMessages("for both", "for all", "missed")
			// Another user has nothing of bob's cursor.
			eve, _, _ := one.connect(t, "user=eve", at.id)
			check(t, one.p.PublishToUsers([]string{"eve"}, "", "for eve"))
			eve.expectMessages("for all", "for eve")
		})
	}
}

// clientsGoneTo waits until the instance has so few clients.
func (s *site) clientsGoneTo(t testing.TB, n int) {
	t.Helper()
	eventually(t, fmt.Sprint(n, " clients"), func() bool { return s.p.Stats().Clients <= n })
}

func usersSites(t *testing.T, db string) []*site {
	switch db {
	case "alone":
		return []*site{newSite(t, withUsers())}
	case "store":
		return []*site{newSite(t, withUsers(), withOptions(pushlet.WithHistoryStore(pushlettest.NewMemoryHistory())))}
	}
	_, client := standalone(t)
	return instances(t, 2, client, pushlet.WithIdentity(userOf))
}

// TestUserTopicsAreHidden: nobody gets at what is for a user by the name of a topic.
func TestUserTopicsAreHidden(t *testing.T) {
	s := newSite(t, withUsers())
	for _, topic := range []string{"@user/ann", "@user/", "@user"} {
		if a := s.answer(t, http.MethodGet, "topic="+topic); a.status != http.StatusBadRequest {
			t.Errorf("topic %q: status %d, want 400", topic, a.status)
		}
		if err := s.p.Publish(topic, "", ""); !errors.Is(err, pushlet.ErrReserved) {
			t.Errorf("Publish to %q: %v", topic, err)
		}
	}
	ws := wsServe(t, pushlet.WithIdentity(userOf))
	c := ws.connect("?topic=@user&user=ann")
	c.expect("@user", "pushlet.subscribed", "")
	eve := ws.connect("?user=eve")
	eve.expect("@user", "pushlet.subscribed", "")
	for _, topic := range []string{"@user/ann", "@user/eve", "@user/"} {
		eve.send(`{"action":"subscribe","topic":%q}`, topic)
		if m := eve.next(); m.Event != "pushlet.error" || !strings.Contains(m.Data, "reserved") {
			t.Errorf("subscribe to %q: %+v", topic, m)
		}
	}
	none := ws.connect("")
	none.send(`{"action":"subscribe","topic":"@user"}`)
	none.expectError("@user", "this client has no user")
	eve.send(`{"action":"unsubscribe","topic":"@user"}`)
	eve.expectError("@user", "it cannot be unsubscribed from")
	check(t, ws.PublishToUsers([]string{"ann"}, "secret", "x"))
	check(t, ws.PublishToUsers([]string{"eve"}, "", "y"))
	c.expect("@user", "secret", "x")
	eve.expect("@user", "message", "y")
}

// TestUserResumesWebSocket: one request resumes all that a client followed, each from its own
// position, also the broadcasts.
func TestUserResumesWebSocket(t *testing.T) {
	s := wsServe(t, pushlet.WithIdentity(userOf))
	c := s.connect("?topic=a&user=ann")
	a := c.expect("a", "pushlet.subscribed", "").ID
	mine := c.expect("@user", "pushlet.subscribed", "").ID
	check(t, s.PublishToAll("", "1"))
	all := c.expect("*", "message", "1").ID
	c.Close()
	s.until("left", func(st pushlet.Stats) bool { return st.Clients == 0 && st.Users == 0 })
	check(t, s.PublishToAll("", "2"))
	check(t, s.PublishToUsers([]string{"ann"}, "", "mine"))
	s.publish("a", "in a")
	c = s.connect(fmt.Sprintf("?user=ann&topic=a&since=%s&topic=*&since=%s&topic=@user&since=%s", a, all, mine))
	c.expect("*", "pushlet.subscribed", "")
	c.expect("a", "pushlet.subscribed", "")
	c.expect("@user", "pushlet.subscribed", "")
	c.expectEach(map[string][]string{"*": {"message 2"}, "a": {"message in a"}, "@user": {"message mine"}})
	c.send(`{"action":"subscribe","topics":["@user"],"since":{"@user":%q}}`, mine)
	c.expect("@user", "pushlet.subscribed", "")
	c.expect("@user", "message", "mine")
	if n := s.Stats().Users; n != 1 {
		t.Errorf("%d users, want 1", n)
	}
	for _, query := range []string{"topic=a&topic=b&topic=c&since=1&since=2", "topic=@user"} {
		if _, err := s.tryConnect("?" + query); err == nil {
			t.Errorf("%s: was accepted", query)
		}
	}
}

func TestPublishToUsersErrors(t *testing.T) {
	s := newSite(t, withUsers())
	c, _, _ := s.connect(t, "user=ann", "")
	for _, users := range [][]string{{"ann", ""}, {"a\nb"}, {strings.Repeat("x", 256)}, {"\xff"}} {
		if err := s.p.PublishToUsers(users, "", "no"); !errors.Is(err, pushlet.ErrInvalidUser) {
			t.Errorf("%q: %v", users, err)
		}
	}
	if err := s.p.PublishToUsers([]string{"ann"}, "pushlet.x", "no"); !errors.Is(err, pushlet.ErrReserved) {
		t.Errorf("reserved event: %v", err)
	}
	check(t, s.p.PublishToUsers([]string{strings.Repeat("x", 255), "ann", "a/b", "*", "@user"}, "", "yes"))
	c.expectMessages("yes")
}

func TestDisconnect(t *testing.T) {
	for _, db := range []string{"alone", "redis"} {
		t.Run(db, func(t *testing.T) {
			sites := usersSites(t, db)
			one, other := sites[0], sites[len(sites)-1]
			ann1, _, _ := one.connect(t, "user=ann", "")
			ann2, h2, _ := other.connect(t, "user=ann", "")
			bob, _, _ := other.connect(t, "user=bob", "")
			got, err := one.p.Connections(t.Context(), "ann")
			check(t, err)
			ids := func(clients []pushlet.Client) (ids []string) {
				for _, c := range clients {
					if c.User != "ann" || c.Protocol != "sse" || c.Remote == "" {
						t.Errorf("%+v", c)
					}
					ids = append(ids, c.ID)
				}
				return ids
			}
			if len(got) != 2 || !slices.Contains(ids(got), h2.Client) {
				t.Errorf("connections %+v, want two, one of them %s", got, h2.Client)
			}
			ok, err := one.p.DisconnectClient(t.Context(), h2.Client, "too many devices")
			if err != nil || !ok {
				t.Fatal(ok, err)
			}
			ann2.expect("pushlet.disconnected", `{"reason":"too many devices"}`)
			ann2.expectEnd()
			eventually(t, "one left", func() bool {
				got, err := other.p.Connections(t.Context(), "ann")
				return err == nil && len(got) == 1
			})
			check(t, other.p.PublishToUsers([]string{"ann"}, "", "the last"))
			n, err := other.p.Disconnect(t.Context(), "ann", "")
			if err != nil || n != 1 {
				t.Fatal(n, err)
			}
			ann1.expectMessages("the last")
			ann1.expect("pushlet.disconnected", `{"reason":"disconnected"}`)
			ann1.expectEnd()
			check(t, one.p.PublishToUsers([]string{"bob"}, "", "still here"))
			bob.expectMessages("still here")
			if n, err := one.p.Disconnect(t.Context(), "carol", ""); n != 0 || err != nil {
				t.Error(n, err)
			}
			if ok, err := one.p.DisconnectClient(t.Context(), "nobody", ""); ok || err != nil {
				t.Error(ok, err)
			}
		})
	}
}

func TestDisconnectWebSocket(t *testing.T) {
	var why atomic.Value
	s := wsServe(t, pushlet.WithIdentity(userOf), pushlet.WithHooks(pushlet.Hooks{
		OnDisconnect: func(_ pushlet.Client, r pushlet.Reason) { why.Store(r) },
	}))
	c := s.connect("?user=ann")
	c.expect("@user", "pushlet.subscribed", "")
	if n, err := s.Disconnect(t.Context(), "ann", "logged out"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if code := c.closed(); code != 1008 {
		t.Errorf("close code %d, want 1008", code)
	}
	s.until("left", func(st pushlet.Stats) bool { return st.Clients == 0 })
	eventually(t, "OnDisconnect", func() bool { return why.Load() == pushlet.Reason("logged out") })
	for _, bad := range []pushlet.Reason{"a\nb", pushlet.Reason(strings.Repeat("x", 124))} {
		if _, err := s.Disconnect(t.Context(), "ann", bad); err == nil {
			t.Errorf("reason %q was accepted", bad)
		}
	}
}

func TestDisconnectStates(t *testing.T) {
	p := pushlet.New(pushlet.WithLogger(discard))
	ctx := context.Background()
	if _, err := p.Disconnect(ctx, "ann", ""); !errors.Is(err, pushlet.ErrNotStarted) {
		t.Error(err)
	}
	if err := p.PublishToUsers([]string{"ann"}, "", ""); !errors.Is(err, pushlet.ErrNotStarted) {
		t.Error(err)
	}
	check(t, p.Start())
	check(t, p.Stop())
	if _, err := p.Connections(ctx, "ann"); !errors.Is(err, pushlet.ErrClosed) {
		t.Error(err)
	}
	if _, err := p.Connections(ctx, ""); !errors.Is(err, pushlet.ErrInvalidUser) {
		t.Error(err)
	}
}

// TestReauthorize: in fake time, who may not stay any more is gone at the first heartbeat after
// that, and the others stay.
func TestReauthorize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		var barred atomic.Pointer[string]
		none := ""
		barred.Store(&none)
		s := wsServePipes(t,
			pushlet.WithIdentity(func(r *http.Request) (string, error) {
				asked.Add(1)
				user := r.URL.Query().Get("user")
				if user == *barred.Load() {
					return "", errors.New("barred")
				}
				return user, nil
			}),
			pushlet.WithAuthorize(func(r *http.Request, topic string) error {
				if r.Context().Err() != nil {
					t.Error("the context is done")
				}
				if topic == *barred.Load() {
					return errors.New("barred")
				}
				return nil
			}),
			pushlet.WithReauthorize(10*time.Minute))
		ann, bob := s.connect("?topic=a&user=ann"), s.connect("?topic=b&user=bob")
		annEnded, bobEnded := make(chan int, 1), make(chan int, 1)
		for c, ended := range map[*wsClient]chan int{ann: annEnded, bob: bobEnded} {
			c.next()
			c.next()
			go func() { ended <- c.closed() }() // it answers pings meanwhile
		}
		at := asked.Load()
		time.Sleep(9 * time.Minute)
		if n := asked.Load() - at; n != 0 {
			t.Errorf("asked %d times after nine minutes", n)
		}
		time.Sleep(2 * time.Minute)
		if n := asked.Load() - at; n != 2 {
			t.Errorf("asked %d times after eleven minutes, want 2", n)
		}
		name := "ann"
		barred.Store(&name)
		time.Sleep(10 * time.Minute)
		if code := <-annEnded; code != 1008 {
			t.Errorf("close code %d, want 1008", code)
		}
		topic := "b"
		barred.Store(&topic)
		time.Sleep(10 * time.Minute)
		if code := <-bobEnded; code != 1008 {
			t.Errorf("close code %d, want 1008", code)
		}
	})
}

func TestReauthorizeSSE(t *testing.T) {
	var barred atomic.Bool
	for _, hijack := range []bool{true, false} {
		barred.Store(false)
		s := newSite(t, withOptions(pushlet.WithHijack(hijack), pushlet.WithIdentity(func(*http.Request) (string, error) {
			if barred.Load() {
				return "", errors.New("barred")
			}
			return "ann", nil
		}), pushlet.WithReauthorize(20*time.Millisecond)))
		check(t, s.p.SetHeartbeatInterval(20*time.Millisecond))
		c, _, _ := s.connect(t, "", "")
		s.publish(t, "default", "before")
		c.expectMessages("before")
		barred.Store(true)
		c.expect("pushlet.disconnected", `{"reason":"unauthorized"}`)
		c.expectEnd()
		if a := s.answer(t, http.MethodGet, ""); a.status != http.StatusUnauthorized {
			t.Errorf("status %d, want 401", a.status)
		}
	}
}

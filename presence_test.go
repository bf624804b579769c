package pushlet_test

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet"
)

// members records who has joined and left, on all instances.
type members struct {
	mu   sync.Mutex
	told []string
}

func (m *members) options(grace time.Duration) []pushlet.Option {
	note := func(sign string) func(topic, user string) {
		return func(topic, user string) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.told = append(m.told, fmt.Sprint(sign, topic, " ", user))
		}
	}
	return []pushlet.Option{
		pushlet.WithPresence(grace),
		pushlet.WithIdentity(func(r *http.Request) (string, error) { return r.URL.Query().Get("user"), nil }),
		pushlet.WithHooks(pushlet.Hooks{OnJoin: note("+"), OnLeave: note("-")}),
	}
}

// expect waits until exactly these have been told, in any order, and forgets them.
func (m *members) expect(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	var got []string
	eventually(t, fmt.Sprint(want), func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		got = slices.Sorted(slices.Values(m.told))
		return len(got) >= len(want)
	})
	if !slices.Equal(got, want) {
		t.Fatalf("told %q, want %q", got, want)
	}
	m.mu.Lock()
	m.told = nil
	m.mu.Unlock()
}

// expectPresence waits until an instance sees these users, and so many clients.
func (s *site) expectPresence(t *testing.T, topic string, clients int, users map[string]int) {
	t.Helper()
	var got pushlet.Presence
	var err error
	eventually(t, fmt.Sprint(clients, users), func() bool {
		got, err = s.p.Presence(t.Context(), topic)
		return err == nil && got.Clients == clients && maps.Equal(got.Users, users)
	})
}

func TestPresence(t *testing.T) {
	var m members
	s := newSite(t, withOptions(m.options(0)...))
	ann, _, _ := s.connect(t, "topic=a&user=ann", "")
	s.connect(t, "topic=a&topic=b&user=bob", "")
	s.connect(t, "topic=a", "")
	m.expect(t, "+a ann", "+a bob", "+b bob", "+* ann", "+* bob")
	again, _, _ := s.connect(t, "topic=a&user=ann", "")
	s.expectPresence(t, "a", 4, map[string]int{"ann": 2, "bob": 1})
	s.expectPresence(t, "b", 1, map[string]int{"bob": 1})
	ann.close()
	s.expectPresence(t, "a", 3, map[string]int{"ann": 1, "bob": 1})
	again.close()
	m.expect(t, "-a ann", "-* ann")
	s.expectPresence(t, "a", 2, map[string]int{"bob": 1})
	s.expectPresence(t, "nobody", 0, nil)
}

// TestPresenceGrace: who only connects again has neither left nor joined.
func TestPresenceGrace(t *testing.T) {
	var m members
	s := newSite(t, withOptions(m.options(time.Hour)...))
	ann, _, _ := s.connect(t, "topic=a&user=ann", "")
	m.expect(t, "+a ann", "+* ann")
	ann.close()
	s.clientsGone(t)
	s.connect(t, "topic=a&user=ann", "")
	s.connect(t, "topic=a&user=bob", "")
	m.expect(t, "+a bob", "+* bob")
}

func TestPresenceOff(t *testing.T) {
	s := newSite(t)
	if _, err := s.p.Presence(t.Context(), "a"); !errors.Is(err, pushlet.ErrNoPresence) {
		t.Errorf("Presence: %v, want %v", err, pushlet.ErrNoPresence)
	}
}

func TestIdentity(t *testing.T) {
	s := newSite(t, withOptions(pushlet.WithIdentity(func(r *http.Request) (string, error) {
		switch r.URL.Query().Get("user") {
		case "panic":
			panic("no")
		case "odd":
			return "a\nb", nil
		}
		return "", errors.New("who are you?")
	})))
	for user, body := range map[string]string{"": "who are you?\n", "panic": "pushlet: authorization failed\n", "odd": "pushlet: authorization failed\n"} {
		if a := s.answer(t, http.MethodGet, "user="+user); a.status != http.StatusUnauthorized || a.body != body {
			t.Errorf("user %q: status %d, %q", user, a.status, a.body)
		}
	}
}

// TestRedisPresence: joins and leaves are told once over all instances, and the users of
// an instance that does not live any more have left.
func TestRedisPresence(t *testing.T) {
	t.Parallel()
	_, client := standalone(t)
	var m members
	sites := instances(t, 3, client, m.options(0)...)
	sites[0].connect(t, "topic=a&user=ann", "")
	m.expect(t, "+a ann", "+* ann")
	away, _, _ := sites[1].connect(t, "topic=a&user=ann", "")
	sites[1].connect(t, "topic=a&user=bob", "")
	sites[1].connect(t, "topic=b&user=bob", "")
	m.expect(t, "+a bob", "+b bob", "+* bob")
	for _, s := range sites {
		s.expectPresence(t, "a", 3, map[string]int{"ann": 2, "bob": 1})
	}
	away.close()
	sites[0].expectPresence(t, "a", 2, map[string]int{"ann": 1, "bob": 1})
	check(t, sites[1].p.Stop())
	m.expect(t, "-a bob", "-b bob", "-* bob")
	sites[2].expectPresence(t, "a", 1, map[string]int{"ann": 1})
}

// TestRedisPresenceOfTheDead: an instance that says nothing any more has no users.
func TestRedisPresenceOfTheDead(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	var m, dead members
	lives := instances(t, 1, client, m.options(0)...)[0]
	c := server.Client()
	dies := newSite(t, withOptions(append(dead.options(time.Hour), pushlet.WithRedis(c))...))
	dies.ready(t)
	lives.connect(t, "topic=a&user=ann", "")
	dies.connect(t, "topic=a&user=ann", "")
	dies.connect(t, "topic=a&user=bob", "")
	lives.expectPresence(t, "a", 3, map[string]int{"ann": 2, "bob": 1})
	check(t, c.Close())
	m.expect(t, "+a ann", "-a bob", "+* ann", "-* bob")
	lives.expectPresence(t, "a", 1, map[string]int{"ann": 1})
}

// TestRedisPresenceFlush: a Redis that knows nothing any more is told again.
func TestRedisPresenceFlush(t *testing.T) {
	t.Parallel()
	server, client := standalone(t)
	var m members
	sites := instances(t, 2, client, m.options(0)...)
	sites[0].connect(t, "topic=a&user=ann", "")
	sites[1].expectPresence(t, "a", 1, map[string]int{"ann": 1})
	var c redis.UniversalClient = server.Client()
	check(t, c.FlushAll(t.Context()).Err())
	sites[1].expectPresence(t, "a", 1, map[string]int{"ann": 1})
}

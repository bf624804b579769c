package pushlet_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestUsersAtRandom: clients of several users, with and without topics, come, go and come back,
// on any instance, while messages are sent to users, topics and everyone. Each gets exactly
// what is for it, once and, of each audience, in order.
func TestUsersAtRandom(t *testing.T) {
	for _, db := range []string{"alone", "redis"} {
		t.Run(db, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Log("seed", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			sites := usersSites(t, db)
			type follower struct {
				query  string
				user   string
				topics []string
				cursor string
				st     *stream
				want   map[string][]string // by audience
				got    map[string][]string
			}
			users, topics := []string{"a", "a/b", "*", "@user", "user/a"}, []string{"a", "b", "user/a"}
			followers := make([]*follower, 12)
			for i := range followers {
				f := &follower{want: map[string][]string{}, got: map[string][]string{}}
				if random.IntN(4) > 0 {
					f.user = users[random.IntN(len(users))]
				}
				for _, topic := range topics {
					if random.IntN(3) == 0 {
						f.topics = append(f.topics, topic)
					}
				}
				if len(f.topics) == 0 && f.user == "" {
					f.topics = topics[:1]
				}
				asked := f.topics
				if len(asked) == 0 {
					asked = []string{"@user"}
				}
				f.query = "user=" + f.user + "&topic=" + strings.Join(asked, "&topic=")
				followers[i] = f
			}
			take := func(f *follower, e event) {
				audience, _, ok := strings.Cut(e.data, " ")
				if !ok || e.name != "message" {
					t.Fatalf("%s: %v", f.query, e)
				}
				f.got[audience] = append(f.got[audience], e.data)
				f.cursor = e.id
			}
			count := func(m map[string][]string) (n int) {
				for _, list := range m {
					n += len(list)
				}
				return n
			}
			for step := range 600 {
				f := followers[random.IntN(len(followers))]
				switch what := random.IntN(10); {
				case what == 0 && f.st != nil: // cut off, with what may be on the way
					f.st.close()
					f.st = nil
				case what < 3 && f.st == nil:
					st, _, e := sites[random.IntN(len(sites))].connect(t, f.query, f.cursor)
					f.st, f.cursor = st, e.id
				case what == 3 && f.st != nil && count(f.got) < count(f.want):
					take(f, f.st.next())
				case what > 3:
					s := sites[random.IntN(len(sites))]
					var audience, data string
					is := func(*follower) bool { return true }
					switch random.IntN(5) {
					case 0:
						audience = "all"
						data = fmt.Sprint(audience, " ", step)
						check(t, s.p.PublishToAll("", data))
					case 1:
						topic := topics[random.IntN(len(topics))]
						audience = "topic:" + topic
						is = func(f *follower) bool { return slices.Contains(f.topics, topic) }
						data = fmt.Sprint(audience, " ", step)
						check(t, s.p.Publish(topic, "", data))
					default:
						to := users[random.IntN(len(users)):]
						to = to[:1+random.IntN(len(to))]
						audience = "users"
						is = func(f *follower) bool { return slices.Contains(to, f.user) }
						data = fmt.Sprint(audience, " ", step)
						check(t, s.p.PublishToUsers(to, "", data))
					}
					for _, f := range followers {
						if is(f) && f.cursor != "" {
							f.want[audience] = append(f.want[audience], data)
						}
					}
				}
			}
			for _, f := range followers {
				if f.cursor == "" {
					continue
				}
				if f.st == nil {
					st, _, _ := sites[0].connect(t, f.query, f.cursor)
					f.st = st
				}
				for count(f.got) < count(f.want) {
					take(f, f.st.next())
				}
				for audience := range f.want {
					if !slices.Equal(f.got[audience], f.want[audience]) {
						t.Errorf("%s: of %s got %q, want %q", f.query, audience, f.got[audience], f.want[audience])
					}
				}
			}
			// And nothing more.
			for _, f := range followers {
				if f.st == nil {
					continue
				}
				go func() {
					for _, s := range sites {
						_ = s.p.Stop()
					}
				}()
				if e, err := f.st.read(); !errors.Is(err, io.EOF) {
					t.Errorf("%s: %v, %v after all that was for it", f.query, e, err)
				}
			}
		})
	}
}

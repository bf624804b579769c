package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/usual2970/pushlet"
)

const (
	topicPrefix = "zones/" // of the topic of a zone

	defaultZone  = "default"
	defaultEvent = "customEvent"
)

// zones is what this program makes of a Pushlet.
type zones struct {
	p *pushlet.Pushlet
}

// newZones makes it. A user who is away for less than grace has not left.
func newZones(grace time.Duration) *zones {
	z := new(zones)
	z.p = pushlet.New(
		pushlet.WithIdentity(func(r *http.Request) (string, error) {
			where, err := placeOf(r)
			return where.id(), err
		}),
		pushlet.WithPresence(grace),
		pushlet.WithHooks(pushlet.Hooks{
			OnConnect: func(c pushlet.Client) {
				log.Printf("connected: %s, user %q, from %s", c.ID, c.User, c.Remote)
			},
			OnDisconnect: func(c pushlet.Client, why pushlet.Reason) {
				log.Printf("disconnected: %s, user %q: %s", c.ID, c.User, why)
			},
			OnJoin:  func(topic, user string) { z.tell(topic, "join", user) },
			OnLeave: func(topic, user string) { z.tell(topic, "leave", user) },
		}),
	)
	return z
}

// tell tells a zone that somebody came or went. The topic "*", of who comes online and goes
// offline, is not a zone.
func (z *zones) tell(topic, event, id string) {
	if !strings.HasPrefix(topic, topicPrefix) {
		return
	}
	_, user, _ := strings.Cut(id, "/")
	if err := z.p.Publish(topic, event, user); err != nil && !errors.Is(err, pushlet.ErrClosed) {
		log.Println(event, id+":", err)
	}
}

// members is who is in a zone.
type members struct {
	Clients int            `json:"clients"` // connections, those without a user too
	Users   map[string]int `json:"users"`   // and their connections
}

func (z *zones) members(ctx context.Context, zone string) (members, error) {
	here, err := z.p.Presence(ctx, topicPrefix+zone)
	m := members{here.Clients, make(map[string]int)}
	for id, n := range here.Users {
		_, user, _ := strings.Cut(id, "/")
		m.Users[user] = n
	}
	return m, err
}

// A place is where a connection is.
type place struct {
	zone string
	user string // may be empty: one who is reached with the zone only
}

// name is what a zone or a user may be called. It has no slash, so that the ID that is made of
// both can be taken apart.
var name = regexp.MustCompile(`^[\p{L}\p{N}_.-]{1,30}$`)

// placeOf reads the place from a request's URL.
func placeOf(r *http.Request) (place, error) {
	query := r.URL.Query()
	where := place{cmp.Or(query.Get("zone"), defaultZone), query.Get("user")}
	return where, where.check()
}

func (where place) check() error {
	switch {
	case !name.MatchString(where.zone):
		return fmt.Errorf("zone %q: 1 to 30 letters, digits, dots, dashes and underscores", where.zone)
	case where.user != "" && !name.MatchString(where.user):
		return fmt.Errorf("user %q: 1 to 30 letters, digits, dots, dashes and underscores", where.user)
	}
	return nil
}

// id is the user as Pushlet knows it.
func (where place) id() string {
	if where.user == "" {
		return ""
	}
	return where.zone + "/" + where.user
}

// request is r with the topic of the zone, and no other, in its URL: so nobody follows what
// they have not been given.
func (where place) request(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	query := r.URL.Query()
	query.Set("topic", topicPrefix+where.zone)
	r.URL.RawQuery = query.Encode()
	return r
}

// A message is the data of what is sent.
type message struct {
	Msg  string `json:"msg"`
	Time int64  `json:"time"` // milliseconds since 1970
	To   string `json:"to"`   // "user", "zone" or "everyone"
}

// pushOf reads what is to be sent, and to whom, from a request.
func pushOf(r *http.Request, now time.Time) (push pushlet.Push, err error) {
	if err := r.ParseForm(); err != nil {
		return push, err
	}
	zone, user, content := r.Form.Get("zone"), r.Form.Get("user"), r.Form.Get("content")
	m := message{Msg: content, Time: now.UnixMilli()}
	where := place{cmp.Or(zone, defaultZone), user}
	switch {
	case content == "":
		return push, errors.New("content is missing")
	case zone == "" && user != "":
		return push, errors.New("zone is missing: a user belongs to one")
	case where.check() != nil:
		return push, where.check()
	case user != "":
		push.Users, m.To = []string{where.id()}, "user"
	case zone != "":
		push.Topics, m.To = []string{topicPrefix + zone}, "zone"
	default:
		push.Everyone, m.To = true, "everyone"
	}
	data, err := json.Marshal(m)
	push.Events = []pushlet.Event{{Name: cmp.Or(r.Form.Get("event"), defaultEvent), Data: string(data)}}
	return push, err
}

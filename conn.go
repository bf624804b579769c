package pushlet

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// What both adapters share: who may connect, to what, and how a connection ends.

// Events that the library sends itself.
const (
	eventConnected    = reservedPrefix + "connected"
	eventSubscribed   = reservedPrefix + "subscribed"
	eventUnsubscribed = reservedPrefix + "unsubscribed"
	eventGap          = reservedPrefix + "gap"
	eventDisconnected = reservedPrefix + "disconnected"
	eventError        = reservedPrefix + "error"
	eventPong         = reservedPrefix + "pong"
	eventHeartbeat    = reservedPrefix + "heartbeat"
)

// A wish is a topic that a request's URL asks for, and from where on.
type wish struct {
	topic string
	since *string // nil: from now on
}

// wishesOf returns what a request's URL asks for, each topic once, and its other parameters.
// Empty ones and "/" count as none. What the topics are is not checked.
func wishesOf(r *http.Request) (wishes []wish, query url.Values, err error) {
	query, err = url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, nil, fmt.Errorf("pushlet: query: %w", err)
	}
	since := query["since"]
	if len(since) > 1 && len(since) != len(query["topic"]) {
		return nil, nil, errors.New("pushlet: since: one for all topics, or one for each")
	}
	seen := make(map[string]struct{}, len(query["topic"]))
	for i, topic := range query["topic"] {
		if _, again := seen[topic]; again || topic == "" || topic == "/" {
			continue
		}
		seen[topic] = struct{}{}
		w := wish{topic: topic}
		if len(since) > 0 {
			w.since = &since[min(i, len(since)-1)]
		}
		wishes = append(wishes, w)
	}
	return wishes, query, nil
}

// checkWishes reports what is wrong with what a client asks for. The reserved topics are
// allowed that are given.
func (p *Pushlet) checkWishes(wishes []wish, reserved ...string) error {
	ordinary := 0
	for _, w := range wishes {
		if slices.Contains(reserved, w.topic) {
			continue
		}
		if err := checkTopic(w.topic); err != nil {
			return err
		}
		if ordinary++; ordinary > p.cfg.maxTopics {
			return fmt.Errorf("pushlet: more than %d topics", p.cfg.maxTopics)
		}
	}
	return nil
}

// broadcastsFirst puts the broadcast log first, for one who is to begin in it somewhere: who
// follows a topic follows it, and then from now on.
func broadcastsFirst(wishes []wish) []wish {
	i := slices.IndexFunc(wishes, func(w wish) bool { return w.topic == broadcastTopic })
	if i > 0 {
		wishes = slices.Concat(wishes[i:i+1], wishes[:i], wishes[i+1:])
	}
	return wishes
}

// withUser puts in the topic of the user, whom every client follows that has one.
func withUser(wishes []wish, user string) ([]wish, error) {
	mine := topicOfUser(user)
	for i := range wishes {
		if wishes[i].topic == userTopic {
			if user == "" {
				return nil, fmt.Errorf("%w: topic %q without a user", ErrReserved, userTopic)
			}
			wishes[i].topic = mine
			return wishes, nil
		}
	}
	if user != "" {
		wishes = append(wishes, wish{topic: mine})
	}
	return wishes, nil
}

// authorizeAll asks the application for each topic but that of the user, which follows from
// the identity.
func (p *Pushlet) authorizeAll(r *http.Request, topics []string) error {
	if p.cfg.authorize == nil {
		return nil
	}
	return p.authorize(r, slices.DeleteFunc(slices.Clone(topics), isUserTopic)...)
}

// reauthorizer makes what asks the application again, nil if it does not want to be asked.
// The context of r is done with its handler, so it is left out.
func (p *Pushlet) reauthorizer(r *http.Request, user string) func([]string) error {
	if p.cfg.reauthorize <= 0 || p.cfg.identity == nil && p.cfg.authorize == nil {
		return nil
	}
	r = r.WithContext(context.WithoutCancel(r.Context()))
	return func(topics []string) error {
		now, err := p.identify(r)
		switch {
		case err != nil:
			return err
		case now != user:
			return errors.New("pushlet: another user")
		}
		return p.authorizeAll(r, topics)
	}
}

// authorize asks the application for each topic. A panic is a refusal.
func (p *Pushlet) authorize(r *http.Request, topics ...string) (err error) {
	if p.cfg.authorize == nil {
		return nil
	}
	err = errAuthorizePanic
	p.guard("WithAuthorize", func() {
		for _, topic := range topics {
			if err = p.cfg.authorize(r, topic); err != nil {
				return
			}
			err = errAuthorizePanic // until the next has answered
		}
		err = nil
	})
	return err
}

// identify asks the application who it is.
func (p *Pushlet) identify(r *http.Request) (user string, err error) {
	if p.cfg.identity == nil {
		return "", nil
	}
	err = errAuthorizePanic
	p.guard("WithIdentity", func() { user, err = p.cfg.identity(r) })
	if err == nil && user != "" && checkUser(user) != nil {
		logAt(p.log.WithField("user", cutUTF8(user, 64)), slog.LevelWarn, "WithIdentity: no name of a user")
		err = errAuthorizePanic
	}
	return user, err
}

var errAuthorizePanic = errors.New("pushlet: authorization failed")

// guard calls a function of the application. If it panics that is logged, and goes no
// further: it may run in a goroutine of ours, where it would end the process.
func (p *Pushlet) guard(name string, call func()) {
	defer func() {
		if v := recover(); v != nil {
			logAt(p.log.WithField("panic", v).WithField("stack", string(debug.Stack())), slog.LevelError, name, "panicked")
		}
	}()
	call()
}

// refuse answers a request that cannot be served, and counts it.
func (p *Pushlet) refuse(w http.ResponseWriter, status int, why string) {
	p.counters.refused.Add(1)
	http.Error(w, why, status)
}

// originAllowed reports whether a page of the request's origin may open a WebSocket.
func (c *config) originAllowed(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true // not a browser
	}
	if u, err := url.Parse(origin); err == nil && strings.EqualFold(u.Host, r.Host) {
		return true
	}
	return c.listsOrigin(origin) || slices.Contains(c.origins, "*")
}

func (c *config) listsOrigin(origin string) bool {
	return slices.ContainsFunc(c.origins, func(o string) bool { return strings.EqualFold(o, origin) })
}

// allowOrigin sets the CORS headers (WHATWG Fetch) for an origin that is allowed.
func (c *config) allowOrigin(w http.ResponseWriter, r *http.Request) {
	if len(c.origins) == 0 {
		return
	}
	h := w.Header()
	h.Add("Vary", "Origin")
	switch origin := r.Header.Get("Origin"); {
	case origin == "":
	case c.listsOrigin(origin):
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Allow-Credentials", "true")
	case slices.Contains(c.origins, "*"):
		h.Set("Access-Control-Allow-Origin", "*")
	}
}

// HandleReady answers a load balancer: 200 if Ready returns nil, else 503 and the reason.
func (p *Pushlet) HandleReady(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if err := p.Ready(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ready\n")) // if it fails, nobody listens
}

// newClientID returns 128 random bits or more, from crypto/rand.
func newClientID() string { return rand.Text() }

// greet tells the application of a client before it gets anything.
func (p *Pushlet) greet(info Client) {
	p.counters.connected.Add(1)
	if p.cfg.hooks.OnConnect != nil {
		p.guard("OnConnect", func() { p.cfg.hooks.OnConnect(info) })
	}
}

// leave ends what an adapter began with admit, once the connection is closed.
func (p *Pushlet) leave(c *client) {
	info := c.info
	why := c.endReason()
	if queue, messages := c.remains(); messages > 0 {
		p.counters.undelivered.add(why, messages)
		if p.cfg.hooks.OnUndelivered != nil {
			p.broker.send(newLeftover(c, info, why, queue, messages))
		}
	}
	p.broker.send(&detach{c, time.Now()}) // the broker runs until all have left
	p.counters.ended.add(why, 1)
	switch why {
	case ReasonSlow, ReasonWriteTimeout, ReasonHeartbeat, ReasonProtocol, ReasonConnection:
		p.log.WithField("client", info.ID).WithField("remote", info.Remote).
			Println(info.Protocol, "connection ended:", string(why))
	}
	if p.cfg.hooks.OnDisconnect != nil {
		p.guard("OnDisconnect", func() { p.cfg.hooks.OnDisconnect(info, why) })
	}
	p.dismiss()
}

// swallow reads and drops what a peer sends that has nothing to say any more, until the
// connection ends.
func swallow(conn net.Conn, buf []byte) {
	for {
		if _, err := conn.Read(buf); err != nil {
			return
		}
	}
}

// spreadRetry is when a client that we send away should come back.
func spreadRetry(retry time.Duration) time.Duration {
	return retry + mathrand.N(2*retry) //nolint:gosec // nobody gains by guessing it
}

// farewell is the last thing a client gets when we end its connection.
func farewell(m form, why Reason, retry time.Duration, now time.Time) []byte {
	known := true
	code := websocket.CloseGoingAway
	switch why {
	case ReasonShutdown, ReasonUnavailable:
	case ReasonSlow:
		code = websocket.CloseTryAgainLater
	case ReasonMaxAge, ReasonIdle:
		code = websocket.CloseNormalClosure
	default: // the application wants it
		known, code = false, websocket.ClosePolicyViolation
	}
	if !m.isStream() {
		return wsCloseFrame(code, string(why))
	}
	b := append(appendRetry(nil, spreadRetry(retry)), '\n')
	switch {
	case known:
	case m == formSSEJSON:
		b = append(b, jsonReply(m, "", eventDisconnected, string(why), msgID{}, now)...)
	default:
		b = append(b, "event: "+eventDisconnected+"\ndata: {\"reason\":"...)
		b = append(appendJSONString(b, string(why)), "}\n\n"...)
	}
	return b
}

// appendRetry appends the line that tells an EventSource how long to wait before it
// connects again.
func appendRetry(b []byte, d time.Duration) []byte {
	b = append(b, "retry: "...)
	b = strconv.AppendInt(b, max(1, d.Milliseconds()), 10)
	return append(b, '\n')
}

// wsCloseFrame builds a close frame (RFC 6455, section 5.5.1).
func wsCloseFrame(code int, why string) []byte {
	why = cutUTF8(why, 123) // control frames have at most 125 bytes
	b := appendWSHeader(nil, wsFin|wsClose, 2+len(why))
	b = binary.BigEndian.AppendUint16(b, uint16(code))
	return append(b, why...)
}

// sseGap builds the gap event for an SSE client.
func sseGap(idLine []byte, topics []string, why Reason) []byte {
	data, _ := json.Marshal(struct { // strings cannot fail
		Topics []string `json:"topics"`
		Reason Reason   `json:"reason"`
	}{topics, why})
	return fmt.Appendf(nil, "%sevent: %s\ndata: %s\n\n", idLine, eventGap, data)
}

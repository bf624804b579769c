package pushlet

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Receiving from Redis. receive hands what is published to the broker. manage sees to it
// that what the broker wants is subscribed to, reads what it lacks, and compares positions
// now and then: so whatever is lost on the way is found, however it was lost.

// A subscriber is the part of a partition that receives.
type subscriber struct {
	hears   atomic.Bool   // the control channel is subscribed to
	answers atomic.Bool   // the last command was answered
	takes   atomic.Bool   // messages are taken
	wake    chan struct{} // there is something to do for manage; holds one

	mu        sync.Mutex // guards what follows; never held while waiting for anything
	sub       *redis.PubSub
	fresh     bool     // sub is new: everything has to be subscribed to
	orders    []order  // from the broker, in their order
	confirmed []string // topics that Redis has confirmed, to be compared
	followed  map[string]struct{}
}

// An order is what the broker asks for.
type order struct {
	kind  orderKind
	topic string
	id    msgID
}

type orderKind uint8

const (
	orderFollow orderKind = iota
	orderUnfollow
	orderFill
	orderMark
	orderRenew // messages do not arrive: a new subscription
)

const (
	subscribeChunk = 1000 // channels in one command
	checkChunk     = 256  // topics in one script call
	fillChunk      = 16   // topics that are read at once
	fillPage       = 1000 // messages read at once
)

func (s *subscriber) init() {
	s.wake = make(chan struct{}, 1)
	s.followed = make(map[string]struct{})
	s.takes.Store(true)
}

func (c *connector) order(kind orderKind, topic string, id msgID) {
	pt := c.partition(topic)
	pt.mu.Lock()
	pt.orders = append(pt.orders, order{kind, topic, id})
	pt.mu.Unlock()
	pt.nudge()
}

func (c *connector) follow(topic string)           { c.order(orderFollow, topic, msgID{}) }
func (c *connector) unfollow(topic string)         { c.order(orderUnfollow, topic, msgID{}) }
func (c *connector) fill(topic string, from msgID) { c.order(orderFill, topic, from) }
func (c *connector) mark(topic string, lost msgID) { c.order(orderMark, topic, lost) }
func (c *connector) stale(topic string)            { c.order(orderRenew, topic, msgID{}) }

func (s *subscriber) nudge() {
	select {
	case s.wake <- struct{}{}:
	default: // manage has yet to look
	}
}

// receive keeps a subscription, and takes what comes.
func (pt *partition) receive() {
	var wait backoff
	for {
		if pt.listen() {
			wait = backoff{}
		}
		if !pt.c.pause(wait.next()) {
			return
		}
	}
}

// listen opens a subscription and takes what comes until it is no good any more. It
// reports whether it ever was.
func (pt *partition) listen() (good bool) {
	ctx := pt.c.ctx
	var sub *redis.PubSub
	if pt.c.cluster != nil {
		sub = pt.c.cluster.SSubscribe(ctx)
	} else {
		sub = pt.c.client.Subscribe(ctx)
	}
	defer func() {
		pt.set(&pt.hears, false)
		_ = sub.Close()
	}()
	if err := pt.subscribeTo(sub, pt.control); err != nil {
		pt.failed(err)
		return false
	}
	pt.mu.Lock()
	pt.sub, pt.fresh = sub, true
	pt.mu.Unlock()
	pt.nudge()

	var wait backoff
	for ctx.Err() == nil {
		got, err := sub.ReceiveTimeout(ctx, redisSilence)
		if err != nil {
			pt.failed(err)
			pt.set(&pt.hears, false)
			// go-redis connects again by itself, and subscribes to all channels, except
			// where it takes the connection for good.
			var answer redis.Error
			var timeout net.Error
			if errors.Is(err, redis.ErrClosed) || errors.As(err, &answer) || errors.As(err, &timeout) && timeout.Timeout() || !pt.c.pause(wait.next()) {
				return good
			}
			continue
		}
		wait = backoff{}
		switch got := got.(type) {
		case *redis.Message:
			pt.take(got.Channel, got.Payload)
		case *redis.Subscription:
			if got.Kind == "sunsubscribe" && pt.follows(got.Channel) {
				pt.failed(errSlotMoved)
				return good
			}
			if got.Kind == "subscribe" || got.Kind == "ssubscribe" {
				good = true
				pt.confirm(got.Channel)
			}
		}
	}
	return good
}

var errSlotMoved = errors.New("pushlet: slot moved to another node")

func (pt *partition) subscribeTo(sub *redis.PubSub, channels ...string) error {
	if pt.c.cluster != nil {
		return sub.SSubscribe(pt.c.ctx, channels...)
	}
	return sub.Subscribe(pt.c.ctx, channels...)
}

func (pt *partition) unsubscribeFrom(sub *redis.PubSub, channels ...string) error {
	if pt.c.cluster != nil {
		return sub.SUnsubscribe(pt.c.ctx, channels...)
	}
	return sub.Unsubscribe(pt.c.ctx, channels...)
}

// set changes hears or answers.
func (pt *partition) set(what *atomic.Bool, value bool) {
	if what.Swap(value) != value {
		pt.c.note()
	}
}

// up reports whether Redis is of use.
func (pt *partition) up() bool { return pt.hears.Load() && pt.answers.Load() && pt.takes.Load() }

// hangUp ends the subscription, so that receive notices that the connector has ended.
func (pt *partition) hangUp() {
	pt.mu.Lock()
	sub := pt.sub
	pt.mu.Unlock()
	if sub != nil {
		_ = sub.Close()
	}
}

// ping sees to it that a connection that lives is never silent for long.
func (pt *partition) ping() {
	for pt.c.pause(redisPing/2 + rand.N(redisPing/2)) { //nolint:gosec // spread, not secret
		pt.mu.Lock()
		sub := pt.sub
		pt.mu.Unlock()
		if sub != nil {
			_ = sub.Ping(pt.c.ctx) // receive finds out
		}
	}
}

// confirm notes that messages of a channel arrive from now on.
func (pt *partition) confirm(channel string) {
	topic, ok := strings.CutPrefix(channel, pt.topics)
	if !ok {
		pt.set(&pt.hears, true)
		return
	}
	pt.mu.Lock()
	pt.confirmed = append(pt.confirmed, topic)
	pt.mu.Unlock()
	pt.nudge()
}

func (pt *partition) follows(channel string) bool {
	topic, ok := strings.CutPrefix(channel, pt.topics)
	if !ok {
		return true
	}
	pt.mu.Lock()
	defer pt.mu.Unlock()
	_, ok = pt.followed[topic]
	return ok
}

// take brings a message to the broker.
func (pt *partition) take(channel, payload string) {
	topic, ok := strings.CutPrefix(channel, pt.topics)
	if !ok {
		pt.takeCall(payload)
		return
	}
	f, ok := parseFrame(topic, payload)
	if !ok {
		logAt(pt.c.log.WithField("topic", topic), slog.LevelWarn, "redis: a message that is none of ours was ignored")
		return
	}
	if f.mark == "" {
		f.encode(pt.c.counters.wanted())
	}
	pt.c.broker.send(&arrival{f, time.Now()})
}

// parseFrame reads what the scripts write: the ID, the link, and then either a message as
// appendPayload has it or a note.
func parseFrame(topic, message string) (*frame, bool) {
	id, rest, _ := strings.Cut(message, " ")
	prev, text, _ := strings.Cut(rest, " ")
	f := &frame{topic: topic}
	var ok bool
	if f.id, ok = parseID(id); !ok {
		return nil, false
	}
	if f.prev, ok = parseID(prev); !ok || !f.prev.before(f.id) {
		return nil, false
	}
	if reason, ok := strings.CutPrefix(text, "!"); ok {
		f.mark = Reason(reason)
		f.at = time.UnixMilli(int64(f.id.ms))
		return f, reason != ""
	}
	ms, rest, ok1 := strings.Cut(text, " ")
	length, both, ok2 := strings.Cut(rest, " ")
	at, err1 := strconv.ParseInt(ms, 10, 64)
	n, err2 := strconv.Atoi(length)
	if !ok1 || !ok2 || err1 != nil || err2 != nil || n < 0 || n > len(both) || at < 0 || at > lastTime {
		return nil, false
	}
	f.at, f.event, f.data = time.UnixMilli(at), validUTF8(both[:n]), validUTF8(both[n:])
	return f, checkEvent(f.event) == nil
}

// lastTime is the end of the year 9999, in milliseconds: RFC 3339 goes no further.
const lastTime = 253402300799999

// manage does what the broker orders, and compares positions, until the end.
func (pt *partition) manage() {
	next := time.NewTimer(0) // the first at once
	defer next.Stop()
	m := manager{pt: pt}
	var wait backoff
	for {
		check := false
		select {
		case <-pt.wake:
		case <-next.C:
			check = true
			next.Reset(redisCheck/2 + rand.N(redisCheck)) //nolint:gosec // spread, not secret
		case <-pt.c.ctx.Done():
			return
		}
		if err := m.round(check); err != nil {
			pt.failed(err)
			pt.set(&pt.answers, false)
			if !pt.c.pause(wait.next()) {
				return
			}
			pt.nudge()
			continue
		}
		if check {
			pt.set(&pt.answers, true)
		}
		wait = backoff{}
	}
}

// A manager is what manage remembers from round to round.
type manager struct {
	pt      *partition
	fresh   []string // subscribed to, to be compared at once
	fills   []order
	rotate  []string // all topics, to be compared in turn
	urgent  bool     // to compare them all at once: the logs have begun anew
	lineage uint64   // of the logs, 0 if not known yet
	renewed time.Time
}

// round does what there is to do. After an error what is left is done the next time.
func (m *manager) round(check bool) error {
	ctx := m.pt.c.ctx
	m.obey()
	for {
		m.pt.mu.Lock()
		m.fresh = append(m.fresh, m.pt.confirmed...)
		m.pt.confirmed = nil
		m.pt.mu.Unlock()
		if len(m.fresh) == 0 {
			break
		}
		n := min(len(m.fresh), checkChunk)
		if err := m.compare(ctx, m.fresh[:n], true); err != nil {
			return err
		}
		m.fresh = m.fresh[n:]
	}
	m.fresh = nil
	for len(m.fills) > 0 {
		n := min(len(m.fills), fillChunk)
		if err := m.read(ctx, m.fills[:n]); err != nil {
			return err
		}
		m.fills = m.fills[n:]
	}
	m.fills = nil
	if check {
		if err := m.compare(ctx, m.nextToCheck(), false); err != nil {
			return err
		}
	}
	for m.urgent {
		if err := m.compare(ctx, m.nextToCheck(), false); err != nil {
			return err
		}
		m.urgent = len(m.rotate) > 0
	}
	return nil
}

// obey takes the orders and brings the subscription up to them.
func (m *manager) obey() {
	pt := m.pt
	pt.mu.Lock()
	orders := pt.orders
	pt.orders = nil
	sub, fresh := pt.sub, pt.fresh
	pt.fresh = false
	var add, remove []string
	renew := false
	flush := func(list *[]string, send func(*redis.PubSub, ...string) error, least int) {
		if len(*list) < least || len(*list) == 0 {
			return
		}
		pt.mu.Unlock()
		if sub != nil {
			_ = send(sub, *list...) // go-redis remembers the channels; receive finds out
		}
		pt.mu.Lock()
		*list = nil
	}
	for _, o := range orders {
		switch o.kind {
		case orderFollow:
			flush(&remove, pt.unsubscribeFrom, 1)
			pt.followed[o.topic] = struct{}{}
			add = append(add, pt.topics+o.topic)
			flush(&add, pt.subscribeTo, subscribeChunk)
		case orderUnfollow:
			flush(&add, pt.subscribeTo, 1)
			delete(pt.followed, o.topic)
			remove = append(remove, pt.topics+o.topic)
			flush(&remove, pt.unsubscribeFrom, subscribeChunk)
		case orderRenew:
			renew = true
		default:
			m.fills = append(m.fills, o)
		}
	}
	if fresh {
		add = nil
		for topic := range pt.followed {
			add = append(add, pt.topics+topic)
		}
		for len(add) > subscribeChunk {
			chunk, rest := add[:subscribeChunk], add[subscribeChunk:]
			flush(&chunk, pt.subscribeTo, 1)
			add = rest
		}
	}
	flush(&add, pt.subscribeTo, 1)
	flush(&remove, pt.unsubscribeFrom, 1)
	pt.mu.Unlock()
	if renew && !fresh && time.Since(m.renewed) > redisSilence {
		m.renewed = time.Now()
		logAt(pt.c.log, slog.LevelWarn, "redis: messages do not arrive; subscribing anew")
		pt.hangUp()
	}
}

// nextToCheck returns the topics whose turn it is.
func (m *manager) nextToCheck() []string {
	if len(m.rotate) == 0 {
		m.pt.mu.Lock()
		for topic := range m.pt.followed {
			m.rotate = append(m.rotate, topic)
		}
		m.pt.mu.Unlock()
	}
	n := min(len(m.rotate), checkChunk)
	names := m.rotate[:n]
	m.rotate = m.rotate[n:]
	return names
}

// compare tells the broker where topics are in Redis.
func (m *manager) compare(ctx context.Context, topics []string, fresh bool) error {
	if len(topics) == 0 {
		return nil
	}
	pt := m.pt
	answer := make(chan []msgID, 1)
	pt.c.broker.send(&inquiry{topics, answer})
	var asked []msgID
	select {
	case asked = <-answer:
	case <-pt.c.broker.done:
		return nil
	}
	client, err := pt.conn(ctx)
	if err != nil {
		return err
	}
	keys := []string{pt.head}
	args := []any{newLineage()}
	for i, topic := range topics {
		keys = append(keys, pt.topics+topic)
		id := ""
		if !asked[i].isZero() && !asked[i].isFloor() {
			id = asked[i].String()
		}
		args = append(args, id)
	}
	for _, topic := range topics {
		keys = append(keys, pt.newest+topic)
	}
	reply, err := checkScript.Run(ctx, client, keys, args...).Slice()
	if err != nil {
		return err
	}
	s := &sighting{fresh: fresh, topics: make([]sighted, len(topics))}
	s.lineage, s.now, err = parseWhere(reply)
	if err != nil || len(reply) != 2+2*len(topics) {
		return errBadReply
	}
	for i, topic := range topics {
		last, _ := reply[2+2*i].(string)
		held, _ := reply[3+2*i].(int64)
		id, _ := parseID(last) // zero if there is none
		s.topics[i] = sighted{name: topic, asked: asked[i], held: held == 1, last: id}
	}
	pt.c.broker.send(s)
	if m.lineage != 0 && s.lineage != m.lineage {
		m.urgent, m.rotate = true, nil
	}
	m.lineage = s.lineage
	return nil
}

var errBadReply = errors.New("pushlet: redis answers something else than expected")

func parseWhere(reply []any) (lineage, now uint64, err error) {
	if len(reply) < 2 {
		return 0, 0, errBadReply
	}
	a, _ := reply[0].(string)
	b, _ := reply[1].(string)
	lineage, err1 := strconv.ParseUint(a, 10, lineageBits)
	now, err2 := strconv.ParseUint(b, 10, 64)
	if err1 != nil || err2 != nil {
		return 0, 0, errBadReply
	}
	return lineage, now, nil
}

// read reads logs for the broker, several at once.
func (m *manager) read(ctx context.Context, fills []order) error {
	pt := m.pt
	client, err := pt.conn(ctx)
	if err != nil {
		return err
	}
	for _, o := range fills {
		if o.kind == orderMark {
			if err := pt.mark(ctx, client, o.topic, o.id.String()); err != nil {
				return err
			}
		}
	}
	where, err := checkScript.Run(ctx, client, []string{pt.head}, newLineage()).Slice()
	if err != nil {
		return err
	}
	lineage, now, err := parseWhere(where)
	if err != nil {
		return err
	}
	answers := make([]*filled, len(fills))
	from := make([]string, len(fills)) // "" for those that are read to the end
	for i, o := range fills {
		answers[i] = &filled{topic: o.topic, from: o.id, lineage: lineage, now: now}
		from[i] = o.id.String()
	}
	for left := len(fills); left > 0; {
		pages := make([]*redis.XMessageSliceCmd, len(fills))
		_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, start := range from {
				if start != "" {
					pages[i] = p.XRangeN(ctx, pt.topics+fills[i].topic, start, "+", fillPage)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i, page := range pages {
			if page == nil {
				continue
			}
			entries := page.Val()
			for _, e := range entries {
				if f := parseEntry(fills[i].topic, e); f != nil && f.id.lineage() == lineage {
					answers[i].frames = append(answers[i].frames, f)
				}
			}
			from[i] = ""
			if len(entries) < fillPage {
				left--
			} else {
				from[i] = "(" + entries[len(entries)-1].ID
			}
		}
	}
	for _, a := range answers {
		pt.c.counters.fills.Add(1)
		pt.c.broker.send(a)
	}
	return nil
}

func parseEntry(topic string, e redis.XMessage) *frame {
	message, _ := e.Values["m"].(string)
	f, ok := parseFrame(topic, message)
	if !ok {
		return nil
	}
	return f
}

// newLineage is a lineage for a Redis that has none yet, so large that sequence numbers
// have 13 digits.
func newLineage() uint64 {
	const least = 1_000_000_000_000>>counterBits + 1
	return least + rand.Uint64N(1<<lineageBits-least) //nolint:gosec // it only has to differ from others
}

func newNonce() int {
	return rand.IntN(1 << nonceBits) //nolint:gosec // it only has to differ from others
}

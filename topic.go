package pushlet

import (
	"fmt"
	"iter"
	"strings"
	"time"
)

// A topic is a name that somebody follows or has published to.
type topic struct {
	name      string
	hash      topicHash
	policy    SlowPolicy
	ofUser    bool  // what is published to a user
	history   bool  // the log keeps messages
	last      msgID // of its newest message; at first, where its history begins
	subs      []*subscription
	followers [numForms]int32 // subs by the form of their client
	state     *topicState     // nil until there is a message
	shared    *sharedTopic    // nil but in distributed mode
}

// topicState is what a topic has only once a message was published.
type topicState struct {
	log        topicLog
	unfollowed time.Time // when the last follower left
	lanes      [numForms]lane
	bcast      msgID   // the broadcast that bcastSSE belongs to
	bcastSSE   rangeOf // that broadcast with this topic's "id:" line
}

// position is the last ID of its topic that the client has been given.
func (s *subscription) position() msgID {
	if s.behind {
		return s.pos
	}
	return s.topic.last
}

// floor is the position after which every message of the topic is in its log. It is the
// link to the message before the oldest.
func (t *topic) floor() msgID {
	if t.state != nil && t.state.log.len() > 0 {
		return t.state.log.frames[t.state.log.head].prev
	}
	return t.last
}

// cause says why messages before the floor are gone.
func (t *topic) cause() Reason {
	switch {
	case !t.history:
		return gapTrimmed
	case t.state == nil || t.state.log.cause == "":
		return gapExpired // the topic was forgotten
	}
	return t.state.log.cause
}

// subscribe adds a topic to a client of JSON, or begins it anew at another position.
func (b *broker) subscribe(cmd *subscribe) {
	c := cmd.client
	if c.bucket < 0 {
		return
	}
	s := b.find(c, cmd.topic)
	switch {
	case s == nil && b.isOneTooMany(c, cmd.topic):
		why := fmt.Sprintf("more than %d topics", b.cfg.maxTopics)
		b.tell(c, jsonReply(c.form, wireTopic(cmd.topic), eventError, why, msgID{}, cmd.now))
		return
	case b.shared != nil && b.park(c, cmd, b.needsOfSubscribe(cmd)):
		return
	}
	b.subscribeNow(cmd, s)
}

// isOneTooMany reports whether a client follows as many topics as it may. That of its user and
// the broadcast log come on top.
func (b *broker) isOneTooMany(c *client, topic string) bool {
	most := b.cfg.maxTopics
	if c.info.User != "" {
		most++
	}
	return topic != broadcastTopic && !isUserTopic(topic) && len(c.topics)+len(b.waiting[c]) >= most
}

// subscribeNow does it, when the topic is ready.
func (b *broker) subscribeNow(cmd *subscribe, s *subscription) {
	c := cmd.client
	switch {
	case s != nil:
	case cmd.topic == broadcastTopic:
		s = b.follow(c, b.all)
	default:
		s = b.follow(c, b.topicFor(cmd.topic))
	}
	if cmd.topic == broadcastTopic {
		c.allAsked = true
	}
	var gaps []gap
	if cmd.resume {
		b.setBehind(s, cmd.since)
		if why := b.missing(s.topic, cmd.since, true); why != "" {
			gaps = []gap{{s, why}}
		} else {
			b.counters.resumes.Add(1)
		}
	}
	b.raw = appendJSONTail(append(b.raw[:0], cmd.hello...), b.handout(s))
	b.token = append(c.form.appendHead(b.token[:0], len(b.raw)), b.raw...)
	b.token = append(b.token, c.form.end()...)
	b.tell(c, b.token)
	b.tellGaps(c, gaps)
	if s.behind && c.lag() {
		b.page(c)
	}
}

func (b *broker) unsubscribe(cmd *unsubscribe) {
	c := cmd.client
	if c.bucket < 0 {
		return
	}
	b.unsubscribeParked(c, cmd.topic)
	if cmd.topic == broadcastTopic {
		c.allAsked = false
	} else if s := b.find(c, cmd.topic); s != nil {
		b.unfollow(s, cmd.now)
	}
	if len(c.topics) == 0 && !c.allAsked && c.all.topic != nil {
		b.unfollow(&c.all, cmd.now)
	}
	b.tell(c, cmd.reply)
}

// find returns the client's subscription to a topic, nil if there is none.
func (b *broker) find(c *client, name string) *subscription {
	for s := range c.subscriptions() {
		if s.topic.name == name {
			return s
		}
	}
	return nil
}

// subscriptions yields the broadcast log's, if any, and those of the topics. The one
// that was yielded may be removed.
func (c *client) subscriptions() iter.Seq[*subscription] {
	return func(yield func(*subscription) bool) {
		if c.all.topic != nil && !yield(&c.all) {
			return
		}
		for i := len(c.topics) - 1; i >= 0; i-- {
			if !yield(c.topics[i]) {
				return
			}
		}
	}
}

// follow subscribes c to t, live; with its first topic a client follows the broadcast
// log too.
func (b *broker) follow(c *client, t *topic) *subscription {
	if c.all.topic == nil && t != b.all {
		b.follow(c, b.all)
	}
	s := &c.all
	if t != b.all {
		if s = &c.first; s.topic != nil {
			s = new(subscription)
		}
		c.topics = append(c.topics, s)
	}
	*s = subscription{client: c, topic: t, index: int32(len(t.subs))}
	t.subs = append(t.subs, s)
	t.followers[c.form]++
	if t != b.all {
		b.counters.followers[c.form].Add(1)
	}
	if t.ofUser && len(t.subs) == 1 {
		b.users++
	}
	b.noteFollower(t, c, 1, b.now)
	return s
}

// noteFollower takes note of who follows a topic. Who is online is who follows the broadcast log.
func (b *broker) noteFollower(t *topic, c *client, d int, now time.Time) {
	if b.presence != nil && !t.ofUser {
		b.presence.note(t.name, c.info.User, d, now)
	}
}

func (b *broker) unfollow(s *subscription, now time.Time) {
	b.setLive(s)
	c, t := s.client, s.topic
	last := t.subs[len(t.subs)-1]
	t.subs[s.index], last.index = last, s.index
	t.subs[len(t.subs)-1] = nil
	t.subs = t.subs[:len(t.subs)-1]
	t.followers[c.form]--
	if t.ofUser && len(t.subs) == 0 {
		b.users--
	}
	b.noteFollower(t, c, -1, now)
	if t != b.all {
		b.counters.followers[c.form].Add(-1)
		for i := range c.topics {
			if c.topics[i] == s {
				c.topics = append(c.topics[:i], c.topics[i+1:]...)
				break
			}
		}
	}
	*s = subscription{}
	if len(t.subs) > 0 || t == b.all {
		return
	}
	t.subs = nil
	if b.shared != nil {
		b.setIdle(t, now)
		return
	}
	if t.state == nil || t.state.log.len() == 0 {
		t.state = nil // for sweepHistory, if it has it
		b.forget(t)
		return
	}
	t.state.unfollowed = now
}

// topicFor returns the topic of that name, which it makes if need be.
func (b *broker) topicFor(name string) *topic {
	if t := b.topics[name]; t != nil {
		return t
	}
	return b.addTopic(name)
}

func (b *broker) addTopic(name string) *topic {
	t := b.newTopic(strings.Clone(name)) // it may be part of a whole request
	b.topics[t.name] = t
	if b.shared != nil {
		b.shared.follow(t.name)
	}
	return t
}

func (b *broker) newTopic(name string) *topic {
	t := &topic{
		name:    name,
		hash:    hashTopic(name),
		ofUser:  isUserTopic(name),
		policy:  b.cfg.slowPolicy.of(name),
		history: !b.cfg.history.of(name).off(),
		last:    b.floor,
	}
	switch {
	case b.shared != nil:
		t.last, t.history, t.shared = msgID{}, true, new(sharedTopic)
	case !t.history:
		t.last = b.last // what was published before, nobody knows
	}
	return t
}

func (b *broker) stateOf(t *topic) *topicState {
	if t.state == nil {
		limits := b.cfg.history.of(t.name)
		if b.shared != nil {
			limits = sharedLimits(limits)
		}
		t.state = &topicState{log: topicLog{limits: limits}}
		if t != b.all {
			b.logs = append(b.logs, t)
		}
	}
	return t.state
}

// forget removes a topic that nobody follows and that has no messages. A position in it
// is from then on no better than one before the floor.
func (b *broker) forget(t *topic) {
	delete(b.topics, t.name)
	if t.history && b.floor.before(t.last) {
		b.floor = t.last
	}
}

// sweepHistory expires the messages of a share of the topics, so that all have their
// turn in one heartbeat interval.
func (b *broker) sweepHistory(now time.Time) {
	if b.all.state != nil {
		b.all.state.log.expire(now)
	}
	for range min(len(b.logs), len(b.logs)/heartbeatBuckets+1) {
		if b.nextLog >= len(b.logs) {
			b.nextLog = 0
		}
		if t := b.logs[b.nextLog]; t.state != nil && !b.expire(t, now) {
			b.nextLog++
			continue
		}
		end := len(b.logs) - 1
		b.logs[b.nextLog], b.logs[end] = b.logs[end], nil
		b.logs = b.logs[:end]
	}
}

// expire drops old messages, and reports whether it has forgotten the whole topic.
func (b *broker) expire(t *topic, now time.Time) bool {
	log := &t.state.log
	log.expire(now)
	if b.shared != nil || len(t.subs) > 0 || log.len() > 1 {
		return false
	}
	idle := now.Sub(t.state.unfollowed)
	if log.len() == 1 {
		idle = min(idle, now.Sub(log.frames[log.head].at))
	}
	if idle <= max(b.cfg.lastMessageAge, log.limits.age) {
		return false
	}
	t.state = nil
	b.forget(t)
	return true
}

package pushlet

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Presence says who follows a topic, on all instances.
type Presence struct {
	// Clients is how many connections follow the topic.
	Clients int
	// Users has, for each user that WithIdentity named, how many of these are theirs.
	Users map[string]int
}

// presence knows who follows which topic. The broker tells it of each change; in
// distributed mode it passes them on to Redis, a topic at a time, and so learns who is new
// or gone on all instances. Publishing has nothing to do with it.
type presence struct {
	// Immutable after newPresence.
	grace time.Duration
	tell  func(topic, user string, joined bool)
	wake  chan struct{} // something has changed; holds one

	mu      sync.Mutex // guards what follows; never held while waiting for anything
	topics  map[string]map[string]*member
	changed map[string]map[string]struct{} // topic and users whose count has
}

// A member is a user that follows a topic on this instance, or has until just now.
type member struct {
	clients int
	known   int       // clients, as was told last
	left    time.Time // when the last of them left
}

// presenceDelay gathers changes, so that a crowd that comes is told of at once.
const presenceDelay = 50 * time.Millisecond

func newPresence(grace time.Duration, tell func(topic, user string, joined bool)) *presence {
	return &presence{
		grace:   grace,
		tell:    tell,
		wake:    make(chan struct{}, 1),
		topics:  make(map[string]map[string]*member),
		changed: make(map[string]map[string]struct{}),
	}
}

// note takes note of a client that follows a topic, or one less. The broker calls it.
func (p *presence) note(topic, user string, d int, now time.Time) {
	p.mu.Lock()
	users := p.topics[topic]
	if users == nil {
		users = make(map[string]*member)
		p.topics[topic] = users
	}
	m := users[user]
	if m == nil {
		m = new(member)
		users[user] = m
	}
	if m.clients += d; m.clients == 0 {
		m.left = now
	}
	p.mark(topic, user)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default: // run has yet to look
	}
}

// mark has run look at a member. The caller holds mu.
func (p *presence) mark(topic, user string) {
	users := p.changed[topic]
	if users == nil {
		users = make(map[string]struct{})
		p.changed[topic] = users
	}
	users[user] = struct{}{}
}

// run tells of the changes until quit is closed. report says what they mean for all
// instances; it may fail, then it is called again.
func (p *presence) run(quit <-chan struct{}, report func(topic string, counts map[string]int) ([]string, error)) {
	var wait backoff
	for {
		select {
		case <-p.wake:
		case <-quit:
			return
		}
		delay := presenceDelay
		for topic, counts := range p.take() {
			changes, err := report(topic, counts)
			if err != nil {
				p.putBack(topic, counts)
				delay = wait.next()
				continue
			}
			wait = backoff{}
			for _, change := range changes {
				if user := change[1:]; user != "" {
					p.tell(topic, user, change[0] == '+')
				}
			}
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-quit:
			timer.Stop()
			return
		}
		if p.pending() {
			p.nudge()
		}
	}
}

func (p *presence) nudge() {
	select {
	case p.wake <- struct{}{}:
	default: // run has yet to look
	}
}

// take returns the counts to be told of. Who has left only now is kept for the time of
// grace: most come back.
func (p *presence) take() map[string]map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	due := make(map[string]map[string]int)
	for topic, users := range p.changed {
		counts := make(map[string]int)
		for user := range users {
			m := p.topics[topic][user]
			if m == nil {
				delete(users, user)
				continue
			}
			if m.clients == 0 && m.known > 0 && now.Sub(m.left) < p.grace {
				continue
			}
			delete(users, user)
			if m.clients != m.known {
				m.known = m.clients
				counts[user] = m.clients
			}
			if m.clients == 0 {
				delete(p.topics[topic], user)
			}
		}
		if len(p.topics[topic]) == 0 {
			delete(p.topics, topic)
		}
		if len(users) == 0 {
			delete(p.changed, topic)
		}
		if len(counts) > 0 {
			due[topic] = counts
		}
	}
	return due
}

// putBack has what could not be told of told again.
func (p *presence) putBack(topic string, counts map[string]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.topics[topic] == nil {
		p.topics[topic] = make(map[string]*member)
	}
	for user, n := range counts {
		m := p.topics[topic][user]
		if m == nil {
			m = new(member)
			p.topics[topic][user] = m
		}
		m.known = -1 - n // neither
		p.mark(topic, user)
	}
}

// again has everything told again, for a Redis that knows nothing of it.
func (p *presence) again() {
	p.mu.Lock()
	for topic, users := range p.topics {
		for user, m := range users {
			if m.clients > 0 {
				m.known = 0
				p.mark(topic, user)
			}
		}
	}
	p.mu.Unlock()
	p.nudge()
}

func (p *presence) pending() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.changed) > 0
}

// local is who follows a topic on this instance.
func (p *presence) local(topic string) Presence {
	p.mu.Lock()
	defer p.mu.Unlock()
	here := Presence{Users: make(map[string]int)}
	for user, m := range p.topics[topic] {
		here.Clients += m.clients
		if user != "" && m.clients > 0 {
			here.Users[user] = m.clients
		}
	}
	return here
}

// reportHere is report for a Pushlet that is alone.
func (p *presence) reportHere(seen map[string]map[string]bool) func(string, map[string]int) ([]string, error) {
	return func(topic string, counts map[string]int) (changes []string, _ error) {
		for user, n := range counts {
			switch was := seen[topic][user]; {
			case n > 0 && !was:
				if seen[topic] == nil {
					seen[topic] = make(map[string]bool)
				}
				seen[topic][user] = true
				changes = append(changes, "+"+user)
			case n == 0 && was:
				if delete(seen[topic], user); len(seen[topic]) == 0 {
					delete(seen, topic)
				}
				changes = append(changes, "-"+user)
			}
		}
		return changes, nil
	}
}

// Presence returns who follows a topic, on all instances; the topic "*" is everybody who is
// online: who follows any topic, or has a user. It needs WithPresence. In
// distributed mode it asks Redis, and waits for the answer as long as ctx allows, at most a
// few seconds; what this or another instance has seen just now may be missing, and the
// clients of an instance that was killed are counted for up to 10 seconds.
//
// Errors wrap ErrInvalidTopic or ErrUnavailable, or are ErrNotStarted, ErrClosed or
// ErrNoPresence.
func (p *Pushlet) Presence(ctx context.Context, topic string) (Presence, error) {
	if topic != broadcastTopic {
		if err := checkTopic(topic); err != nil {
			return Presence{}, err
		}
	}
	p.gate.RLock()
	err := p.state.err()
	c := p.connector
	p.gate.RUnlock()
	switch {
	case err != nil:
		return Presence{}, err
	case p.presence == nil:
		return Presence{}, ErrNoPresence
	case c == nil:
		return p.presence.local(topic), nil
	}
	all, err := c.presence(ctx, topic)
	if err != nil {
		return Presence{}, fmt.Errorf("%w: presence of %q: %w", ErrUnavailable, topic, err)
	}
	return all, nil
}

// tellPresence calls the hooks.
func (p *Pushlet) tellPresence(topic, user string, joined bool) {
	hook, name := p.cfg.hooks.OnLeave, "OnLeave"
	if joined {
		hook, name = p.cfg.hooks.OnJoin, "OnJoin"
	}
	if hook != nil {
		p.guard(name, func() { hook(topic, user) })
	}
}

package pushlet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Users: what is published to them, which connections they have, and whether these may stay.
//
// Each user has a log of its own, a topic whose name nobody can ask for: the adapters put it
// to the topics of every connection that WithIdentity gives a user. So history, resuming,
// gaps and other instances are those of any topic.

// WithReauthorize has the application asked again, every so often for each connection and to
// the precision of a heartbeat, whether it may stay: WithIdentity has to name the same user,
// and WithAuthorize to allow all that it follows. If not the connection is ended, with
// ReasonUnauthorized. They are asked with the request that opened the connection, whose context
// is never done. It keeps that request in memory. By default nobody is asked again.
func WithReauthorize(every time.Duration) Option {
	return positive("WithReauthorize", every, func(c *config) { c.reauthorize = every })
}

// PublishToUsers sends an event to every connection of each of the users, on all instances;
// see WithIdentity. Each user gets it once, however often the ID is given. A user who is
// not connected gets it when they come back with a position, as with any topic; for one who
// was never connected nobody waits, which is no error. Nobody else ever sees it.
//
// It is like Publish for each user in turn; in distributed mode many are published at once.
// If an ID is invalid nothing is published, and the error wraps ErrInvalidUser. Otherwise the
// errors of all that failed are joined, each with its user; the others have been published.
func (p *Pushlet) PublishToUsers(users []string, event, data string) error {
	return p.PublishToUsersContext(context.Background(), users, event, data)
}

// PublishToUsersContext is to PublishToUsers what PublishContext is to Publish.
func (p *Pushlet) PublishToUsersContext(ctx context.Context, users []string, event, data string) error {
	if len(users) == 0 {
		return p.check(event, data)
	}
	results, err := p.Push(ctx, Push{Users: users, Events: []Event{{event, data}}})
	if err != nil {
		return err
	}
	return results[0].Err
}

// Connections returns the connections of a user, on all instances. In distributed mode it
// asks them through Redis and waits for their answers, at most two seconds or until ctx is
// done. With an error that wraps ErrUncertain not all have answered, and those connections
// are missing; other errors wrap ErrInvalidUser or ErrUnavailable, or are ErrNotStarted or
// ErrClosed.
func (p *Pushlet) Connections(ctx context.Context, user string) ([]Client, error) {
	if err := checkUser(user); err != nil {
		return nil, err
	}
	return p.everywhere(ctx, call{User: user})
}

// Disconnect ends the connections that a user has now, on all instances, and returns how many
// these were. What is queued for them is sent first, then the reason: to a WebSocket client
// with close code 1008, to an SSE client as event pushlet.disconnected, whose data is
// {"reason":"…"}. It is passed to OnDisconnect too. Reasons are UTF-8 of at most 123 bytes;
// an empty one is ReasonDisconnected. Nothing keeps the user from coming back but WithIdentity
// and WithAuthorize; a browser's EventSource does by itself.
//
// Errors are those of Connections. With ErrUncertain not all instances have answered; the
// number is that of those that have.
func (p *Pushlet) Disconnect(ctx context.Context, user string, why Reason) (int, error) {
	if err := checkUser(user); err != nil {
		return 0, err
	}
	return p.disconnect(ctx, call{User: user}, why)
}

// DisconnectClient is Disconnect for one connection, by the ID of its Client. It reports
// whether there was one. Without distributed mode, and on each instance, all connections are
// looked through, a part at a time.
func (p *Pushlet) DisconnectClient(ctx context.Context, id string, why Reason) (bool, error) {
	if err := checkName(id, errInvalidClient); err != nil {
		return false, err
	}
	n, err := p.disconnect(ctx, call{Client: id}, why)
	return n > 0, err
}

func (p *Pushlet) disconnect(ctx context.Context, c call, why Reason) (int, error) {
	if c.Why = why; why == "" {
		c.Why = ReasonDisconnected
	}
	if len(why) > maxReason || why != "" && checkName(string(why), errInvalidReason) != nil {
		return 0, fmt.Errorf("%w: %q", errInvalidReason, why)
	}
	clients, err := p.everywhere(ctx, c)
	return len(clients), err
}

const maxReason = 123 // bytes: what a close frame has room for (RFC 6455, section 5.5)

var (
	errInvalidClient = errors.New("pushlet: invalid client")
	errInvalidReason = errors.New("pushlet: invalid reason")
)

// A call is what all instances are asked to do.
type call struct {
	User   string `json:"user,omitempty"`   // with the connections of a user,
	Client string `json:"client,omitempty"` // or with one connection:
	Why    Reason `json:"why,omitempty"`    // end them; or, without a reason, only list them
	Reply  string `json:"reply,omitempty"`  // where to answer
}

// everywhere does what is asked on all instances, and returns the connections concerned.
func (p *Pushlet) everywhere(ctx context.Context, what call) ([]Client, error) {
	p.gate.RLock()
	err := p.state.err()
	c := p.connector
	if err == nil {
		p.publishing.Add(1) // so that the parts do not end meanwhile
	}
	p.gate.RUnlock()
	if err != nil {
		return nil, err
	}
	defer p.publishing.Done()
	if c == nil {
		return p.broker.answer(what), nil
	}
	return c.callAll(ctx, what)
}

// answer does what is asked here.
func (b *broker) answer(what call) []Client {
	var found []Client
	done := make(chan struct{}, 1)
	each := func(c *client) {
		if what.Client != "" && c.info.ID != what.Client || what.User != "" && c.info.User != what.User {
			return
		}
		found = append(found, c.info)
		if what.Why != "" {
			b.end(c, what.Why)
		}
	}
	for bucket := range heartbeatBuckets {
		b.send(&visit{user: what.User, bucket: bucket, each: each, done: done})
		select {
		case <-done:
		case <-b.done:
			return nil
		}
		if what.User != "" || what.Client != "" && len(found) > 0 {
			break
		}
	}
	return found
}

// visit calls a function for clients: those of a user, or those of one heartbeat bucket, so
// that the broker is not kept for long.
func (b *broker) visit(cmd *visit) {
	defer func() { cmd.done <- struct{}{} }() // has room for it
	if cmd.user == "" {
		for _, c := range slices.Clone(b.buckets[cmd.bucket]) {
			cmd.each(c)
		}
		return
	}
	if t := b.topics[topicOfUser(cmd.user)]; t != nil {
		for _, s := range slices.Clone(t.subs) {
			cmd.each(s.client)
		}
	}
	waiting := make([]*client, 0, len(b.waiting))
	for c := range b.waiting { // for Redis, and follow nothing yet
		waiting = append(waiting, c)
	}
	for _, c := range waiting {
		if b.find(c, topicOfUser(cmd.user)) == nil {
			cmd.each(c)
		}
	}
}

// reach counts the clients that follow each of the topics here.
func (b *broker) reach(topics []string) []int {
	n := make([]int, len(topics))
	for i, name := range topics {
		t := b.topics[name]
		if name == broadcastTopic {
			t = b.all
		}
		if t != nil {
			n[i] = len(t.subs)
		}
	}
	return n
}

// A checkup is a client that is to be authorized again.
type checkup struct {
	client *client
	topics []string
}

const (
	checkups       = 1024 // that wait
	checkupWorkers = 4
)

// checkAgain has a client authorized again, unless too many wait: then at its next heartbeat.
func (b *broker) checkAgain(c *client, times int32) {
	topics := make([]string, 0, len(c.topics)+1)
	for s := range c.subscriptions() {
		if s.topic != b.all || c.allAsked {
			topics = append(topics, s.topic.name)
		}
	}
	select {
	case b.checks <- checkup{c, topics}:
		c.checks = times
	default: // at the next heartbeat
	}
}

// authorizeAgain asks the application whether clients may stay, until the end.
func (p *Pushlet) authorizeAgain() {
	for {
		select {
		case check := <-p.checks:
			c := check.client
			if err := c.again(check.topics); err != nil && p.tell(&expel{c, ReasonUnauthorized}) == nil {
				p.log.WithField("client", c.info.ID).WithField("user", c.info.User).
					WithField("error", err).Println("connection ended: unauthorized")
			}
		case <-p.quiet:
			return
		}
	}
}

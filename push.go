package pushlet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A Push is one or more events for several at once.
type Push struct {
	// To whom: users, the followers of topics, or all that PublishToAll reaches. At least one
	// of the three; who is meant several times, as a user and as a follower, gets it for each.
	Users    []string
	Topics   []string
	Everyone bool

	// Events are published in this order to each of them.
	Events []Event

	// Key, if it is not empty, stands for this push, at most 255 bytes: what was published
	// with the same key in the last 24 hours is not published again, by whatever instance,
	// if it is the same in number and place. So a push that failed can be tried again.
	// Without Redis keys are known to this process only, and only the newest 100,000; what a
	// store of WithHistoryStore has perhaps stored (ErrUncertain) is published again.
	Key string
}

// An Event is a name, empty for "message", and data.
type Event struct {
	Name string
	Data string
}

// A PushResult says what became of an event of a Push.
type PushResult struct {
	// Published is how many messages it has become: one for each user and topic, and one for
	// everyone.
	Published int
	// Duplicates is how many of those had been published before, with the same key.
	Duplicates int
	// Clients is how many connections of this instance follow what it was published to, each
	// counted for each. What is on other instances is not known.
	Clients int
	// Err is what went wrong, nil if nothing did: the joined errors of the messages that were
	// not published or, if they wrap ErrUncertain, perhaps not. They are those of Publish.
	Err error
}

// Push publishes events to users, topics or everyone. If anything about the push is invalid
// nothing is published, and the error says what; it wraps ErrInvalidUser, ErrInvalidTopic,
// ErrInvalidEvent, ErrReserved, ErrTooLarge or ErrInvalidPush, or is ErrNotStarted or ErrClosed.
// Otherwise there is a result for each event. In distributed mode it waits for Redis as
// Publish does, and publishes to up to 256 users and topics at once.
func (p *Pushlet) Push(ctx context.Context, push Push) ([]PushResult, error) {
	topics, err := p.checkPush(&push)
	if err != nil {
		return nil, err
	}
	p.gate.RLock()
	err = p.state.err()
	p.gate.RUnlock()
	if err != nil {
		return nil, err
	}
	results := make([]PushResult, len(push.Events))
	for i, e := range push.Events {
		p.publishToEach(ctx, topics, e, pushKey(push.Key, i), &results[i])
		for _, n := range p.reach(topics) {
			results[i].Clients += n
		}
	}
	return results, nil
}

// checkPush returns the topics that a push goes to, each once, or what is wrong with it.
func (p *Pushlet) checkPush(push *Push) ([]string, error) {
	if len(push.Key) > maxKey {
		return nil, fmt.Errorf("%w: key: %d bytes, at most %d", ErrInvalidPush, len(push.Key), maxKey)
	}
	topics := make([]string, 0, len(push.Users)+len(push.Topics)+1)
	for i, user := range push.Users {
		if err := checkUser(user); err != nil {
			return nil, fmt.Errorf("users[%d]: %w", i, err)
		}
		topics = append(topics, topicOfUser(user))
	}
	for i, topic := range push.Topics {
		if err := checkTopic(topic); err != nil {
			return nil, fmt.Errorf("topics[%d]: %w", i, err)
		}
		topics = append(topics, topic)
	}
	if push.Everyone {
		topics = append(topics, broadcastTopic)
	}
	if len(topics) == 0 {
		return nil, fmt.Errorf("%w: to nobody", ErrInvalidPush)
	}
	if len(push.Events) == 0 {
		return nil, fmt.Errorf("%w: no events", ErrInvalidPush)
	}
	for i, e := range push.Events {
		if err := p.check(e.Name, e.Data); err != nil {
			return nil, fmt.Errorf("events[%d]: %w", i, err)
		}
	}
	slices.Sort(topics)
	return slices.Compact(topics), nil
}

const (
	maxKey = 255 // bytes

	// pushWidth is how many messages of one push are on their way to Redis at once.
	pushWidth = maxBatch
)

// pushKey is the key of an event of a push, but for its topic.
func pushKey(key string, event int) string {
	if key == "" {
		return ""
	}
	return fmt.Sprintf("%d %s ", event, key)
}

// publishToEach publishes an event to topics, and notes what became of it.
func (p *Pushlet) publishToEach(ctx context.Context, topics []string, e Event, key string, result *PushResult) {
	errs := make([]error, len(topics))
	publish := func(i int) {
		k := key
		if k != "" {
			k += topics[i]
		}
		errs[i] = p.publishOnce(ctx, topics[i], e.Name, e.Data, k)
	}
	if workers := min(len(topics), pushWidth); workers == 1 || !p.waits() {
		for i := range topics {
			publish(i)
		}
	} else {
		var work sync.WaitGroup
		for w := range workers {
			work.Go(func() {
				for i := w; i < len(topics); i += workers {
					publish(i)
				}
			})
		}
		work.Wait()
	}
	for i, err := range errs {
		switch {
		case err == nil:
			result.Published++
		case errors.Is(err, errDuplicate):
			result.Duplicates++
		case topics[i] == broadcastTopic:
			result.Err = errors.Join(result.Err, err)
		case isUserTopic(topics[i]):
			result.Err = errors.Join(result.Err, fmt.Errorf("user %q: %w", topics[i][len(userPrefix):], err))
		default:
			result.Err = errors.Join(result.Err, fmt.Errorf("topic %q: %w", topics[i], err))
		}
	}
}

// errDuplicate is for what was published with the same key before.
var errDuplicate = errors.New("pushlet: published before")

// publishOnce publishes a message that has been checked, unless that was done with this key.
// With Redis it is the script that knows.
func (p *Pushlet) publishOnce(ctx context.Context, topic, event, data, key string) (err error) {
	if key != "" && !p.isDistributed() {
		var use *keyUse
		if use, err = p.keys.begin(ctx, key); err != nil {
			return err
		}
		defer func() { p.keys.end(use, err == nil) }()
	}
	err = p.hand(ctx, topic, event, data, key)
	if err == nil {
		p.counters.published.Add(1)
	}
	return err
}

// isDistributed reports whether messages go through Redis.
func (p *Pushlet) isDistributed() bool {
	p.gate.RLock()
	defer p.gate.RUnlock()
	return p.connector != nil
}

// waits reports whether publishing waits, for Redis or a store.
func (p *Pushlet) waits() bool {
	p.gate.RLock()
	defer p.gate.RUnlock()
	return p.shared != nil
}

// reach counts the clients of this instance that follow each of the topics.
func (p *Pushlet) reach(topics []string) []int {
	answer := make(chan []int, 1)
	if p.tell(&reach{topics, answer}) != nil {
		return nil
	}
	select {
	case n := <-answer:
		return n
	case <-p.broker.done:
		return nil
	}
}

// A keyring knows the keys of what was published lately, for a Pushlet that is alone.
type keyring struct {
	mu   sync.Mutex // guards what follows; never held while waiting
	uses map[string]*keyUse
	aged []*keyUse // oldest first
}

type keyUse struct {
	key       string
	at        time.Time
	done      chan struct{} // closed by end
	published bool          // set before that
}

const (
	keyTime = 24 * time.Hour
	maxKeys = 100_000
)

// begin reserves a key until end; with errDuplicate something was published with it. While
// another uses the key it waits for that.
func (r *keyring) begin(ctx context.Context, key string) (*keyUse, error) {
	for {
		use, mine := r.use(key, time.Now())
		if mine {
			return use, nil
		}
		select {
		case <-use.done:
			if use.published {
				return nil, errDuplicate
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
		}
	}
}

func (r *keyring) use(key string, now time.Time) (use *keyUse, mine bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.aged) > 0 && (len(r.aged) >= maxKeys || now.Sub(r.aged[0].at) > keyTime) {
		old := r.aged[0]
		r.aged[0], r.aged = nil, r.aged[1:]
		if r.uses[old.key] == old {
			delete(r.uses, old.key)
		}
	}
	if use = r.uses[key]; use != nil {
		return use, false
	}
	if r.uses == nil {
		r.uses = make(map[string]*keyUse)
	}
	use = &keyUse{key: key, at: now, done: make(chan struct{})}
	r.uses[key] = use
	r.aged = append(r.aged, use)
	return use, true
}

func (r *keyring) end(use *keyUse, published bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	use.published = published
	close(use.done)
	if !published && r.uses[use.key] == use {
		delete(r.uses, use.key)
	}
}

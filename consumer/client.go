package consumer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Subscribe connects to url and yields what comes, for ever, over as many connections as it
// takes; see [Client.Messages]. The scheme http or https is an event stream, ws or wss a
// WebSocket. Each range over it is a new subscription.
func Subscribe(ctx context.Context, url string, options ...Option) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		NewClient(url, options...).Messages(ctx)(yield)
	}
}

// A Client is one subscription: what it follows, and where it is. It is used either as a
// loop, with [Client.Messages], or by callbacks, with [Client.Start] or [Client.Connect]. It can
// be run again after it has ended, and then goes on where it was. Its methods are safe for
// concurrent use.
type Client struct {
	// Immutable after NewClient.
	cfg      config
	err      error // the URL, or an option, is wrong
	url      *url.URL
	protocol protocol

	// Guarded by mu, which is never held while waiting or while a function of the application runs.
	mu       sync.Mutex
	hooks    hooks
	handlers map[string][]func(*Message)
	run      *run
	lastErr  error // how the last run ended

	// Owned by the goroutine of the run.
	attempt int           // how many have failed since something was received
	retry   time.Duration // what the server asks for; zero: nothing
	first   chan<- error  // for Connect, until the first connection is there
	opened  time.Time     // when the connection was there; zero: it was not
}

// A protocol is what differs between SSE and WebSocket. Its methods belong to the goroutine of
// the run.
type protocol interface {
	// visit opens a connection and hands over what it brings until it ends. It reports whether
	// it has brought anything, and why it has ended.
	visit(ctx context.Context, hand func(Message) bool) (fruitful bool, err error)
}

// A run is one use of a Client.
type run struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed at its end
}

type hooks struct {
	connection []func()
	subscribed []func(topic string)
	failed     []func(error)
}

// NewClient makes a Client. It does nothing yet: what is wrong with the URL or an option is said
// by whatever starts it.
func NewClient(url string, options ...Option) *Client {
	c := &Client{cfg: defaultConfig(), handlers: map[string][]func(*Message){}}
	for _, o := range options {
		o(&c.cfg)
	}
	c.hooks = c.cfg.hooks
	c.err = errors.Join(c.cfg.err, c.parse(url))
	return c
}

func (c *Client) parse(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return withoutURL(err)
	}
	if u.Host == "" {
		return errors.New("consumer: the URL has no host")
	}
	c.url = u
	switch u.Scheme {
	case "http", "https":
		c.protocol, err = newSSE(c)
	case "ws", "wss":
		c.protocol, err = newWebSocket(c)
	default:
		err = fmt.Errorf("consumer: scheme %q: want http or https for SSE, ws or wss for WebSocket", u.Scheme)
	}
	return err
}

// Messages connects and yields messages in the order in which the server sends them, each
// once, and gaps as messages with [Message.Gap]. The body runs in the caller's goroutine, as do
// the hooks; while it runs nothing is lost, the server waits or remembers.
//
// When a connection fails the loop goes on: [Client.OnError] is told, and the next connection
// resumes after the last message that was yielded. The loop ends in one of two ways. The body
// leaves it; then the connection is closed, and no goroutine is left, before the statement
// after the loop. Or a final error is yielded, without a message, as the last element: the cause
// of the context when that is done, [ErrStopped], [ErrNoContent], [ErrTooLarge], [ErrNotPushlet], or a
// [ResponseError] such as 403. So an error in the loop is a reason to leave it, and a loop
// without a break never ends without telling why.
//
// To range over it again goes on where it ended. Only one loop, or Start, can run at a time:
// for others the error is [ErrRunning].
func (c *Client) Messages(ctx context.Context) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		err := c.follow(ctx, func(m Message) bool { return yield(m, nil) })
		if !errors.Is(err, errBroken) {
			yield(Message{}, err)
		}
	}
}

// follow is a run.
func (c *Client) follow(ctx context.Context, hand func(Message) bool) (err error) {
	ctx, r, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer func() { c.end(r, err) }()
	return c.loop(ctx, hand)
}

// loop connects again and again, until a final error.
func (c *Client) loop(ctx context.Context, hand func(Message) bool) error {
	for {
		err := c.visit(ctx, hand)
		switch {
		case errors.Is(err, errBroken):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case isFinal(err), c.first != nil:
			return err
		}
		c.attempt++
		wait := c.wait(err)
		c.fail(&RetryError{Err: err, Attempt: c.attempt, Wait: wait})
		sleep(ctx, wait)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// begin makes the caller the one who runs.
func (c *Client) begin(ctx context.Context) (context.Context, *run, error) {
	if c.err != nil {
		return nil, nil, c.err
	}
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run != nil {
		return nil, nil, ErrRunning
	}
	ctx, cancel := context.WithCancelCause(ctx)
	c.run = &run{cancel: cancel, done: make(chan struct{})}
	c.lastErr = nil
	return ctx, c.run, nil
}

func (c *Client) end(r *run, err error) {
	r.cancel(nil)
	c.attempt = 0
	c.mu.Lock()
	c.run = nil
	if !errors.Is(err, errBroken) {
		c.lastErr = err
	}
	c.mu.Unlock()
	close(r.done)
}

// visit makes one attempt.
func (c *Client) visit(ctx context.Context, hand func(Message) bool) error {
	c.opened = time.Time{}
	fruitful, err := c.protocol.visit(ctx, hand)
	if fruitful || !c.opened.IsZero() && time.Since(c.opened) > c.cfg.longest {
		c.attempt = 0
	}
	return err
}

// wait is how long to wait before the next attempt: a random time between the half and the
// whole of a limit that doubles.
func (c *Client) wait(err error) time.Duration {
	first, limit := c.cfg.first, c.cfg.longest
	if c.retry > 0 {
		first, limit = c.retry, max(limit, 2*c.retry)
	}
	most := limit
	if shift := c.attempt; shift < 32 && first < limit>>shift {
		most = first << shift
	}
	least := max(first, most/2)
	wait := least + rand.N(most-least+1) //nolint:gosec // nobody gains by guessing it
	var answer *ResponseError
	if errors.As(err, &answer) && answer.RetryAfter > 0 {
		wait = answer.RetryAfter + rand.N(wait) //nolint:gosec // the same
	}
	return wait
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// connected tells the application that a server has accepted a connection.
func (c *Client) connected() {
	c.opened = time.Now()
	for _, fn := range read(c, &c.hooks.connection) {
		fn()
	}
	if c.first != nil {
		c.first <- nil // it has room
		c.first = nil
	}
}

// subscribed tells the application that a topic is followed.
func (c *Client) subscribed(topic string) {
	for _, fn := range read(c, &c.hooks.subscribed) {
		fn(topic)
	}
}

// fail tells the application of an error that ends nothing.
func (c *Client) fail(err error) {
	list := read(c, &c.hooks.failed)
	if len(list) == 0 {
		slog.Warn(err.Error())
	}
	for _, fn := range list {
		fn(err)
	}
}

// read returns a list that mu guards, and that only grows.
func read[T any](c *Client, list *[]T) []T {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clip(*list)
}

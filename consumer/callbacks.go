package consumer

import (
	"context"
	"errors"
)

// OnEvent calls fn for every message with that event name; "" is [DefaultEventType], "*" is all
// that have no function of their own, and [GapEvent] is a gap. Several functions for one name
// are called in turn. It is for [Client.Start] and [Client.Connect]: they call everything in one
// goroutine, one after the other, and a message counts as received when its function is called.
func (c *Client) OnEvent(name string, fn func(*Message)) {
	if name == "" {
		name = DefaultEventType
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers[name] = append(c.handlers[name], fn)
}

// OnConnection calls fn when a server has accepted a connection, the first one and each after it.
func (c *Client) OnConnection(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hooks.connection = append(c.hooks.connection, fn)
}

// OnSubscribed calls fn when a Pushlet server has confirmed a topic, on each connection: what is
// published to it from then on will come. Over SSE that is right after the connection.
func (c *Client) OnSubscribed(fn func(topic string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hooks.subscribed = append(c.hooks.subscribed, fn)
}

// OnError calls fn with every error that ends nothing: a [RetryError] when there is no
// connection, a [TopicError]. With [Client.Start] and [Client.Connect] also with the final one,
// unless that is [ErrStopped], and with a [Gap] for which OnEvent has no function. Without any fn
// they are logged with log/slog.
func (c *Client) OnError(fn func(err error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hooks.failed = append(c.hooks.failed, fn)
}

// Start connects, and keeps connected, in a goroutine of its own, and returns at once. The
// error is [ErrRunning], or says what is wrong with the URL or an option. It runs until
// [Client.Stop] or a final error.
func (c *Client) Start() error { return c.start(nil) }

// Connect is Start that waits until the first connection is there. If that fails it stops, and
// returns why.
func (c *Client) Connect() error {
	first := make(chan error, 1)
	if err := c.start(first); err != nil {
		return err
	}
	return <-first
}

// Disconnect is [Client.Stop].
func (c *Client) Disconnect() { c.Stop() }

// Stop ends what runs, if anything does: the callbacks of Start, or the loop of [Client.Messages].
// It does not wait, so that a callback may call it: see [Client.Wait].
func (c *Client) Stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run != nil {
		c.run.cancel(ErrStopped)
	}
}

// Wait returns a channel that is closed when what runs has ended: no callback will be called
// any more, and no goroutine is left. If nothing runs it is closed already.
func (c *Client) Wait() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run != nil {
		return c.run.done
	}
	closed := make(chan struct{})
	close(closed)
	return closed
}

// Err returns the final error of what has run last, nil while it runs.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastErr
}

// start runs with callbacks. It sends how the first attempt went, if first is not nil.
func (c *Client) start(first chan<- error) error {
	ctx, r, err := c.begin(context.Background())
	if err != nil {
		return err
	}
	go func() { // ends with the run
		c.first = first
		err := c.loop(ctx, c.dispatch)
		failed := c.first
		c.first = nil
		if failed == nil && !errors.Is(err, ErrStopped) {
			c.fail(err)
		}
		c.end(r, err)
		if failed != nil {
			failed <- err
		}
	}()
	return nil
}

// dispatch calls the functions for a message.
func (c *Client) dispatch(m Message) bool {
	c.mu.Lock()
	list := c.handlers[m.Event]
	if len(list) == 0 {
		list = c.handlers["*"]
	}
	c.mu.Unlock() // what is in the list does not change
	if len(list) == 0 && m.Gap != nil {
		c.fail(m.Gap)
	}
	for _, fn := range list {
		fn(&m)
	}
	return true
}

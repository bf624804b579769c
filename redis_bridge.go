package pushlet

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Bridges: what programs in any language publish on a channel of Redis becomes messages. All
// instances listen, and the holder of the lease publishes. What it had been sent before it took
// the lease it leaves out, since the one before may have published that already: as soon as it
// has the lease it sends a ping over the subscription, and what comes after the answer is new.

// WithBridge publishes what is sent on a channel of Redis with the command PUBLISH. convert
// makes a Push of it; with an error, or a panic, it is left out, counted and logged. It is
// called by one goroutine, one message after the other, which wait meanwhile.
//
// Of all instances one publishes it, so it arrives once. It arrives at most once, as on any
// channel: what is sent while no instance is ready (see Ready), or within about a second after the
// one that publishes was stopped and five after it died, is lost without a sign, as is what cannot
// be published within the time of WithPublishTimeout. Where that matters use WithIngest. It needs distributed mode, and
// may be given several times. All instances must have it.
func WithBridge(channel string, convert func(payload string) (Push, error)) Option {
	return func(c *config) {
		if channel == "" || convert == nil {
			c.reject("WithBridge: it needs a channel and a function")
			return
		}
		c.bridges = append(c.bridges, bridge{channel, convert})
	}
}

type bridge struct {
	channel string
	convert func(payload string) (Push, error)
}

// deafTo returns a channel of a bridge that is not listened to, if there is one.
func (c *connector) deafTo() (channel string, ok bool) {
	if c == nil { // a store has none
		return "", false
	}
	for _, b := range c.bridgers {
		if !b.hears.Load() {
			return b.channel, true
		}
	}
	return "", false
}

// A bridger listens to a channel.
type bridger struct {
	p     *Pushlet
	c     *connector
	lease *lease
	bridge

	hears atomic.Bool // what is sent from now on comes here or to the holder of the lease

	// Owned by run.
	term uint64 // of the lease: what comes now was sent after it had become ours; 0: perhaps not
}

const bridgeRetry = 250 * time.Millisecond // between attempts to get the lease when a message comes

func (b *bridger) run() {
	var wait backoff
	for {
		if b.listen() {
			wait = backoff{}
		}
		if !b.c.pause(wait.next()) {
			return
		}
	}
}

// listen subscribes and takes what comes until the subscription fails. It reports whether
// anything came.
func (b *bridger) listen() (good bool) {
	ctx, cancel := context.WithCancel(b.c.ctx)
	sub := b.c.client.Subscribe(ctx, b.channel)
	stop := context.AfterFunc(ctx, func() { _ = sub.Close() }) // it does not look at the context
	b.term = 0
	var proof sync.WaitGroup
	proof.Go(func() { b.prove(ctx, sub) })
	defer func() {
		b.hears.Store(false)
		stop()
		cancel()
		_ = sub.Close()
		proof.Wait()
	}()
	for ctx.Err() == nil {
		got, err := sub.ReceiveTimeout(ctx, redisPing)
		switch {
		case isTimeout(err) && sub.Ping(ctx) == nil:
			// The next timeout would be a silence of two pings.
			if got, err = sub.ReceiveTimeout(ctx, redisSilence); err != nil {
				b.c.parts[0].failed(err)
				return good
			}
		case err != nil:
			if ctx.Err() == nil {
				b.c.parts[0].failed(err)
			}
			return good
		}
		good = true
		switch got := got.(type) {
		case *redis.Message:
			b.take(got.Payload)
		case *redis.Pong:
			if term, err := strconv.ParseUint(got.Payload, 10, 64); err == nil {
				b.term = term
				b.hears.Store(true)
			}
		}
	}
	return good
}

// prove sends a ping over the subscription whenever the lease has become ours, or another's. Its
// answer tells listen that what comes after it was sent after that.
func (b *bridger) prove(ctx context.Context, sub *redis.PubSub) {
	for {
		term, known, changed := b.lease.watch()
		if known && sub.Ping(ctx, strconv.FormatUint(term, 10)) != nil {
			_ = sub.Close() // listen begins anew
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// leads reports whether this instance is to publish a message that has just come.
func (b *bridger) leads() bool {
	term := b.lease.held()
	if term == 0 && !b.lease.lately(bridgeRetry) {
		b.lease.try() // for those that come later: this one another may have published
	}
	return term > 0 && term == b.term
}

// take publishes what came.
func (b *bridger) take(payload string) {
	if !b.leads() {
		return
	}
	var push Push
	err := errConvertPanic
	b.p.guard("WithBridge", func() { push, err = b.convert(payload) })
	var results []PushResult
	if err == nil {
		results, err = b.p.Push(b.c.ctx, push)
	}
	for _, r := range results {
		err = errors.Join(err, r.Err)
	}
	if err != nil {
		if errors.Is(err, ErrClosed) {
			return
		}
		b.c.counters.rejected.Add(1)
		logAt(b.c.log.WithField("channel", b.channel).WithField("error", err), slog.LevelWarn, "redis: a message of a bridge was left out")
		return
	}
	b.c.counters.bridged.Add(1)
}

var errConvertPanic = errors.New("pushlet: the function panicked")

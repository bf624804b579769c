package pushlet

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"
)

// Bridges: what programs in any language publish on a channel of Redis becomes messages. All
// instances listen, and the holder of the lease publishes. When another takes the lease it
// leaves out what it had been sent before, since that may have been published already.

// WithBridge publishes what is sent on a channel of Redis with the command PUBLISH. convert
// makes a Push of it; with an error, or a panic, it is left out, counted and logged. It is
// called by one goroutine, one message after the other, which wait meanwhile.
//
// Of all instances one publishes it, so it arrives once. It arrives at most once, as on any
// channel: what is sent while no instance listens, or within about five seconds after the one
// that publishes has died, is lost without a sign, as is what cannot be published within the
// time of WithPublishTimeout. Where that matters use WithIngest. It needs distributed mode, and
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

// A bridger listens to a channel.
type bridger struct {
	p     *Pushlet
	c     *connector
	lease *lease
	bridge

	sub   *redis.PubSub
	since string // while we wait for the answer to a ping with that text, nothing is published
	led   bool   // as of the last message
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
	ctx := b.c.ctx
	b.sub = b.c.client.Subscribe(ctx, b.channel)
	sub := b.sub
	stop := context.AfterFunc(ctx, func() { _ = sub.Close() }) // it does not look at the context
	defer func() { stop(); _ = sub.Close() }()
	b.led = false
	for ctx.Err() == nil {
		got, err := b.sub.ReceiveTimeout(ctx, redisPing)
		switch {
		case isTimeout(err) && b.sub.Ping(ctx) == nil:
			// The next timeout would be a silence of two pings.
			if got, err = b.sub.ReceiveTimeout(ctx, redisSilence); err != nil {
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
			if got.Payload == b.since {
				b.since = ""
			}
		}
	}
	return good
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// leads reports whether this instance is to publish a message that has just come.
func (b *bridger) leads() bool {
	holds := b.lease.holds() || !b.lease.lately(bridgeRetry) && b.lease.try()
	if holds && !b.led {
		// What was sent before we had the lease, this message too, the other may have published.
		b.since = newClientID()
		if b.sub.Ping(b.c.ctx, b.since) != nil {
			return false
		}
	}
	b.led = holds
	return holds && b.since == ""
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

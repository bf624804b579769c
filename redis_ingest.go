package pushlet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Ingest: programs in any language publish by appending to a stream in Redis. One instance at
// a time, the holder of the lease, takes what is in it and publishes it, with a key made of the
// entry's ID. So an entry that was published, but not taken off the stream, since the instance
// died in between, is found again by the next one and not published twice.

// WithIngest publishes what programs in any language append to a stream in Redis:
//
//	XADD events * topic news event message data hello
//
// The fields are topic or user, or both, event, which may be missing, and data; the topic "*"
// is everyone. Each entry is published exactly once, whatever instances die, and then removed
// from the stream; entries of one stream that go to the same topic keep their order. One that
// cannot be published, such as one with other fields, is moved to a stream of the same name
// with ":rejected" after it, with the reason; of these the newest 10,000 or so are kept. While no
// instance runs, entries wait. The stream needs distributed mode, and may be given several
// times. All instances must have it. An entry may be published once more if the instance that
// took it stood still for two minutes between reading and publishing it, or if Redis lost data.
func WithIngest(stream string) Option {
	return func(c *config) {
		if stream == "" {
			c.reject("WithIngest: no name of a stream")
			return
		}
		c.ingest = append(c.ingest, stream)
	}
}

const (
	ingestGroup    = "pushlet" // the consumer group, and its only consumer: whoever holds the lease
	ingestBatch    = 128
	ingestBlock    = 500 * time.Millisecond
	ingestRejects  = 10_000
	ingestKeyAfter = 2 * time.Minute // for which the key of an entry that was removed is kept
)

// An ingester publishes what is in a stream.
type ingester struct {
	c      *connector
	lease  *lease
	stream string
	max    int // bytes of data
}

func (in *ingester) run() {
	var wait backoff
	for in.c.pause(0) {
		if !in.lease.holds() {
			in.c.pause(leaseRenew / 2)
			continue
		}
		if err := in.session(); err != nil && !errors.Is(err, errNoLease) && in.c.ctx.Err() == nil {
			in.c.parts[0].failed(err)
			logAt(in.c.log.WithField("stream", in.stream).WithField("error", err), slog.LevelWarn, "redis: ingest was interrupted")
			in.c.pause(wait.next())
			continue
		}
		wait = backoff{}
	}
}

// session publishes entries while this instance holds the lease: first those that were taken
// before and not done with.
func (in *ingester) session() error {
	ctx := in.c.ctx
	err := in.c.client.XGroupCreateMkStream(ctx, in.stream, ingestGroup, "0").Err()
	if err != nil && !redis.HasErrorPrefix(err, "BUSYGROUP") {
		return err
	}
	for from := "0"; in.lease.holds() && ctx.Err() == nil; {
		streams, err := in.c.client.XReadGroup(ctx, &redis.XReadGroupArgs{
			Group: ingestGroup, Consumer: ingestGroup, Streams: []string{in.stream, from},
			Count: ingestBatch, Block: ingestBlock,
		}).Result()
		switch {
		case errors.Is(err, redis.Nil):
			continue // nothing came
		case err != nil:
			return err
		case len(streams) == 0 || len(streams[0].Messages) == 0:
			from = ">" // all that was left is done
			continue
		}
		if err := in.publish(streams[0].Messages); err != nil {
			return err
		}
	}
	return nil
}

// An ingested is a message of an entry.
type ingested struct {
	topic, event, data, key string
}

// publish publishes entries and removes them from the stream: what goes to one topic in its
// order, topics side by side.
func (in *ingester) publish(entries []redis.XMessage) error {
	byTopic := make(map[string][]ingested)
	rejected := make(map[string]error)
	for _, e := range entries {
		messages, err := in.parse(e)
		if err != nil {
			rejected[e.ID] = err
			continue
		}
		for _, m := range messages {
			byTopic[m.topic] = append(byTopic[m.topic], m)
		}
	}
	var work sync.WaitGroup
	failed := make(chan error, len(byTopic))
	for _, messages := range byTopic {
		work.Go(func() {
			for _, m := range messages {
				if err := in.publishOne(m); err != nil {
					failed <- err // has room
					return
				}
			}
		})
	}
	work.Wait()
	select {
	case err := <-failed:
		return err
	default: // all went well
	}
	return in.remove(entries, byTopic, rejected)
}

// publishOne publishes a message, and tries for as long as this instance holds the lease.
func (in *ingester) publishOne(m ingested) error {
	var wait backoff
	for first := true; ; first = false {
		if !in.lease.holds() {
			return errNoLease
		}
		err := in.c.publish(in.c.ctx, m.topic, m.event, m.data, m.key)
		switch {
		case err == nil:
			in.c.counters.published.Add(1)
			in.c.counters.ingested.Add(1)
			return nil
		case errors.Is(err, errDuplicate): // by an instance that did not come to remove it
			return nil
		case first && in.c.ctx.Err() == nil:
			logAt(in.c.log.WithField("stream", in.stream).WithField("error", err), slog.LevelWarn, "redis: ingest cannot publish; it tries again")
		}
		if !in.c.pause(wait.next()) {
			return err
		}
	}
}

var errNoLease = errors.New("pushlet: the lease was lost")

// parse reads an entry.
func (in *ingester) parse(e redis.XMessage) ([]ingested, error) {
	var m ingested
	var topics []string
	for name, value := range e.Values {
		text, _ := value.(string)
		switch name {
		case "topic":
			if text != broadcastTopic {
				if err := checkTopic(text); err != nil {
					return nil, err
				}
			}
			topics = append(topics, text)
		case "user":
			if err := checkUser(text); err != nil {
				return nil, err
			}
			topics = append(topics, topicOfUser(text))
		case "event":
			m.event = text
		case "data":
			m.data = text
		default:
			return nil, fmt.Errorf("%w: unknown field %q", ErrInvalidPush, name)
		}
	}
	if len(topics) == 0 {
		return nil, fmt.Errorf("%w: neither topic nor user", ErrInvalidPush)
	}
	if err := checkEvent(m.event); err != nil {
		return nil, err
	}
	if err := checkData(m.data, in.max); err != nil {
		return nil, err
	}
	messages := make([]ingested, 0, len(topics))
	for _, topic := range topics {
		m.topic, m.key = topic, in.stream+" "+e.ID+" "+topic
		messages = append(messages, m)
	}
	return messages, nil
}

// remove takes entries off the stream.
func (in *ingester) remove(entries []redis.XMessage, byTopic map[string][]ingested, rejected map[string]error) error {
	ctx := in.c.ctx
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = e.ID
	}
	_, err := in.c.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, e := range entries {
			why := rejected[e.ID]
			if why == nil {
				continue
			}
			values := []any{"id", e.ID, "reason", why.Error()}
			for name, value := range e.Values {
				values = append(values, "field "+name, value)
			}
			p.XAdd(ctx, &redis.XAddArgs{Stream: in.stream + ":rejected", MaxLen: ingestRejects, Approx: true, Values: values})
		}
		p.XAck(ctx, in.stream, ingestGroup, ids...)
		p.XDel(ctx, in.stream, ids...)
		return nil
	})
	if err != nil {
		return err
	}
	for range rejected {
		in.c.counters.rejected.Add(1)
	}
	if len(rejected) > 0 {
		logAt(in.c.log.WithField("stream", in.stream).WithField("entries", len(rejected)), slog.LevelWarn, "redis: ingest rejected entries")
	}
	in.forget(ctx, byTopic)
	return nil
}

// forget lets the keys of what was removed expire soon: only an instance that stood still
// could try to publish it again.
func (in *ingester) forget(ctx context.Context, byTopic map[string][]ingested) {
	keys := make(map[*partition][]string)
	for topic, messages := range byTopic {
		pt := in.c.partition(topic)
		for _, m := range messages {
			keys[pt] = append(keys[pt], pt.keyOf(m.key))
		}
	}
	for pt, keys := range keys {
		client, err := pt.conn(ctx)
		if err != nil {
			continue // they expire later
		}
		_, _ = client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, key := range keys {
				p.PExpire(ctx, key, ingestKeyAfter)
			}
			return nil
		})
	}
}

package pushlet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// Calls to all instances: each is published on the control channel, which all subscribe to,
// and names a list where they put their answers. Redis says how many have heard it.

const (
	callTimeout = 2 * time.Second
	callStep    = time.Second // of waiting, below the time that a command may take
	callKept    = time.Minute // an answer that nobody waits for any more
)

// callAll asks all instances, this one too, and gathers the answers.
func (c *connector) callAll(ctx context.Context, what call) ([]Client, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pt := c.partition(topicOfUser(what.User) + what.Client)
	what.Reply = pt.tag + "r:" + newClientID()
	text, err := json.Marshal(what)
	if err != nil {
		return nil, err
	}
	client, err := pt.conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: redis: %w", ErrUnavailable, err)
	}
	publish := client.Publish
	if c.cluster != nil {
		publish = client.SPublish
	}
	instances, err := publish(ctx, pt.control, text).Result()
	if err != nil {
		pt.failed(err)
		kind := ErrUnavailable
		if faultOf(err) == faultUnknown {
			kind = ErrUncertain
		}
		return nil, fmt.Errorf("%w: redis: %w", kind, err)
	}
	if instances == 0 {
		return nil, fmt.Errorf("%w: no instance hears redis", ErrUnavailable)
	}
	var found []Client
	for n := range instances {
		clients, err := takeAnswer(ctx, client, what.Reply)
		if err != nil {
			return found, fmt.Errorf("%w: %d of %d instances have answered: %w", ErrUncertain, n, instances, err)
		}
		found = append(found, clients...)
	}
	return found, nil
}

// takeAnswer waits for one answer.
func takeAnswer(ctx context.Context, client *redis.Client, key string) ([]Client, error) {
	deadline, _ := ctx.Deadline()
	for {
		left := time.Until(deadline)
		if ctx.Err() != nil || left <= 0 {
			return nil, context.DeadlineExceeded
		}
		reply, err := client.Do(ctx, "BLPOP", key, min(left, callStep).Seconds()).StringSlice()
		switch {
		case errors.Is(err, redis.Nil):
			continue
		case err != nil:
			return nil, err
		}
		var clients []Client
		err = json.Unmarshal([]byte(reply[len(reply)-1]), &clients)
		return clients, err
	}
}

// takeCall does what another instance asks for. It does not block.
func (pt *partition) takeCall(text string) {
	what, ok := parseCall(text)
	if !ok {
		pt.c.log.Println("redis: a call that is none of ours was ignored")
		return
	}
	pt.c.work.Go(func() { pt.answerCall(what) }) // receive runs, so stop waits
}

// parseCall reads what callAll sends.
func parseCall(text string) (what call, ok bool) {
	err := json.Unmarshal([]byte(text), &what)
	return what, err == nil && (what.User != "" || what.Client != "") && what.Reply != "" && len(what.Why) <= maxReason
}

func (pt *partition) answerCall(what call) {
	clients := pt.c.broker.answer(what)
	if clients == nil {
		clients = []Client{}
	}
	text, err := json.Marshal(clients)
	if err != nil {
		return
	}
	client, err := pt.conn(pt.c.ctx)
	if err == nil {
		_, err = client.Pipelined(pt.c.ctx, func(p redis.Pipeliner) error {
			p.RPush(pt.c.ctx, what.Reply, text)
			p.PExpire(pt.c.ctx, what.Reply, callKept)
			return nil
		})
	}
	if err != nil {
		pt.failed(err) // whoever asked is told that an answer is missing
	}
}

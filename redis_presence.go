package pushlet

import (
	"context"
	_ "embed"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Presence in Redis. Each instance writes how many clients its users have, and says every
// few seconds that it is alive. Whoever finds one that is not takes its users out.

//go:embed redis_presence.lua
var presenceLua string

//go:embed redis_alive.lua
var aliveLua string

var (
	presenceScript = redis.NewScript(presenceLua)
	aliveScript    = redis.NewScript(aliveLua)
)

const (
	presenceKept  = time.Hour // in Redis, if nobody renews it
	presenceRenew = 20 * time.Minute
)

// Changed by tests.
var (
	aliveBeat = 2 * time.Second // between signs of life
	aliveFor  = 8 * time.Second // after the last
)

func (pt *partition) presenceKey(topic string) string { return pt.tag + "p:" + topic }
func (pt *partition) instanceKey(name string) string  { return pt.tag + "i:" + name }
func (pt *partition) aliveKey() string                { return pt.tag + "alive" }

// reportPresence writes what has changed in a topic on this instance.
func (c *connector) reportPresence(topic string, counts map[string]int) ([]string, error) {
	args := make([]any, 0, 4+2*len(counts))
	args = append(args, c.writer, topic, presenceKept.Milliseconds(), "")
	for user, n := range counts {
		args = append(args, user, n)
	}
	return c.writePresence(c.partition(topic), c.writer, topic, args)
}

func (c *connector) writePresence(pt *partition, instance, topic string, args []any) ([]string, error) {
	client, err := pt.conn(c.ctx)
	if err != nil {
		return nil, err
	}
	keys := []string{pt.presenceKey(topic), pt.instanceKey(instance)}
	changes, err := presenceScript.Run(c.ctx, client, keys, args...).StringSlice()
	if err != nil {
		pt.failed(err)
	}
	return changes, err
}

// stayAlive says that this instance is, and takes out the users of those that are not.
func (c *connector) stayAlive(p *presence) {
	renewed := time.Now()
	for c.pause(aliveBeat/2 + rand.N(aliveBeat)) { //nolint:gosec // spread, not secret
		again := time.Since(renewed) > presenceRenew
		for _, pt := range c.parts {
			known, dead, err := pt.signAlive(aliveFor)
			if err != nil {
				pt.failed(err)
				continue
			}
			again = again || !known
			for _, instance := range dead {
				if err := c.giveUp(p, pt, instance); err != nil {
					pt.failed(err)
				}
			}
		}
		if again {
			renewed = time.Now()
			p.again()
		}
	}
}

func (pt *partition) signAlive(d time.Duration) (known bool, dead []string, err error) {
	ctx := context.WithoutCancel(pt.c.ctx) // also when the connector ends
	client, err := pt.conn(ctx)
	if err != nil {
		return false, nil, err
	}
	reply, err := aliveScript.Run(ctx, client, []string{pt.aliveKey()},
		pt.c.writer, d.Milliseconds(), presenceKept.Milliseconds()).Slice()
	if err != nil || len(reply) == 0 {
		return false, nil, err
	}
	n, _ := reply[0].(int64)
	for _, name := range reply[1:] {
		if s, _ := name.(string); s != pt.c.writer {
			dead = append(dead, s)
		}
	}
	return n == 1, dead, nil
}

// giveUp takes the users of an instance that does not live any more out of its topics.
func (c *connector) giveUp(p *presence, pt *partition, instance string) error {
	client, err := pt.conn(c.ctx)
	if err != nil {
		return err
	}
	topics, err := client.SMembers(c.ctx, pt.instanceKey(instance)).Result()
	if err != nil {
		return err
	}
	for _, topic := range topics {
		changes, err := c.writePresence(pt, instance, topic, []any{instance, topic, presenceKept.Milliseconds(), "all"})
		if err != nil {
			return err
		}
		for _, change := range changes {
			if user := change[1:]; user != "" {
				p.tell(topic, user, false)
			}
		}
	}
	return client.ZRem(c.ctx, pt.aliveKey(), instance).Err()
}

// leavePresence lets the others give this instance up when the time of grace is over.
func (c *connector) leavePresence(grace time.Duration) {
	for _, pt := range c.parts {
		if pt.up() {
			_, _, _ = pt.signAlive(grace) // else it is given up a little later
		}
	}
}

// presence reads who follows a topic.
func (c *connector) presence(ctx context.Context, topic string) (Presence, error) {
	pt := c.partition(topic)
	client, err := pt.conn(ctx)
	if err != nil {
		return Presence{}, err
	}
	var now *redis.TimeCmd
	var alive *redis.ZSliceCmd
	var fields *redis.MapStringStringCmd
	_, err = client.Pipelined(ctx, func(p redis.Pipeliner) error {
		now = p.Time(ctx)
		alive = p.ZRangeWithScores(ctx, pt.aliveKey(), 0, -1)
		fields = p.HGetAll(ctx, pt.presenceKey(topic))
		return nil
	})
	if err != nil {
		pt.failed(err)
		return Presence{}, err
	}
	lives := map[string]bool{c.writer: true}
	for _, z := range alive.Val() {
		name, _ := z.Member.(string)
		lives[name] = lives[name] || z.Score >= float64(now.Val().UnixMilli())
	}
	all := Presence{Users: make(map[string]int)}
	for field, value := range fields.Val() {
		rest, ok := strings.CutPrefix(field, "i ")
		if !ok {
			continue
		}
		instance, user, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(value)
		if err != nil || !lives[instance] {
			continue
		}
		all.Clients += n
		if user != "" {
			all.Users[user] += n
		}
	}
	return all, nil
}

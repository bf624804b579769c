package pushlet

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// A connector shares topics with other instances through Redis. Topics are spread over
// partitions, each with its own keys, connections and goroutines: one as a rule, several
// in a Redis Cluster, where the keys of a partition share a hash tag and so a slot.
//
//	redis_publish.go    batches of messages on their way to Redis
//	redis_subscribe.go  messages on their way back, and what did not arrive
//	redis_*.lua         the scripts; they alone write the logs
type connector struct {
	// Immutable after newConnector.
	client   redis.UniversalClient
	cluster  *redis.ClusterClient // client, if it is one
	cfg      *config
	broker   *broker
	counters *counters
	log      Logger
	writer   string // names this instance
	parts    []*partition

	ctx    context.Context //nolint:containedctx // ends with stop, not with a call
	cancel context.CancelFunc
	work   sync.WaitGroup

	lease     *lease       // to do for all what only one is to do; nil without such a thing
	bridgers  []*bridger   // immutable after Start
	noting    sync.Mutex   // held by note
	downSince atomic.Int64 // Unix nanoseconds; 0 while Redis answers
	lastErr   atomic.Pointer[error]
}

// A partition is a part of the topics, and the keys that belong together.
type partition struct {
	c       *connector
	tag     string // "{0}"
	head    string // key of the lineage and the newest ID
	control string // a channel that is always subscribed to
	topics  string // what keys and channels of topics begin with
	newest  string // and the keys of their newest IDs

	publisher
	subscriber

	direct atomic.Pointer[directClient]
}

// A directClient is a client of ours on the connections of another.
type directClient struct{ of, client *redis.Client }

//go:embed redis_publish.lua
var publishLua string

//go:embed redis_check.lua
var checkLua string

//go:embed redis_mark.lua
var markLua string

var (
	publishScript = redis.NewScript(publishLua)
	checkScript   = redis.NewScript(checkLua)
	markScript    = redis.NewScript(markLua)
)

// Timing of the connector, the same for all but changed by tests.
var (
	redisTimeout   = 2 * time.Second // of one command
	redisPing      = 2 * time.Second // between probes of a subscription
	redisSilence   = 7 * time.Second // without a word, after which a connection is given up
	redisCheck     = time.Second     // between comparisons of positions
	redisVerify    = 5 * time.Second // between comparisons of what was published
	redisFirstWait = 20 * time.Millisecond
	redisLongWait  = 2 * time.Second
)

// redisSettings are the options that have to do with Redis.
type redisSettings struct {
	client      redis.UniversalClient // nil: not distributed
	owned       bool                  // we opened it, so we close it
	prefix      string
	partitions  int // 0: as the client needs
	acks        int
	acksTimeout time.Duration
	publishWait time.Duration
	queue       int
	queueBytes  int
}

const (
	standalonePartitions = 1
	clusterPartitions    = 16
	maxPartitions        = 1024
)

// EnableDistributedMode shares topics with other instances through the Redis at addr,
// "host:port", with its password, if any, and database number. Several addresses with
// commas between them are nodes of a Redis Cluster. For Sentinel, TLS or a user name use
// WithRedis. Call it before Start; it waits until Redis has answered, at most 5 seconds.
//
// Errors wrap ErrUnavailable if Redis did not answer: distributed mode is then on
// nevertheless, and begins once Redis is there. Other errors change nothing.
func (p *Pushlet) EnableDistributedMode(addr, password string, db int) error {
	var client redis.UniversalClient
	if nodes := strings.Split(addr, ","); len(nodes) > 1 {
		client = redis.NewClusterClient(&redis.ClusterOptions{Addrs: nodes, Password: password, PoolSize: 16})
	} else {
		client = redis.NewClient(&redis.Options{Addr: addr, Password: password, DB: db, MaxRetries: -1, DialerRetries: 1, PoolSize: 16})
	}
	err := p.useRedis(client)
	if err == nil {
		err = probeRedis(client)
		if err == nil || errors.Is(err, ErrUnavailable) {
			return err
		}
		p.gate.Lock()
		p.cfg.redis.client = nil
		p.gate.Unlock()
	}
	_ = client.Close()
	return err
}

func (p *Pushlet) useRedis(client redis.UniversalClient) error {
	p.gate.Lock()
	defer p.gate.Unlock()
	switch {
	case p.state == stateClosed:
		return ErrClosed
	case p.state == stateRunning:
		return errors.New("pushlet: EnableDistributedMode after Start")
	case p.cfg.redis.client != nil:
		return errors.New("pushlet: distributed mode is enabled already")
	}
	p.cfg.redis.client, p.cfg.redis.owned = client, true
	return nil
}

// probeRedis asks whether Redis is there and is of the right kind.
func probeRedis(client redis.UniversalClient) error {
	const timeout = 5 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	info, err := client.Info(ctx, "server", "cluster").Result()
	var answer redis.Error
	switch {
	case err != nil && errors.As(err, &answer) && !isTransient(answer):
		return fmt.Errorf("pushlet: redis: %w", err)
	case err != nil:
		return fmt.Errorf("%w: redis: %w", ErrUnavailable, err)
	}
	_, isCluster := client.(*redis.ClusterClient)
	if strings.Contains(info, "cluster_enabled:1") && !isCluster {
		return errors.New("pushlet: this Redis is a node of a Cluster: give several addresses, or WithRedis a ClusterClient")
	}
	if _, after, ok := strings.Cut(info, "redis_version:"); ok {
		if major, _ := strconv.Atoi(after[:strings.IndexAny(after+".", ".\r\n")]); major < 7 {
			return errors.New("pushlet: Redis 7.0 or later is needed")
		}
	}
	return nil
}

func newConnector(cfg *config, b *broker, k *counters, log Logger) *connector {
	c := &connector{client: cfg.redis.client, cfg: cfg, broker: b, counters: k, log: log, writer: newClientID()}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.cluster, _ = c.client.(*redis.ClusterClient)
	n := cfg.redis.partitions
	if n == 0 {
		if n = standalonePartitions; c.cluster != nil {
			n = clusterPartitions
		}
	}
	prefix := cfg.redis.prefix
	if one, ok := c.client.(*redis.Client); ok && one.Options().DB != 0 {
		prefix += fmt.Sprint("/", one.Options().DB) // all databases share the channels
	}
	for i := range n {
		base := fmt.Sprintf("%s{%d}:", prefix, i)
		pt := &partition{c: c, tag: base, head: base + "head", control: base + "control", topics: base + "t:", newest: base + "n:"}
		pt.publisher.init(pt, cfg)
		pt.subscriber.init()
		c.parts = append(c.parts, pt)
	}
	c.downSince.Store(time.Now().UnixNano())
	return c
}

func (c *connector) start() {
	for _, pt := range c.parts {
		for _, l := range pt.lanes {
			c.work.Go(l.run)
		}
		c.work.Go(pt.receive)
		c.work.Go(pt.manage)
		c.work.Go(pt.ping)
	}
}

func (c *connector) name() string { return "redis" }

// yield lets publishers that still wait have an error.
func (c *connector) yield() { c.cancel() }

// stop ends everything. Publishers that still wait get an error.
func (c *connector) stop() {
	c.cancel()
	for _, pt := range c.parts {
		pt.hangUp()
	}
	c.work.Wait()
	if c.cfg.redis.owned {
		_ = c.client.Close()
	}
}

func (c *connector) partition(topic string) *partition {
	if len(c.parts) == 1 {
		return c.parts[0]
	}
	return c.parts[uint64(hashTopic(topic))%uint64(len(c.parts))]
}

// conn returns what this partition's commands go through: without retries, since only
// we know what may be tried again.
func (pt *partition) conn(ctx context.Context) (*redis.Client, error) {
	c := pt.c
	node, ok := c.client.(*redis.Client)
	if !ok {
		var err error
		if node, err = c.cluster.MasterForKey(ctx, pt.head); err != nil {
			return nil, err
		}
	}
	if d := pt.direct.Load(); d != nil && d.of == node {
		return d.client, nil
	}
	client := node.WithTimeout(redisTimeout + c.cfg.redis.acksTimeout)
	client.Options().MaxRetries = 0 // of the copy
	pt.direct.Store(&directClient{node, client})
	return client, nil
}

// failed looks after an error: in a Cluster the slots may have moved.
func (pt *partition) failed(err error) {
	if pt.c.cluster != nil && pt.c.ctx.Err() == nil {
		pt.c.cluster.ReloadState(pt.c.ctx)
	}
	if pt.c.ctx.Err() == nil {
		pt.c.lastErr.Store(&err)
	}
}

// isTransient reports whether an error reply means that a command was not executed, but
// may be later.
func isTransient(err redis.Error) bool {
	s := err.Error()
	for _, p := range []string{"LOADING", "READONLY", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "MASTERDOWN",
		"NOREPLICAS", "BUSY", "UNBLOCKED", "ERR max number of clients"} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// takesNothing reports whether an error reply means that Redis takes no messages at all.
func takesNothing(err error) bool {
	for _, p := range []string{"OOM", "MISCONF", "NOREPLICAS", "READONLY", "LOADING", "CLUSTERDOWN", "MASTERDOWN"} {
		if redis.HasErrorPrefix(err, p) {
			return true
		}
	}
	return false
}

// A fault says what to make of a failed command.
type fault uint8

const (
	faultUnknown   fault = iota // it may have been executed
	faultTransient              // it was not; try again
	faultLasting                // it was not, and will not be
)

func faultOf(err error) fault {
	var answer redis.Error
	var op *net.OpError
	switch {
	case errors.Is(err, errNotSent):
		return faultTransient
	case errors.As(err, &answer):
		if isTransient(answer) {
			return faultTransient
		}
		return faultLasting
	case errors.As(err, &op) && op.Op == "dial", errors.Is(err, redis.ErrPoolTimeout):
		return faultTransient
	}
	return faultUnknown
}

// errNotSent is for what fails before anything was sent.
var errNotSent = errors.New("pushlet: not sent")

// A backoff is how long to wait before trying again: random, up to a limit that doubles.
type backoff struct{ limit time.Duration }

func (b *backoff) next() time.Duration {
	b.limit = min(max(2*b.limit, redisFirstWait), redisLongWait)
	return b.limit/4 + rand.N(b.limit*3/4) //nolint:gosec // spread, not secret
}

// pause waits, and reports false if the connector has ended.
func (c *connector) pause(d time.Duration) bool { return pause(c.ctx, d) }

// pause waits, and reports false if ctx is done.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// note takes note of whether all partitions hear Redis, and logs when that changes.
func (c *connector) note() {
	c.noting.Lock()
	defer c.noting.Unlock()
	up := true
	for _, pt := range c.parts {
		up = up && pt.up()
	}
	switch was := c.downSince.Load(); {
	case c.ctx.Err() != nil: // the end
	case up && was != 0:
		c.downSince.Store(0)
		c.log.Println("redis: connected")
	case !up && was == 0:
		c.downSince.Store(time.Now().UnixNano())
		logAt(c.log.WithField("error", c.lastError()), slog.LevelWarn, "redis: connection lost")
	}
}

func (c *connector) lastError() error {
	if err := c.lastErr.Load(); err != nil {
		return *err
	}
	return nil
}

// excuse is why publishers may get no answer, if that is known.
func (c *connector) excuse() error {
	if last := c.lastError(); last != nil && c.down() > 0 {
		return fmt.Errorf("redis: %w", last)
	}
	return nil
}

// down says since when Redis does not answer, 0 if it does.
func (c *connector) down() time.Duration { return sinceNano(c.downSince.Load()) }

// sinceNano is how long ago that was, in Unix nanoseconds; 0 for never.
func sinceNano(since int64) time.Duration {
	if since == 0 {
		return 0
	}
	return max(1, time.Since(time.Unix(0, since)))
}

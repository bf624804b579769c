package pushlet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// A Pushlet pushes messages to browsers over Server-Sent Events and WebSocket. Make one
// with New, mount its handlers, Start it. All methods are safe for concurrent use.
type Pushlet struct {
	// Immutable after New.
	cfg      config
	log      Logger
	upgrader *websocket.Upgrader
	broker   *broker
	flusher  *flusher
	env      *clientEnv
	presence *presence // nil: off

	// Set by Start, immutable afterwards.
	shared    messageLog // what keeps the logs; nil: the broker, in memory
	connector *connector // shared, in distributed mode; else nil

	counters   counters
	heartbeat  atomic.Int64  // nanoseconds
	newBeat    chan struct{} // the heartbeat interval has changed; holds one
	reports    chan report
	checks     chan checkup   // clients to be authorized again
	keys       keyring        // of what was published with a key
	open       atomic.Int64   // connections admitted, against the limit
	conns      sync.WaitGroup // one for each connection admitted
	publishing sync.WaitGroup // calls of Publish that wait for Redis or a store
	background sync.WaitGroup // clock and reporter
	quiet      chan struct{}  // closed by wind: the background goroutines are to end
	force      chan struct{}  // closed by Shutdown: do not wait for the clients any more
	forceOnce  sync.Once
	stopped    chan struct{} // closed when everything has ended

	// gate guards state. It is held for reading by whoever acts on a running Pushlet,
	// so that after Shutdown has changed the state nobody does any more.
	gate  sync.RWMutex
	state state
}

// A messageLog keeps the logs outside this process: Redis, or a store of the
// application's own.
type messageLog interface {
	sharedLog
	// publish returns nil when the log has the message.
	publish(ctx context.Context, topic, event, data, key string) error
	start()
	yield()              // publishers that still wait get an error
	stop()               // ends everything, and waits for it
	down() time.Duration // since when it does not answer, 0 if it does
	lastError() error
	depth() (messages, bytes int) // that wait to be published
	name() string
}

type state uint8

const (
	stateNew state = iota
	stateRunning
	stateClosed
)

const (
	stopTimeout = 10 * time.Second // of Stop
	forceGrace  = time.Second      // for connections that have been cut to notice

	// downTolerance is for how long Redis may be away before new clients are refused.
	downTolerance = 3 * time.Second // or the store
)

// New returns a Pushlet that is ready to be mounted and started. Options that cannot be
// are reported by Start.
func New(options ...Option) *Pushlet {
	cfg := defaultConfig()
	for _, option := range options {
		option(&cfg)
	}
	p := &Pushlet{
		cfg:     cfg,
		log:     cfg.newLogger(),
		newBeat: make(chan struct{}, 1),
		reports: make(chan report, maxReports),
		checks:  make(chan checkup, checkups),
		quiet:   make(chan struct{}),
		force:   make(chan struct{}),
		stopped: make(chan struct{}),
	}
	p.heartbeat.Store(int64(cfg.heartbeat))
	p.upgrader = newUpgrader(&p.cfg)
	p.flusher = newFlusher(runtime.GOMAXPROCS(0))
	p.broker = newBroker(&p.cfg, p.flusher, &p.counters, p.report, time.Now())
	p.broker.checks = p.checks
	if cfg.presence {
		p.presence = newPresence(cfg.presenceGrace, p.tellPresence)
		p.broker.presence = p.presence
	}
	p.env = &clientEnv{
		maxMessages: cfg.queueMessages,
		maxBytes:    cfg.queueBytes,
		maxTopics:   cfg.maxTopics,
		flusher:     p.flusher,
		counters:    &p.counters,
		requestPage: func(c *client) { p.broker.send(page{c}) },
	}
	return p
}

// Start begins to accept clients and messages. It does not block. Starting again does
// nothing; after Stop it returns ErrClosed. Other errors are about the options.
func (p *Pushlet) Start() error {
	p.gate.Lock()
	defer p.gate.Unlock()
	switch {
	case p.state == stateClosed:
		return ErrClosed
	case p.cfg.err != nil:
		logAt(p.log, slog.LevelError, "not started:", p.cfg.err)
		return p.cfg.err
	case p.state == stateRunning:
		return nil
	case p.cfg.redis.client == nil && len(p.cfg.ingest)+len(p.cfg.bridges) > 0:
		return errors.New("pushlet: WithIngest and WithBridge need distributed mode")
	}
	if p.cfg.redis.client != nil && p.cfg.store != nil {
		p.log.Println("not started:", errTwoLogs)
		return errTwoLogs
	}
	p.state = stateRunning
	switch {
	case p.cfg.redis.client != nil:
		p.connector = newConnector(&p.cfg, p.broker, &p.counters, p.log)
		p.shared = p.connector
	case p.cfg.store != nil:
		p.shared = newStoreLog(p)
	}
	if p.shared != nil {
		p.broker.share(p.shared)
		p.shared.start()
	}
	p.flusher.start()
	go p.broker.run() // wind waits for broker.done
	p.background.Go(p.clock)
	p.background.Go(p.tellReports)
	if p.cfg.reauthorize > 0 {
		for range checkupWorkers {
			p.background.Go(p.authorizeAgain)
		}
	}
	p.startBridges()
	if p.presence != nil {
		report := p.presence.reportHere(make(map[string]map[string]bool))
		if c := p.connector; c != nil {
			report = c.reportPresence
			c.work.Go(func() { c.stayAlive(p.presence) })
		}
		p.background.Go(func() { p.presence.run(p.quiet, report) })
	}
	return nil
}

// startBridges begins with what one of the instances does for all. The connector ends it.
func (p *Pushlet) startBridges() {
	c := p.connector
	if c == nil || len(p.cfg.ingest)+len(p.cfg.bridges) == 0 {
		return
	}
	l := c.newLease()
	c.lease = l
	c.work.Go(l.keep)
	for _, stream := range p.cfg.ingest {
		in := &ingester{c: c, lease: l, stream: stream, max: p.cfg.maxMessageSize}
		c.work.Go(in.run)
	}
	for _, what := range p.cfg.bridges {
		b := &bridger{p: p, c: c, lease: l, bridge: what}
		c.bridgers = append(c.bridgers, b)
		c.work.Go(b.run)
	}
}

var errTwoLogs = errors.New("pushlet: WithHistoryStore is for one process; several share a Redis: choose one of the two")

// Stop is Shutdown with a timeout of 10 seconds.
func (p *Pushlet) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return p.Shutdown(ctx)
}

// Shutdown ends everything: it refuses new clients and messages, delivers what is
// queued, ends every connection (WebSocket close code 1001; SSE a random "retry:", so
// that clients do not all come back at once, then the end of the stream), and waits for
// all handlers, hooks and goroutines. When ctx is done first it cuts the connections,
// gives them a second to end, and returns the context's cause.
//
// It may be called before Start, several times, and by several at once. Call it before
// or together with http.Server's Shutdown, which waits for handlers but neither ends
// nor waits for connections that were taken over.
func (p *Pushlet) Shutdown(ctx context.Context) error {
	p.gate.Lock()
	was := p.state
	p.state = stateClosed
	p.gate.Unlock()
	switch was {
	case stateNew:
		if p.cfg.redis.owned {
			_ = p.cfg.redis.client.Close()
		}
		close(p.stopped)
	case stateRunning:
		go p.wind() // ends by closing stopped
	}
	select {
	case <-p.stopped:
		return nil
	default: // not yet: see what comes first
	}
	select {
	case <-p.stopped:
		return nil
	case <-ctx.Done():
	}
	p.forceOnce.Do(func() { close(p.force) })
	grace := time.NewTimer(forceGrace)
	defer grace.Stop()
	select {
	case <-p.stopped:
	case <-grace.C:
	}
	return context.Cause(ctx)
}

// wind ends the parts in the order in which they need each other.
func (p *Pushlet) wind() {
	defer close(p.stopped)
	if p.connector != nil && p.connector.lease != nil {
		p.connector.work.Go(p.connector.lease.giveBack)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); p.conns.Wait(); p.publishing.Wait() }()

	p.broker.send(drain{})
	select {
	case <-ended:
	case <-p.force:
		p.broker.send(disband{})
		if p.shared != nil {
			p.shared.yield()
		}
		<-ended
	}
	seen := make(chan gauges, 1)
	p.broker.send(&census{answer: seen})
	<-seen // now the broker has reported what it has to report
	close(p.quiet)
	p.background.Wait()
	if p.connector != nil && p.presence != nil {
		p.connector.leavePresence(p.presence.grace)
	}
	if p.shared != nil {
		p.shared.stop()
	}
	p.broker.send(quit{})
	<-p.broker.done
	p.flusher.stop()
}

// Publish sends an event to every client that follows topic, on both protocols. An
// empty event is "message". It returns nil when the message has its place in line: it is
// in history and will be offered to all clients after those published before it. It
// never waits for a client, only for the broker where many publish at once.
//
// Errors wrap ErrInvalidTopic, ErrInvalidEvent, ErrReserved or ErrTooLarge, or are
// ErrNotStarted or ErrClosed; then nothing was published. Bytes of event and data that
// are not UTF-8 become U+FFFD.
//
// In distributed mode it returns nil when Redis has the message, with WithHistoryStore when
// the store has it, and waits for that for the time of WithPublishTimeout. Then errors may also wrap ErrUnavailable or
// ErrOverloaded, when the message was surely not published, or ErrUncertain, when it may
// have been.
func (p *Pushlet) Publish(topic, event, data string) error {
	return p.PublishContext(context.Background(), topic, event, data)
}

// PublishContext is Publish that waits no longer than until ctx is done; the error then
// wraps the context's cause too. Without Redis or a store ctx is not looked at.
func (p *Pushlet) PublishContext(ctx context.Context, topic, event, data string) error {
	if err := checkTopic(topic); err != nil {
		return err
	}
	return p.publish(ctx, topic, event, data)
}

// PublishToAll sends an event to every client that follows at least one topic, once to
// each. Otherwise it is like Publish.
func (p *Pushlet) PublishToAll(event, data string) error {
	return p.publish(context.Background(), broadcastTopic, event, data)
}

// PublishToAllContext is to PublishToAll what PublishContext is to Publish.
func (p *Pushlet) PublishToAllContext(ctx context.Context, event, data string) error {
	return p.publish(ctx, broadcastTopic, event, data)
}

func (p *Pushlet) publish(ctx context.Context, topic, event, data string) error {
	if err := p.check(event, data); err != nil {
		return err
	}
	if err := p.hand(ctx, topic, event, data, ""); err != nil {
		return err
	}
	p.counters.published.Add(1)
	return nil
}

// check reports what is wrong with an event.
func (p *Pushlet) check(event, data string) error {
	if err := checkEvent(event); err != nil {
		return err
	}
	return checkData(data, p.cfg.maxMessageSize)
}

// hand gives a message that has been checked to the broker, to the store, or to Redis, which
// knows keys.
func (p *Pushlet) hand(ctx context.Context, topic, event, data, key string) error {
	p.gate.RLock()
	err := p.state.err()
	log := p.shared
	if err == nil && log != nil {
		p.publishing.Add(1)
	}
	p.gate.RUnlock()
	switch {
	case err != nil:
		return err
	case log == nil:
		f := newFrame(topic, event, data, time.Now())
		f.encode(p.counters.wanted())
		return p.tell(f)
	}
	defer p.publishing.Done()
	return log.publish(ctx, topic, event, data, key)
}

// tell gives the broker a command if the Pushlet is running.
func (p *Pushlet) tell(cmd command) error {
	p.gate.RLock()
	defer p.gate.RUnlock()
	if err := p.state.err(); err != nil {
		return err
	}
	p.broker.send(cmd)
	return nil
}

// err is why something cannot be done in this state.
func (s state) err() error {
	switch s {
	case stateNew:
		return ErrNotStarted
	case stateClosed:
		return ErrClosed
	}
	return nil
}

// Ready reports whether this instance can do its work: nil if so. Otherwise it is
// ErrNotStarted, ErrClosed, or an error that wraps ErrUnavailable while Redis, or the store of
// WithHistoryStore, does not answer, or a channel of WithBridge is not listened to. It does
// not wait.
func (p *Pushlet) Ready() error {
	p.gate.RLock()
	defer p.gate.RUnlock()
	if err := p.state.err(); err != nil {
		return err
	}
	if p.shared == nil {
		return nil
	}
	why := ""
	if d := p.shared.down(); d > 0 {
		why = fmt.Sprintf("%s has not answered for %v", p.shared.name(), d.Round(time.Millisecond))
	} else if channel, ok := p.connector.deafTo(); ok {
		why = fmt.Sprintf("redis: channel %q is not listened to", channel)
	} else {
		return nil
	}
	err := fmt.Errorf("%w: %s", ErrUnavailable, why)
	if last := p.shared.lastError(); last != nil {
		err = fmt.Errorf("%w: %w", err, last)
	}
	return err
}

var errTooManyClients = errors.New("pushlet: too many clients")

// admit counts a connection in, if it may come; dismiss counts it out. Between the two
// the broker runs.
func (p *Pushlet) admit() error {
	p.gate.RLock()
	defer p.gate.RUnlock()
	if err := p.state.err(); err != nil {
		return err
	}
	if p.shared != nil && p.shared.down() > downTolerance {
		return fmt.Errorf("%w: %s does not answer", ErrUnavailable, p.shared.name())
	}
	if p.open.Add(1) > int64(p.cfg.maxClients) {
		p.open.Add(-1)
		return errTooManyClients
	}
	p.conns.Add(1)
	return nil
}

func (p *Pushlet) dismiss() {
	p.open.Add(-1)
	p.conns.Done()
}

// SetHeartbeatInterval sets how often every client hears something, so that proxies
// keep idle connections open and peers that vanished are noticed, within about two
// intervals. SSE gets a comment line, with format=json an event, WebSocket a ping. The default is 30 seconds. It
// may be changed at any time; an interval that is not positive is refused with an error
// and changes nothing.
func (p *Pushlet) SetHeartbeatInterval(interval time.Duration) error {
	if interval <= 0 {
		err := fmt.Errorf("pushlet: heartbeat interval %v is not positive", interval)
		logAt(p.log, slog.LevelWarn, err)
		return err
	}
	p.heartbeat.Store(int64(interval))
	select {
	case p.newBeat <- struct{}{}:
	default: // the clock has yet to see the last change
	}
	return nil
}

// clock lets the broker's heartbeats and history go on. The beats of an interval are
// spread over it.
func (p *Pushlet) clock() {
	const shortest, longest = 10 * time.Millisecond, time.Second
	due := 0.0
	last := time.Now()
	for {
		interval := time.Duration(p.heartbeat.Load())
		step := time.NewTimer(min(max(interval/heartbeatBuckets, shortest), longest))
		select {
		case <-step.C:
		case <-p.newBeat:
			step.Stop()
			continue
		case <-p.quiet:
			step.Stop()
			return
		}
		now := time.Now()
		due += heartbeatBuckets * float64(now.Sub(last)) / float64(interval)
		last = now
		beats := min(int(due), heartbeatBuckets) // after a pause, no more than one each
		due -= float64(int(due))
		p.broker.send(tick{now, beats})
	}
}

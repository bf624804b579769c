package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var benchCommand = command{
	name:      "bench",
	arguments: "URL [-n N]",
	summary:   "open many connections, publish, and check and time what comes",
	run:       runBench,
	notes: `
It opens the connections, publishes to them by way of the server's HandlePush,
and checks of every connection that each message came once and in order.
Connections that break come again and resume. Latency is from before the
request to HandlePush until the message is here; all in one process, so one
clock.

A message has -size bytes, but not less than it takes to tell which it is
(about 70). -topic is one that nobody else follows, unless they want to see
this. Connections are made without a proxy, SSE over HTTP/1.1.

Exit codes: 0 if every connection was there and got everything; 3 if a message
was lost, came twice or out of order; else 1 if a connection failed or
publishing did. An interrupt ends it early, with the table.

  pushlet bench localhost:8080 -n 10000
  pushlet bench ws://localhost:8080 -n 1000 -topics 100 -rate 500 -for 30s
  pushlet bench localhost:8080 -topic news -no-publish -for 1m -json
`,
}

// A bench is the command bench.
type bench struct {
	c *console

	// Immutable once it runs.
	target      target
	push        *pusher // nil: it only listens
	n           int
	connectRate int
	rate        float64
	limit       time.Duration // of publishing
	settle      time.Duration
	timeout     time.Duration
	size        int
	json, quiet bool
	topics      []*benchTopic
	epoch       time.Time // what times are measured from
	dialer      *dialer

	listeners []*listener

	// Safe for concurrent use.
	live              liveCounts
	connect, delivery histogram
	publishing        histogram
	failures, breaks  reasons // of connections that never were, and of those that were
}

// liveCounts are what the progress line shows.
type liveCounts struct {
	up, opened, failed atomic.Int64 // connections: now, ever, never
	reconnects         atomic.Int64
	published          atomic.Int64 // that the server has confirmed
	deliveries         atomic.Int64 // messages that came, of whatever kind
	received           atomic.Int64 // the first time each
	others             atomic.Int64 // that are not of this run
	gaps               atomic.Int64
	last               atomic.Int64 // when received was last counted, from epoch
}

// A benchTopic is one of the topics, and the messages of this run in it.
type benchTopic struct {
	name, run string // run stands at the beginning of each message
	listeners atomic.Int64

	// Owned by the publisher of the topic; read after it has ended.
	sent, confirmed uint64
}

// atOnce is how many connections are being opened at the same time.
const atOnce = 128

// settleAfter is how long bench waits, once everything has come, for what comes twice.
const settleAfter = 200 * time.Millisecond

func runBench(ctx context.Context, c *console, o *options, args []string) error {
	b := &bench{c: c, epoch: time.Now()}
	f := o.flags
	f.IntVar(&b.n, "n", 100, "open `N` connections")
	f.IntVar(&b.connectRate, "connect-rate", 1000, "open at most `N` connections a second; 0: as fast as it goes")
	topic := f.String("topic", "bench", "follow, and publish to, topic `T`")
	topics := f.Int("topics", 0, "use `K` topics, bench/0 and so on, and spread connections and messages over them")
	push := f.String("push", "", "publish to the HandlePush at `URL` (default /push of the same host)")
	noPublish := f.Bool("no-publish", false, "only listen and count")
	f.Float64Var(&b.rate, "rate", 10, "publish `R` messages a second, to all topics together")
	f.DurationVar(&b.limit, "for", 10*time.Second, "publish, or with -no-publish listen, for `D`")
	f.IntVar(&b.size, "size", 100, "`bytes` of a message")
	f.DurationVar(&b.timeout, "timeout", 10*time.Second, "give up opening a connection, or waiting for an answer of /push, after `D`")
	f.DurationVar(&b.settle, "settle", 5*time.Second, "at the end give a slow server `D` to take the rest, and wait as long for what is missing")
	f.BoolVar(&b.json, "json", false, "print the result as a JSON object")
	f.BoolVar(&b.quiet, "quiet", false, "show no progress")
	raw, rest, err := o.parse(args)
	if err != nil {
		return err
	}
	if b.target, err = o.target(raw, streamPaths); err != nil {
		return err
	}
	switch {
	case len(rest) > 0:
		return usagef("too many arguments: %q", rest)
	case b.n < 1:
		return usagef("-n: at least 1")
	case b.connectRate < 0:
		return usagef("-connect-rate: not negative")
	case *topic == "":
		return usagef("-topic: empty")
	case o.isSet("topics") && (*topics < 1 || o.isSet("topic")):
		return usagef("-topics: at least 1, and without -topic")
	case *noPublish && (*push != "" || o.isSet("rate") || o.isSet("size")):
		return usagef("-no-publish: without -push, -rate and -size")
	case b.rate <= 0 || b.rate > 1e6:
		return usagef("-rate: more than 0, at most a million")
	case b.limit <= 0 || b.timeout <= 0 || b.settle <= 0:
		return usagef("-for, -timeout and -settle: more than 0")
	case b.size < 1 || b.size > batchBytes:
		return usagef("-size: at least 1, at most %d", batchBytes)
	}
	if !*noPublish {
		if err := b.pushTo(o, *push); err != nil {
			return err
		}
		defer b.push.client.CloseIdleConnections()
	}
	b.makeTopics(*topic, *topics)
	b.dialer = newDialer(b.target)
	return b.run(ctx)
}

// pushTo makes the pusher, for that URL or for the host of the connections.
func (b *bench) pushTo(o *options, raw string) error {
	t := target{header: b.target.header}
	if raw == "" {
		scheme := map[string]string{"ws": "http", "wss": "https"}[b.target.url.Scheme]
		if scheme == "" {
			scheme = b.target.url.Scheme
		}
		t.url = &url.URL{Scheme: scheme, Host: b.target.url.Host, Path: pushPaths[scheme]}
	} else {
		var err error
		if t, err = o.target(raw, pushPaths); err != nil {
			return err
		}
	}
	b.push = newPusher(t, b.timeout, 3)
	return nil
}

func (b *bench) makeTopics(name string, k int) {
	run := strings.ToLower(rand.Text()[:13])
	names := []string{name}
	if k > 0 {
		names = nil
		for i := range k {
			names = append(names, fmt.Sprintf("bench/%d", i))
		}
	}
	for i, name := range names {
		b.topics = append(b.topics, &benchTopic{name: name, run: fmt.Sprintf("pushlet-bench-%s-%d", run, i)})
	}
}

// run is the whole of it, in order.
func (b *bench) run(ctx context.Context) error {
	if err := b.checkLimits(); err != nil {
		return err
	}
	if b.push != nil {
		if err := b.probe(ctx); err != nil {
			return err
		}
	}
	stopProgress := b.showProgress()
	work, cancel := context.WithCancel(context.Background()) // an interrupt ends phases, not connections
	defer cancel()
	var running sync.WaitGroup
	opening := time.Now()
	b.open(ctx, work, &running)
	var pushErr error
	begun := time.Now()
	connecting := begun.Sub(opening)
	switch {
	case b.live.opened.Load() == 0, ctx.Err() != nil:
	case b.push == nil:
		sleep(ctx, b.limit)
	default:
		pushErr = b.publish(ctx)
		b.awaitDeliveries(ctx)
	}
	took := time.Since(begun)
	stopProgress()
	deadline := time.Now().Add(time.Second)
	for _, l := range b.listeners {
		l.end(deadline)
	}
	cancel() // after that, because who is not to end takes it for a failure
	running.Wait()
	r := b.result(connecting, begun.Sub(b.epoch), took, ctx.Err() != nil)
	if err := b.print(r); err != nil {
		return err
	}
	return r.verdict(pushErr)
}

// checkLimits says before anything is opened what cannot be.
func (b *bench) checkLimits() error {
	const others = 32 // files that are open besides
	if limit := fileLimit(); limit > 0 && b.n > limit-others {
		return tooFew(b.n, limit, "file descriptors are allowed (ulimit -n)")
	}
	if ports := localPorts(); ports > 0 && b.n > ports {
		return tooFew(b.n, ports, "local ports can be used for one server (net.ipv4.ip_local_port_range)")
	}
	return nil
}

// localPorts is how many connections one address can have to one server, 0 if that is not known.
func localPorts() int {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range") // Linux only
	if err != nil {
		return 0
	}
	var first, last int
	if n, _ := fmt.Sscan(string(b), &first, &last); n != 2 {
		return 0
	}
	return last - first + 1
}

// probe publishes a message before there is a connection, to find out whether that works.
func (b *bench) probe(ctx context.Context) error {
	body := pushBody{Topics: []string{b.topics[0].name}, Events: []pushEvent{{Event: "bench", Data: b.topics[0].run}}}
	if _, err := b.push.push(ctx, body, rand.Text()); err != nil {
		return fmt.Errorf("cannot publish to %s: %s\nsee -push and -token, or only listen with -no-publish", redacted(b.push.url), plain(err))
	}
	return nil
}

// open starts the listeners, at the rate that was asked for, and returns when each has tried.
func (b *bench) open(ctx, work context.Context, running *sync.WaitGroup) {
	var trying sync.WaitGroup
	places := make(chan struct{}, atOnce)
	begun := time.Now()
	for i := range b.n {
		if b.connectRate > 0 {
			due := time.Duration(float64(i) / float64(b.connectRate) * float64(time.Second))
			if ahead := due - time.Since(begun); ahead > 0 {
				sleep(ctx, ahead)
			}
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		l := &listener{b: b, topic: b.topics[i%len(b.topics)]}
		b.listeners = append(b.listeners, l)
		trying.Add(1)
		running.Go(func() { // ends with end, or by itself when it is refused
			l.run(work, func() {
				<-places
				trying.Done()
			})
		})
	}
	tried := make(chan struct{})
	go func() { // ends when all have tried, which is when they are ended at the latest
		trying.Wait()
		close(tried)
	}()
	select {
	case <-tried:
	case <-ctx.Done():
	}
}

// awaitDeliveries waits until all that was published has come everywhere, or nothing comes any more;
// when it is interrupted, not for long.
func (b *bench) awaitDeliveries(ctx context.Context) {
	want := b.expected()
	have, since := int64(-1), time.Now()
	for {
		got := b.live.received.Load()
		switch {
		case got >= want:
			time.Sleep(settleAfter)
			return
		case got != have:
			have, since = got, time.Now()
		case time.Since(since) > b.settle, ctx.Err() != nil && time.Since(since) > time.Second:
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// expected is how many deliveries there should be. It is called after publishing.
func (b *bench) expected() (n int64) {
	for _, t := range b.topics {
		n += int64(t.confirmed) * t.listeners.Load()
	}
	return n
}

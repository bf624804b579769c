package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet"
)

// Distributed mode. It is measured in this process, against what go-redis alone can do
// with the same redis-server in the same run.

const (
	redisPublishers = 64
	redisTopics     = 100
	redisPipeline   = 256
)

// leastScript is the least that a script can do for one message: its link, the log, and
// sending it. It has no protection against doubling, and nothing tells what is lost.
var leastScript = redis.NewScript(`
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local prev = newest and newest[1] or '0-0'
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', 1000, '*', 'p', prev, 'm', ARGV[1])
redis.call('PUBLISH', KEYS[1], id .. ' ' .. prev .. ' ' .. ARGV[1])
return id`)

// A redisServer is a redis-server of our own, without persistence.
type redisServer struct {
	cmd  *exec.Cmd
	addr string
}

func startRedis() (*redisServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &redisServer{cmd, addr}
	c := s.client()
	defer c.Close()
	for deadline := time.Now().Add(10 * time.Second); c.Ping(context.Background()).Err() != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.stop()
			return nil, errors.New("redis-server does not answer")
		}
	}
	return s, nil
}

func (s *redisServer) stop() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *redisServer) client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: s.addr, PoolSize: redisPublishers, DialerRetries: 1})
}

// cpu is what the server has used, user and system.
func (s *redisServer) cpu(c *redis.Client) (total time.Duration) {
	for line := range strings.Lines(c.Info(context.Background(), "cpu").Val()) {
		for _, name := range []string{"used_cpu_sys:", "used_cpu_user:"} {
			if v, ok := strings.CutPrefix(line, name); ok {
				seconds, _ := strconv.ParseFloat(strings.TrimSpace(v), 64)
				total += time.Duration(seconds * float64(time.Second))
			}
		}
	}
	return total
}

func (s *redisServer) instance(options ...pushlet.Option) (*pushlet.Pushlet, func(), error) {
	client := s.client()
	p := pushlet.New(append(options, pushlet.WithRedis(client), pushlet.WithLogger(func() pushlet.Logger { return silent{} }))...)
	if err := p.Start(); err != nil {
		return nil, nil, err
	}
	end := func() { _ = p.Stop(); _ = client.Close() }
	for deadline := time.Now().Add(10 * time.Second); p.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			end()
			return nil, nil, p.Ready()
		}
	}
	return p, end, nil
}

func (b *bench) redis() error {
	s, err := startRedis()
	if err != nil {
		return err
	}
	defer s.stop()
	if err := b.redisPublish(s); err != nil {
		return err
	}
	if err := b.redisLatency(s); err != nil {
		return err
	}
	return b.redisFollow(s)
}

// redisPublish: how many publishes a second are acknowledged.
func (b *bench) redisPublish(s *redisServer) error {
	client := s.client()
	defer client.Close()
	p, end, err := s.instance()
	if err != nil {
		return err
	}
	defer end()
	ctx := context.Background()
	topics := make([]string, redisTopics)
	for i := range topics {
		topics[i] = topicName(i)
	}
	window := b.window(4*time.Second, time.Second)

	publishers := func(publish func(topic string) error) func() (int, error) {
		return func() (int, error) {
			var n, next atomic.Int64
			var failed atomic.Pointer[error]
			var wg sync.WaitGroup
			until := time.Now().Add(window)
			for range redisPublishers {
				wg.Go(func() {
					for time.Now().Before(until) {
						if err := publish(topics[next.Add(1)%redisTopics]); err != nil {
							failed.Store(&err)
							return
						}
						n.Add(1)
					}
				})
			}
			wg.Wait()
			if err := failed.Load(); err != nil {
				return 0, *err
			}
			return int(n.Load()), nil
		}
	}
	single, endSingle, err := s.single()
	if err != nil {
		return err
	}
	defer endSingle()
	sides := []struct {
		name string
		run  func() (int, error)
	}{
		{"pushlet", publishers(func(topic string) error { return p.Publish(topic, "message", messageText) })},
		{"call", publishers(func(topic string) error {
			return leastScript.Run(ctx, client, []string{"least:" + topic}, messageText).Err()
		})},
		{"pipeline", func() (n int, err error) {
			for until := time.Now().Add(window); time.Now().Before(until); n += redisPipeline {
				_, err := client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
					for i := range redisPipeline {
						leastScript.EvalSha(ctx, pipe, []string{"least:" + topics[(n+i)%redisTopics]}, messageText)
					}
					return nil
				})
				if err != nil {
					return 0, err
				}
			}
			return n, nil
		}},
		{"single", publishers(single)},
	}
	rates, costs := make(map[string][]float64), make(map[string][]float64)
	for round := range b.rounds {
		for i := range sides {
			side := sides[(i+round)%len(sides)]
			before, began := s.cpu(client), time.Now()
			n, err := side.run()
			if err != nil {
				return fmt.Errorf("%s: %w", side.name, err)
			}
			rates[side.name] = append(rates[side.name], float64(n)/time.Since(began).Seconds()/1000)
			costs[side.name] = append(costs[side.name], float64((s.cpu(client)-before).Nanoseconds())/float64(n)/1000)
		}
		progress("redis: publishes: %.0f k/s", rates["pushlet"][round])
	}
	b.results.add(
		row{Scenario: "redis", What: "publishes acknowledged, to one least script call each", Unit: "k/s", Baseline: rates["call"], Pushlet: rates["pushlet"], Limit: atLeast(ofRatio, 3)},
		row{Scenario: "redis", What: "the same, to 256 such calls in a pipeline", Unit: "k/s", Baseline: rates["pipeline"], Pushlet: rates["pushlet"], Limit: atLeast(ofRatio, 1.2)},
		row{Scenario: "redis", What: "the same, to our own script with one message", Unit: "k/s", Baseline: rates["single"], Pushlet: rates["pushlet"], Limit: atLeast(ofRatio, 3)},
		row{Scenario: "redis", What: "Redis CPU per message, to the pipeline", Unit: "µs", Baseline: costs["pipeline"], Pushlet: costs["pushlet"]},
		row{Scenario: "redis", What: "Redis CPU per message, to one call each", Unit: "µs", Baseline: costs["call"], Pushlet: costs["pushlet"]},
	)
	return nil
}

// single publishes with the library's own script, one message a call: each goroutine with
// a Pushlet of its own would do that. So there are 64 of them, and each is used by one at a time.
func (s *redisServer) single() (publish func(topic string) error, end func(), err error) {
	pool := make(chan *pushlet.Pushlet, redisPublishers)
	var ends []func()
	end = func() {
		for _, e := range ends {
			e()
		}
	}
	for range redisPublishers {
		p, e, err := s.instance(pushlet.WithRedisPrefix("single"))
		if err != nil {
			end()
			return nil, nil, err
		}
		ends = append(ends, e)
		pool <- p
	}
	return func(topic string) error {
		p := <-pool
		defer func() { pool <- p }()
		return p.Publish(topic, "message", messageText)
	}, end, nil
}

// messageText is the data of a message: 100 bytes.
var messageText = strings.Repeat("x", 100)

// redisLatency: a lone message from the call of Publish on one instance until a client of
// the other has read it.
func (b *bench) redisLatency(s *redisServer) error {
	ctx := context.Background()
	bare, other := s.client(), s.client()
	defer bare.Close()
	defer other.Close()
	from, endFrom, err := s.instance()
	if err != nil {
		return err
	}
	defer endFrom()
	to, endTo, err := s.instance()
	if err != nil {
		return err
	}
	defer endTo()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(to.HandleSSE), ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(l) }() // ends with Close
	defer server.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET /?topic=lone HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	stream := bufio.NewReader(conn)
	readEvent := func(marker string) error {
		for {
			line, err := stream.ReadString('\n')
			if err != nil {
				return err
			}
			if strings.HasPrefix(line, marker) {
				return nil
			}
		}
	}
	if err := readEvent("event: pushlet.connected"); err != nil {
		return err
	}
	sub := other.Subscribe(ctx, "lone")
	defer sub.Close()
	if _, err := sub.Receive(ctx); err != nil {
		return err
	}

	time1 := func(send, receive func() error) (time.Duration, error) {
		got := make(chan error, 1)
		go func() { got <- receive() }()
		runtime.Gosched()
		time.Sleep(time.Millisecond) // the reader waits, and nothing else is under way
		began := time.Now()
		if err := send(); err != nil {
			return 0, err
		}
		err := <-got
		return time.Since(began), err
	}
	p50 := row{Scenario: "redis", What: "lone message to the other instance, p50, to PUBLISH and receive", Unit: "µs", Limit: atMost(ofRatio, 1.5)}
	p99 := row{Scenario: "redis", What: "the same, p99", Unit: "µs"}
	for range b.rounds {
		var ours, theirs []time.Duration
		for range b.sized(1000, 200) {
			d, err := time1(func() error { return bare.Publish(ctx, "lone", messageText).Err() },
				func() error { _, err := sub.ReceiveMessage(ctx); return err })
			if err != nil {
				return err
			}
			theirs = append(theirs, d)
			d, err = time1(func() error { return from.Publish("lone", "message", messageText) }, func() error { return readEvent("data: x") })
			if err != nil {
				return err
			}
			ours = append(ours, d)
		}
		slices.Sort(ours)
		slices.Sort(theirs)
		note := func(r *row, q float64) {
			r.Pushlet = append(r.Pushlet, float64(quantile(ours, q).Nanoseconds())/1000)
			r.Baseline = append(r.Baseline, float64(quantile(theirs, q).Nanoseconds())/1000)
		}
		note(&p50, 0.5)
		note(&p99, 0.99)
	}
	progress("redis: lone message: %.0f µs, bare %.0f µs", median(p50.Pushlet), median(p50.Baseline))
	b.results.add(p50, p99)
	return nil
}

// redisFollow: what an instance costs that follows very many topics.
func (b *bench) redisFollow(s *redisServer) error {
	topics := b.sized(100_000, 10_000)
	const each = 100 // topics of one client
	ctx := context.Background()
	client := s.client()
	defer client.Close()

	measure := func(p *pushlet.Pushlet) (heap float64, took time.Duration, conns []*websocket.Conn, err error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, 0, nil, err
		}
		server := &http.Server{Handler: http.HandlerFunc(p.HandleWebSocket), ReadHeaderTimeout: time.Second}
		go func() { _ = server.Serve(l) }() // ends with Close
		defer server.Close()
		before := liveHeap()
		began := time.Now()
		for i := 0; i < topics; i += each {
			ws, resp, err := websocket.DefaultDialer.Dial("ws://"+l.Addr().String(), nil)
			if err != nil {
				return 0, 0, conns, err
			}
			_ = resp.Body.Close()
			conns = append(conns, ws)
			names := make([]string, each)
			for j := range names {
				names[j] = fmt.Sprint("follow/", i+j)
			}
			if err := ws.WriteJSON(map[string]any{"action": "subscribe", "topics": names}); err != nil {
				return 0, 0, conns, err
			}
		}
		for _, ws := range conns {
			for range each {
				if err := readUntil(ws, "pushlet.subscribed"); err != nil {
					return 0, 0, conns, err
				}
			}
		}
		return float64(liveHeap()-before) / float64(topics), time.Since(began), conns, nil
	}
	closeAll := func(conns []*websocket.Conn) {
		for _, ws := range conns {
			_ = ws.Close()
		}
	}

	alone := pushlet.New(pushlet.WithLogger(func() pushlet.Logger { return silent{} }))
	if err := alone.Start(); err != nil {
		return err
	}
	heapAlone, tookAlone, conns, err := measure(alone)
	closeAll(conns)
	_ = alone.Stop()
	if err != nil {
		return err
	}

	p, end, err := s.instance()
	if err != nil {
		return err
	}
	defer end()
	heap, took, conns, err := measure(p)
	defer closeAll(conns)
	if err != nil {
		return err
	}
	progress("redis: %d topics followed in %v", topics, took.Round(time.Millisecond))

	// Cut the subscription, and publish what arrives only once it is back.
	var back []float64
	cpu := s.cpu(client)
	for round := range b.rounds {
		began := time.Now()
		if err := client.ClientKillByFilter(ctx, "TYPE", "pubsub").Err(); err != nil {
			return err
		}
		for i := range conns {
			if err := p.Publish(fmt.Sprint("follow/", i*each+round), "message", messageText); err != nil {
				return err
			}
		}
		for _, ws := range conns {
			if err := readUntil(ws, messageText); err != nil {
				return err
			}
		}
		for channels := 0; channels < topics; time.Sleep(5 * time.Millisecond) {
			for line := range strings.Lines(client.Info(ctx, "stats").Val()) {
				if v, ok := strings.CutPrefix(line, "pubsub_channels:"); ok {
					channels, _ = strconv.Atoi(strings.TrimSpace(v))
				}
			}
		}
		back = append(back, time.Since(began).Seconds()*1000)
	}
	cpu = (s.cpu(client) - cpu) / time.Duration(b.rounds)
	count := fmt.Sprintf("%d topics followed by %d clients: ", topics, len(conns))
	b.results.add(
		row{Scenario: "redis", What: count + "heap of a topic, to a Pushlet without Redis", Unit: "B", Baseline: []float64{heapAlone}, Pushlet: []float64{heap}},
		row{Scenario: "redis", What: count + "time until all are followed", Unit: "ms", Baseline: []float64{tookAlone.Seconds() * 1000}, Pushlet: []float64{took.Seconds() * 1000}},
		row{Scenario: "redis", What: count + "subscription cut, time until all is back and nothing missing", Unit: "ms", Pushlet: back},
		row{Scenario: "redis", What: count + "Redis CPU for that", Unit: "ms", Pushlet: []float64{cpu.Seconds() * 1000}},
	)
	return nil
}

// readUntil reads messages until one has the event or the data.
func readUntil(ws *websocket.Conn, what string) error {
	_ = ws.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		_, text, err := ws.ReadMessage()
		if err != nil {
			return err
		}
		if !bytes.Contains(text, []byte(what)) {
			continue
		}
		var m struct{ Event, Data string }
		if err := json.Unmarshal(text, &m); err != nil {
			return err
		}
		if m.Event == what || m.Data == what {
			return nil
		}
	}
}

func liveHeap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

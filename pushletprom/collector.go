// Package pushletprom shows the statistics of a Pushlet to Prometheus.
//
//	prometheus.MustRegister(pushletprom.NewCollector(p))
//
// The README lists the metrics.
package pushletprom

import (
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usual2970/pushlet"
)

// NewCollector returns a collector that reads p.Stats() at each scrape, and nothing in
// between. It may be registered before Start and stay after Stop. Where one registry has
// several Pushlets each needs constant labels of its own.
func NewCollector(p *pushlet.Pushlet, labels ...prometheus.Labels) prometheus.Collector {
	all := make(prometheus.Labels)
	for _, l := range labels {
		maps.Copy(all, l)
	}
	c := &collector{p: p}
	for _, m := range metrics {
		var variable []string
		if m.label != "" {
			variable = []string{m.label}
		}
		c.descs = append(c.descs, prometheus.NewDesc("pushlet_"+m.name, m.help, variable, all))
	}
	return c
}

type collector struct {
	p     *pushlet.Pushlet
	descs []*prometheus.Desc // of metrics, in their order
}

// A metric is one of those that the README lists.
type metric struct {
	name  string // after "pushlet_"
	kind  prometheus.ValueType
	label string // its name; empty: value has one entry, for ""
	help  string
	value func(pushlet.Stats) map[string]float64 // by the label's value; nil: none
}

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

var metrics = []metric{
	{"clients", gauge, "protocol", "Connections that are open.", func(s pushlet.Stats) map[string]float64 {
		return map[string]float64{"sse": float64(s.SSE), "websocket": float64(s.WebSocket)}
	}},
	{"users", gauge, "", "Distinct users that are connected here.", one(func(s pushlet.Stats) int { return s.Users })},
	{"topics", gauge, "", "Topics that have a follower or a message in history.", one(func(s pushlet.Stats) int { return s.Topics })},
	{"clients_behind", gauge, "", "Clients that are being fed from history.", one(func(s pushlet.Stats) int { return s.Behind })},
	{"queued_messages", gauge, "", "Messages that wait in clients' queues, counted for each client.", one(func(s pushlet.Stats) int { return s.Queued })},
	{"queued_bytes", gauge, "", "Bytes that wait in clients' queues, counted for each client; memory holds them once.", one(func(s pushlet.Stats) int { return s.QueuedBytes })},
	{"inbox_commands", gauge, "", "Commands that wait for the broker; near 128 it is at its limit.", one(func(s pushlet.Stats) int { return s.Inbox })},
	{"connections_total", counter, "", "Connections accepted.", one(func(s pushlet.Stats) uint64 { return s.Connected })},
	{"connections_refused_total", counter, "", "Connections refused: limits, authorization, bad requests.", one(func(s pushlet.Stats) uint64 { return s.Refused })},
	{"connections_ended_total", counter, "reason", "Connections ended.", reasons(func(s pushlet.Stats) map[pushlet.Reason]uint64 { return s.Ended })},
	{"published_total", counter, "", "Messages and broadcasts accepted.", one(func(s pushlet.Stats) uint64 { return s.Published })},
	{"delivered_total", counter, "", "Messages written to clients.", one(func(s pushlet.Stats) uint64 { return s.Delivered })},
	{"undelivered_total", counter, "reason", "Messages that were queued for a client and not written when its connection ended, by why it ended.", reasons(func(s pushlet.Stats) map[pushlet.Reason]uint64 { return s.UndeliveredReasons })},
	{"sent_bytes_total", counter, "", "Bytes written to clients, heartbeats and answers included.", one(func(s pushlet.Stats) uint64 { return s.BytesSent })},
	{"resumes_total", counter, "", "Cursors honoured in full.", one(func(s pushlet.Stats) uint64 { return s.Resumes })},
	{"gaps_total", counter, "reason", "Gap signals given, one for each topic.", reasons(func(s pushlet.Stats) map[pushlet.Reason]uint64 { return s.GapReasons })},
	{"fell_behind_total", counter, "", "Times a client's queue was full.", one(func(s pushlet.Stats) uint64 { return s.FellBehind })},
	{"slow_total", counter, "", "Times a slow client lost messages and the policy was applied.", one(func(s pushlet.Stats) uint64 { return s.Slow })},
	{"reports_dropped_total", counter, "", "Calls of OnSlow and OnUndelivered left out.", one(func(s pushlet.Stats) uint64 { return s.ReportsDropped })},
	{"publish_queue_messages", gauge, "", "Messages that wait for Redis or the store to take them. Only with one of these.", shared(func(s pushlet.Stats) int { return s.PublishQueue })},
	{"publish_queue_bytes", gauge, "", "Bytes of messages that wait for Redis or the store to take them. Only with one of these.", shared(func(s pushlet.Stats) int { return s.PublishQueueBytes })},
	{"redis_up", gauge, "", "Whether Redis answers: 1 or 0. Only in distributed mode.", redis(func(s pushlet.Stats) int { return up(s.RedisDown) })},
	{"redis_down_seconds", gauge, "", "For how long Redis has not answered. Only in distributed mode.", redis(func(s pushlet.Stats) float64 { return s.RedisDown.Seconds() })},
	{"redis_reads_total", counter, "", "Times a topic was read from Redis, because messages lacked. Only in distributed mode.", redis(func(s pushlet.Stats) uint64 { return s.RedisReads })},
	{"redis_rollbacks_total", counter, "", "Times Redis had lost messages that this instance had published. Only in distributed mode.", redis(func(s pushlet.Stats) uint64 { return s.Rollbacks })},
	{"ingested_total", counter, "", "Messages published by WithIngest. Only in distributed mode.", redis(func(s pushlet.Stats) uint64 { return s.Ingested })},
	{"bridged_total", counter, "", "Messages taken from channels by WithBridge. Only in distributed mode.", redis(func(s pushlet.Stats) uint64 { return s.Bridged })},
	{"rejected_total", counter, "", "Entries and messages of WithIngest and WithBridge that could not be published. Only in distributed mode.", redis(func(s pushlet.Stats) uint64 { return s.Rejected })},
	{"store_up", gauge, "", "Whether the store works: 1 or 0. Only with WithHistoryStore.", store(func(s pushlet.Stats) int { return up(s.StoreDown) })},
	{"store_down_seconds", gauge, "", "For how long the store has not worked. Only with WithHistoryStore.", store(func(s pushlet.Stats) float64 { return s.StoreDown.Seconds() })},
	{"store_reads_total", counter, "", "Times a topic was read from the store. Only with WithHistoryStore.", store(func(s pushlet.Stats) uint64 { return s.StoreReads })},
}

// A number is what a field of Stats is.
type number interface{ int | uint64 | float64 }

func one[T number](of func(pushlet.Stats) T) func(pushlet.Stats) map[string]float64 {
	return func(s pushlet.Stats) map[string]float64 { return map[string]float64{"": float64(of(s))} }
}

func redis[T number](of func(pushlet.Stats) T) func(pushlet.Stats) map[string]float64 {
	return where(func(s pushlet.Stats) bool { return s.Distributed }, of)
}

func store[T number](of func(pushlet.Stats) T) func(pushlet.Stats) map[string]float64 {
	return where(func(s pushlet.Stats) bool { return s.Stored }, of)
}

func shared[T number](of func(pushlet.Stats) T) func(pushlet.Stats) map[string]float64 {
	return where(func(s pushlet.Stats) bool { return s.Distributed || s.Stored }, of)
}

// where leaves a metric out of Pushlets that are not such.
func where[T number](is func(pushlet.Stats) bool, of func(pushlet.Stats) T) func(pushlet.Stats) map[string]float64 {
	return func(s pushlet.Stats) map[string]float64 {
		if !is(s) {
			return nil
		}
		return one(of)(s)
	}
}

func up(down time.Duration) int {
	if down > 0 {
		return 0
	}
	return 1
}

func reasons(of func(pushlet.Stats) map[pushlet.Reason]uint64) func(pushlet.Stats) map[string]float64 {
	return func(s pushlet.Stats) map[string]float64 {
		by := make(map[string]float64)
		for why, n := range of(s) {
			by[string(why)] = float64(n)
		}
		return by
	}
}

// Describe implements [prometheus.Collector].
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.p.Stats()
	for i, m := range metrics {
		by := m.value(s)
		for _, label := range slices.Sorted(maps.Keys(by)) {
			var values []string
			if m.label != "" {
				values = []string{label}
			}
			ch <- prometheus.MustNewConstMetric(c.descs[i], m.kind, by[label], values...)
		}
	}
}

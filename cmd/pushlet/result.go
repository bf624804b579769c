package main

import (
	"fmt"
	"time"
)

// A result is what bench has found, as -json prints it.
type result struct {
	URL         string  `json:"url"`
	Protocol    string  `json:"protocol"`
	Topics      int     `json:"topics"`
	Seconds     float64 `json:"seconds"` // of publishing or listening, and waiting for what came
	Interrupted bool    `json:"interrupted"`

	Connections struct {
		Wanted     int      `json:"wanted"`
		Opened     int64    `json:"opened"`
		Failed     int64    `json:"failed"`
		Reconnects int64    `json:"reconnects"`
		Seconds    float64  `json:"seconds"` // that it took to open them
		Failures   []reason `json:"failures"`
		Breaks     []reason `json:"breaks"`
	} `json:"connections"`

	ConnectMS  millis  `json:"connect_ms"`
	PublishMS  *millis `json:"publish_ms,omitempty"` // nil, as all below, if it only listened
	DeliveryMS *millis `json:"delivery_ms,omitempty"`

	Published  *int64 `json:"published,omitempty"`
	Planned    *int64 `json:"planned,omitempty"`
	Deliveries struct {
		Expected  *int64  `json:"expected,omitempty"`
		Received  int64   `json:"received"`
		PerSecond float64 `json:"per_second"`
	} `json:"deliveries"`
	Lost       *uint64 `json:"lost,omitempty"`
	Doubled    *uint64 `json:"doubled,omitempty"`
	OutOfOrder *uint64 `json:"out_of_order,omitempty"`
	Gaps       int64   `json:"gaps"`
	Others     int64   `json:"others"` // messages that were not of this run

	connect, publish, delivery summary
}

// millis are the durations of a summary in milliseconds.
type millis struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func (s summary) millis() millis {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return millis{ms(s.p50), ms(s.p90), ms(s.p99), ms(s.max)}
}

// result adds up. It is called when nothing runs any more. connecting is how long opening took,
// begun when publishing began, from the epoch, and took how long that was.
func (b *bench) result(connecting, begun, took time.Duration, interrupted bool) *result {
	r := &result{URL: redacted(b.target.url), Protocol: "sse", Topics: len(b.topics), Seconds: seconds(took), Interrupted: interrupted}
	if b.target.webSocket() {
		r.Protocol = "websocket"
	}
	c := &r.Connections
	c.Wanted, c.Opened, c.Failed, c.Reconnects = b.n, b.live.opened.Load(), b.live.failed.Load(), b.live.reconnects.Load()
	c.Seconds, c.Failures, c.Breaks = seconds(connecting), b.failures.top(10), b.breaks.top(10)
	r.connect = b.connect.summary()
	r.ConnectMS = r.connect.millis()
	r.Gaps, r.Others = b.live.gaps.Load(), b.live.others.Load()
	d := &r.Deliveries
	if b.push == nil {
		d.Received = b.live.deliveries.Load()
		d.PerSecond = rate(d.Received, took)
		return r
	}
	r.publish, r.delivery = b.publishing.summary(), b.delivery.summary()
	publishMS, deliveryMS := r.publish.millis(), r.delivery.millis()
	r.PublishMS, r.DeliveryMS = &publishMS, &deliveryMS
	published, planned, expected := b.live.published.Load(), b.planned(), b.expected()
	r.Published, r.Planned, d.Expected = &published, &planned, &expected
	d.Received = b.live.received.Load()
	d.PerSecond = rate(d.Received, time.Duration(b.live.last.Load())-begun)
	var lost, doubled, disordered uint64
	for _, l := range b.listeners {
		doubled += l.ledger.doubled
		disordered += l.ledger.disordered
		if l.opened {
			lost += l.ledger.lost(l.topic.confirmed)
		}
	}
	r.Lost, r.Doubled, r.OutOfOrder = &lost, &doubled, &disordered
	return r
}

// planned is how many messages would have been published in the time.
func (b *bench) planned() (n int64) {
	for i := range b.topics {
		n += int64(b.due(i, b.limit))
	}
	return n
}

func seconds(d time.Duration) float64 { return float64(d.Milliseconds()) / 1000 }

func rate(n int64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(int64(float64(n)/d.Seconds()*10)) / 10
}

// print shows the result.
func (b *bench) print(r *result) error {
	if b.json {
		return b.c.printJSON(r)
	}
	out := b.c.stdout
	times := grid{{"", "p50", "p90", "p99", "max"}, r.connect.row("connect")}
	if b.push != nil {
		times = append(times, r.publish.row("publish"), r.delivery.row("delivery"))
	}
	c := r.Connections
	connections := fmt.Sprintf("%s of %s in %s", thousands(c.Opened), thousands(int64(c.Wanted)), short(time.Duration(c.Seconds*float64(time.Second))))
	lines := [][2]string{{"connections", connections}, {"failed", thousands(c.Failed)}, {"reconnects", thousands(c.Reconnects)}}
	bad := map[string]bool{"failed": c.Failed > 0, "reconnects": c.Reconnects > 0}
	if b.push == nil {
		lines = append(lines, [2]string{"deliveries", fmt.Sprintf("%s, %s a second", thousands(r.Deliveries.Received), digits(r.Deliveries.PerSecond))})
	} else {
		lines = append(lines,
			[2]string{"published", fmt.Sprintf("%s of %s", thousands(*r.Published), thousands(*r.Planned))},
			[2]string{"deliveries", fmt.Sprintf("%s of %s, %s a second", thousands(r.Deliveries.Received), thousands(*r.Deliveries.Expected), digits(r.Deliveries.PerSecond))},
			[2]string{"lost", thousands(int64(*r.Lost))},
			[2]string{"doubled", thousands(int64(*r.Doubled))},
			[2]string{"out of order", thousands(int64(*r.OutOfOrder))})
		bad["published"] = *r.Published < *r.Planned && !r.Interrupted
		bad["lost"], bad["doubled"], bad["out of order"] = *r.Lost > 0, *r.Doubled > 0, *r.OutOfOrder > 0
	}
	if r.Gaps > 0 {
		lines = append(lines, [2]string{"gaps", thousands(r.Gaps)})
		bad["gaps"] = true
	}
	if b.push != nil && r.Others > 0 {
		lines = append(lines, [2]string{"others", thousands(r.Others) + " messages that are not of this run"})
	}
	text := out.paint(bold, r.Protocol+" "+escape(r.URL)) + "\n\n" + times.String() + "\n"
	for _, line := range lines {
		value := line[1]
		if bad[line[0]] {
			value = out.paint(alarm, value)
		}
		text += fmt.Sprintf("%-12s  %s\n", line[0], value)
	}
	for _, f := range c.Failures {
		text += fmt.Sprintf("failed %s × %s\n", thousands(int64(f.Count)), escape(f.Reason))
	}
	for _, f := range c.Breaks {
		text += fmt.Sprintf("broke %s × %s\n", thousands(int64(f.Count)), escape(f.Reason))
	}
	_, err := out.Write([]byte(text))
	return err
}

func (s summary) row(name string) []string {
	if s.count == 0 {
		return []string{name, "–", "–", "–", "–"}
	}
	return []string{name, short(s.p50), short(s.p90), short(s.p99), short(s.max)}
}

// verdict is nil if all was as it should be.
func (r *result) verdict(pushErr error) error {
	switch {
	case r.Lost != nil && *r.Lost+*r.Doubled+*r.OutOfOrder > 0:
		return lostError(fmt.Sprintf("of %s deliveries %s were lost, %s came twice, %s came out of order",
			thousands(*r.Deliveries.Expected), thousands(int64(*r.Lost)), thousands(int64(*r.Doubled)), thousands(int64(*r.OutOfOrder))))
	case r.Lost == nil && r.Gaps > 0:
		return lostError(fmt.Sprintf("the server has told of %s", count(int(r.Gaps), "gap")))
	case pushErr != nil:
		return pushErr
	case r.Connections.Failed > 0:
		return fmt.Errorf("%s of %s connections failed", thousands(r.Connections.Failed), thousands(int64(r.Connections.Wanted)))
	}
	return nil
}

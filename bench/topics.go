package main

import (
	"fmt"
	"time"
)

// topics measures many topics with one client each, published to in turn: what a
// publish costs when there is nothing to share.
func (b *bench) topics(protocol string) error {
	const clients = 10_000
	// With at most this many messages under way no client has two to take, so each
	// publish is a write in full speed too.
	const ahead = clients / 2
	sides, err := b.startSides(protocol, defaultHeartbeat, kindLoop, kindPushlet)
	if err != nil {
		return err
	}
	defer closeSides(sides)
	for _, s := range sides {
		if err := s.connect(ConnectArgs{Clients: clients, Topics: clients, Workers: 1, Check: true, ReportEvery: ahead / 8}); err != nil {
			return err
		}
	}
	warm := PublishArgs{Name: "topics-warm", Topics: clients, Rate: 20_000, Messages: clients}
	if err := inTurn(1, sides, func(s *side) error { _, _, err := s.publish(warm); return err }); err != nil {
		return err
	}
	window := b.window(3*time.Second, 1500*time.Millisecond)
	for _, rate := range []float64{5_000, 20_000, 0} {
		args := PublishArgs{Name: fmt.Sprintf("topics-%.0f", rate), Topics: clients}
		at := "full speed"
		if rate > 0 {
			args.Rate, args.Messages = rate, int(rate*window.Seconds())
			at = thousands(int(rate)) + " msg/s"
		} else {
			args.Duration, args.Ahead = window, ahead
		}
		cpu := row{Scenario: "topics", Protocol: protocol, What: "CPU per publish, 10,000 topics, " + at, Unit: "µs", Limit: atMost(ofRatio, 1.3)}
		p99 := row{Scenario: "topics", Protocol: protocol, What: "latency p99, " + at, Unit: "ms"}
		speed := row{Scenario: "topics", Protocol: protocol, What: "publishes a second, " + at, Unit: "k/s"}
		err := inTurn(b.rounds, sides, func(s *side) error {
			p, r, err := s.publish(args)
			if err != nil {
				return err
			}
			cpu.note(s, microseconds(p.CPU)/float64(p.Messages))
			p99.note(s, microseconds(r.P99)/1000)
			speed.note(s, float64(p.Messages)/p.Elapsed.Seconds()/1000)
			progress("%s %s: 10,000 topics, %s: %.2f µs a publish, %.0f k/s", s.kind, protocol, at,
				microseconds(p.CPU)/float64(p.Messages), float64(p.Messages)/p.Elapsed.Seconds()/1000)
			return nil
		})
		b.results.add(cpu, p99)
		if rate == 0 {
			b.results.add(speed)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

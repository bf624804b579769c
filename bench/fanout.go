package main

import (
	"fmt"
	"time"
)

// fanout measures one topic at a steady rate: what a delivery costs the server,
// and how long a message takes to each client.
func (b *bench) fanout(protocol string) error {
	for _, size := range []struct {
		clients int
		rate    float64
	}{{1_000, 30}, {10_000, 3}} {
		if err := b.fanoutTo(protocol, size.clients, size.rate); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) fanoutTo(protocol string, clients int, rate float64) error {
	sides, err := b.startSides(protocol, defaultHeartbeat, kindLoop, kindPushlet)
	if err != nil {
		return err
	}
	defer closeSides(sides)
	for _, s := range sides {
		if err := s.connect(ConnectArgs{Clients: clients, Topics: 1, Workers: 1, Check: true}); err != nil {
			return err
		}
	}
	name := fmt.Sprintf("fanout-%d", clients)
	window := b.window(5*time.Second, 2*time.Second)
	args := PublishArgs{Name: name, Topics: 1, Rate: rate, Messages: int(rate * window.Seconds())}
	warm := args
	warm.Name, warm.Messages = "fanout-warm", int(rate)
	if err := inTurn(1, sides, func(s *side) error { _, _, err := s.publish(warm); return err }); err != nil {
		return err
	}

	to := fmt.Sprintf("%s clients, %.0f msg/s", thousands(clients), rate)
	cpu := row{Scenario: "fanout", Protocol: protocol, What: "CPU per delivery, " + to, Unit: "µs", Limit: atMost(ofRatio, 1.15)}
	p50 := row{Scenario: "fanout", Protocol: protocol, What: "latency p50, " + to, Unit: "ms", Limit: atMost(ofRatio, 1.3)}
	p99 := row{Scenario: "fanout", Protocol: protocol, What: "latency p99, " + to, Unit: "ms", Limit: atMost(ofRatio, 1.3)}
	size := row{Scenario: "fanout", Protocol: protocol, What: "bytes per delivery", Unit: "B"}
	err = inTurn(b.rounds, sides, func(s *side) error {
		p, r, err := s.publish(args)
		if err != nil {
			return err
		}
		cpu.note(s, microseconds(p.CPU)/float64(p.Deliveries))
		p50.note(s, microseconds(r.P50)/1000)
		p99.note(s, microseconds(r.P99)/1000)
		size.note(s, float64(r.Bytes)/float64(p.Deliveries))
		progress("%s %s: %s: %.2f µs a delivery, p50 %v, p99 %v", s.kind, protocol, to,
			microseconds(p.CPU)/float64(p.Deliveries), r.P50.Round(10*time.Microsecond), r.P99.Round(10*time.Microsecond))
		return nil
	})
	b.results.add(cpu, p50, p99, size)
	return err
}

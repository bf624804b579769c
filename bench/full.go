package main

import "time"

// full measures one topic at full speed: the publisher is as fast as the slowest
// client allows, and a little ahead of it.
func (b *bench) full(protocol string) error {
	const clients, ahead = 1_000, 64
	sides, err := b.startSides(protocol, defaultHeartbeat, kindLoop, kindPushlet)
	if err != nil {
		return err
	}
	defer closeSides(sides)
	for _, s := range sides {
		if err := s.connect(ConnectArgs{Clients: clients, Topics: 1, Workers: 2, ReportEvery: 1}); err != nil {
			return err
		}
	}
	args := PublishArgs{Name: "full", Topics: 1, Ahead: ahead, Duration: b.window(4*time.Second, 2*time.Second)}
	warm := args
	warm.Name, warm.Duration = "full-warm", time.Second
	if err := inTurn(1, sides, func(s *side) error { _, _, err := s.publish(warm); return err }); err != nil {
		return err
	}

	speed := row{Scenario: "full", Protocol: protocol, What: "deliveries a second, 1,000 clients", Unit: "M/s", Limit: atLeast(ofRatio, 10)}
	cpu := row{Scenario: "full", Protocol: protocol, What: "CPU per delivery", Unit: "µs", Limit: atMost(ofRatio, 0.08)}
	mallocs := row{Scenario: "full", Protocol: protocol, What: "allocations per delivery", Limit: atMost(ofValue, 0.05)}
	err = inTurn(b.rounds, sides, func(s *side) error {
		p, _, err := s.publish(args)
		if err != nil {
			return err
		}
		n := float64(p.Deliveries)
		speed.note(s, n/p.Elapsed.Seconds()/1e6)
		cpu.note(s, microseconds(p.CPU)/n)
		mallocs.note(s, float64(p.Mallocs)/n)
		progress("%s %s: full speed: %.2f M deliveries/s, %.3f µs each", s.kind, protocol, n/p.Elapsed.Seconds()/1e6, microseconds(p.CPU)/n)
		return nil
	})
	b.results.add(speed, cpu, mallocs)
	return err
}

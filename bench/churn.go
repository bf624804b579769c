package main

import (
	"fmt"
	"math"
	"time"
)

// churn measures connecting and leaving as fast as it goes, and what that leaves behind.
func (b *bench) churn(protocol string) error {
	sides, err := b.startSides(protocol, defaultHeartbeat, kindBare, kindPushlet)
	if err != nil {
		return err
	}
	defer closeSides(sides)

	// What a first wave leaves in pools and in the runtime's lists is not a leak.
	window := b.window(20*time.Second, 6*time.Second) / time.Duration(b.rounds)
	before := make(map[*side]Footprint)
	for _, s := range sides {
		if _, _, err := s.churn(min(window, 3*time.Second)); err != nil {
			return err
		}
		if before[s], err = s.settle("churn-before"); err != nil {
			return err
		}
	}

	// No worse than the baseline, but for what a shared machine can tell.
	const noWorse = 0.95
	speed := row{Scenario: "churn", Protocol: protocol, What: "connects a second", Unit: "k/s", Limit: atLeast(ofRatio, noWorse)}
	cpu := row{Scenario: "churn", Protocol: protocol, What: "CPU per connect", Unit: "µs"}
	connects := make(map[*side]int)
	err = inTurn(b.rounds, sides, func(s *side) error {
		n, cost, err := s.churn(window)
		if err != nil {
			return err
		}
		connects[s] += n
		speed.note(s, float64(n)/window.Seconds()/1000)
		cpu.note(s, microseconds(cost.CPU)/float64(n))
		progress("%s %s: connect and leave: %.1f k/s, %.0f µs each", s.kind, protocol, float64(n)/window.Seconds()/1000, microseconds(cost.CPU)/float64(n))
		return nil
	})
	b.results.add(speed, cpu)
	if err != nil {
		return err
	}

	what := fmt.Sprintf("left behind after %s: ", thousands(connects[sides[1]]))
	clients := row{Scenario: "churn", Protocol: protocol, What: what + "clients", Limit: atMost(ofValue, 0)}
	goroutines := row{Scenario: "churn", Protocol: protocol, What: "left behind: goroutines", Limit: atMost(ofValue, 2)}
	memory := row{Scenario: "churn", Protocol: protocol, What: "left behind: RSS", Unit: "MB", Limit: atMost(ofValue, 4)}
	for _, s := range sides {
		after, err := s.settle("churn-after")
		if err != nil {
			return err
		}
		clients.note(s, float64(after.Clients))
		goroutines.note(s, float64(after.Goroutines-before[s].Goroutines))
		memory.note(s, float64(after.RSS-before[s].RSS)/(1<<20))
	}
	b.results.add(clients, goroutines, memory)
	return nil
}

// churn lets clients come and go for a time. The cost includes the end of the last one.
func (s *side) churn(d time.Duration) (connects int, cost Usage, err error) {
	if err := s.server.Call("Server.Begin", s.named("churn"), nil); err != nil {
		return 0, cost, err
	}
	// Two hundred at a time keep the server busy and its accept queue short. Each
	// connection has a topic that no other has had.
	args := ChurnArgs{Duration: d, ConnectArgs: ConnectArgs{Addr: s.addr, Protocol: s.protocol, Clients: 200, Topics: math.MaxInt32, Workers: 1}}
	if err := s.load.Call("Load.Churn", args, &connects); err != nil {
		return 0, cost, fmt.Errorf("%s: churn: %w", s.kind, err)
	}
	var left int
	if err := s.server.Call("Server.AwaitClients", 0, &left); err != nil {
		return 0, cost, err
	}
	if left > 0 {
		progress("%s %s: %d clients are still there after %v", s.kind, s.protocol, left, patience)
	}
	err = s.server.Call("Server.End", None{}, &cost)
	return connects, cost, err
}

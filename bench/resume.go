package main

import (
	"fmt"
	"time"
)

// resume measures a storm of reconnects: everyone comes back at once and has
// missed a hundred messages.
func (b *bench) resume(protocol string) error {
	for _, topics := range []int{1, 100} {
		if err := b.resumeOn(protocol, topics); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) resumeOn(protocol string, topics int) error {
	const missed = 100
	clients := b.sized(10_000, 2_000)
	s, err := b.startSide(kindPushlet, protocol, defaultHeartbeat)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.connect(ConnectArgs{Clients: clients, Topics: topics, Workers: 1, Check: true}); err != nil {
		return err
	}
	if err := s.load.Call("Load.Leave", None{}, nil); err != nil {
		return err
	}
	var left int
	if err := s.server.Call("Server.AwaitClients", 0, &left); err != nil {
		return err
	}
	if left > 0 {
		return fmt.Errorf("%d of %d clients that left are still there", left, clients)
	}
	if _, _, err := s.publish(PublishArgs{Name: "resume-history", Topics: topics, Rate: 20_000, Messages: missed * topics}); err != nil {
		return err
	}
	idle, err := s.settle("resume-idle")
	if err != nil {
		return err
	}

	if err := s.server.Call("Server.Begin", s.named(fmt.Sprintf("resume-%d", topics)), nil); err != nil {
		return err
	}
	var took time.Duration
	failure := s.load.Call("Load.Resume", missed, &took)
	var cost Usage
	if err := s.server.Call("Server.End", None{}, &cost); err != nil {
		return err
	}
	var storm Footprint
	if err := s.server.Call("Server.Footprint", None{}, &storm); err != nil {
		return err
	}
	if failure == nil {
		// A live message is the next one for everyone, if nothing came twice.
		_, _, failure = s.publish(PublishArgs{Name: "resume-live", Topics: topics, Rate: 20_000, Messages: topics})
	}
	if failure != nil {
		return fmt.Errorf("not exact: %w", failure)
	}

	of := fmt.Sprintf("%s clients × %d messages, topics: %d", thousands(clients), missed, topics)
	line := func(what, unit string, v float64) row {
		return row{Scenario: "resume", Protocol: protocol, What: what, Unit: unit, Pushlet: []float64{v}}
	}
	b.results.add(
		line("all exact, in order; "+of, "s", took.Seconds()),
		line("peak RSS over the server without clients", "MB", float64(storm.Peak-idle.RSS)/(1<<20)),
		line("server CPU", "s", cost.CPU.Seconds()))
	progress("resume %s: %s: %v, CPU %v, peak %d MB", protocol, of, took.Round(time.Millisecond), cost.CPU.Round(time.Millisecond), storm.Peak>>20)
	return nil
}

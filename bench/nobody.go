package main

import "fmt"

// nobody measures publishing to a topic that nobody follows.
func (b *bench) nobody() error {
	s, err := b.startSide(kindPushlet, protocolSSE, defaultHeartbeat)
	if err != nil {
		return err
	}
	defer s.close()
	for _, goroutines := range []int{1, 8} {
		args := NobodyArgs{Goroutines: goroutines, Messages: b.sized(1_000_000, 200_000)}
		by := fmt.Sprintf("%d at once", goroutines)
		if goroutines == 1 {
			by = "one publisher"
		}
		speed := row{Scenario: "nobody", What: "time per publish, " + by, Unit: "ns", Limit: atMost(ofValue, 1000)}
		// One for the history's copy of the message, and one more.
		mallocs := row{Scenario: "nobody", What: "allocations per publish, " + by, Limit: atMost(ofValue, 2.01)}
		cpu := row{Scenario: "nobody", What: "CPU per publish, " + by, Unit: "ns"}
		for range b.rounds {
			var u Usage
			if err := s.server.Call("Server.Nobody", args, &u); err != nil {
				return err
			}
			n := float64(args.Messages)
			speed.Pushlet = append(speed.Pushlet, float64(u.Elapsed.Nanoseconds())/n)
			mallocs.Pushlet = append(mallocs.Pushlet, float64(u.Mallocs)/n)
			cpu.Pushlet = append(cpu.Pushlet, float64(u.CPU.Nanoseconds())/n)
		}
		b.results.add(speed, mallocs, cpu)
		progress("nobody: %s: %.0f ns", by, median(speed.Pushlet))
	}
	return nil
}

package main

import (
	"fmt"
	"time"
)

// idle measures what a connection costs that waits for messages: each one on a
// topic of its own, after a heartbeat, when the garbage is gone.
func (b *bench) idle(protocol string) error {
	clients := b.sized(50_000, 10_000)
	if most := b.files - 1_000; clients > most {
		progress("only %s files may be open: %s clients, not %s", thousands(b.files), thousands(most), thousands(clients))
		clients = most
	}
	line := func(what, unit string) row {
		return row{Scenario: "idle", Protocol: protocol, What: what, Unit: unit}
	}
	memory := line(fmt.Sprintf("RSS per connection, %s", thousands(clients)), "KB")
	memory.Limit = atMost(ofValue, 5)
	if protocol == protocolWebSocket {
		memory.Limit = atMost(ofValue, 6.5)
	}
	heap, stacks := line("of it heap", "KB"), line("of it stacks", "KB")
	goroutines := line("goroutines per connection", "")
	goroutines.Limit = atMost(ofValue, 1.001)

	for _, kind := range []string{kindLoop, kindPushlet} {
		empty, full, s, err := b.idleConnections(kind, protocol, clients)
		if err != nil {
			return err
		}
		n := float64(clients)
		memory.note(s, float64(full.RSS-empty.RSS)/1024/n)
		heap.note(s, float64(full.Heap-empty.Heap)/1024/n)
		stacks.note(s, float64(full.Stacks-empty.Stacks)/1024/n)
		goroutines.note(s, float64(full.Goroutines-empty.Goroutines)/n)
	}
	b.results.add(memory, heap, stacks, goroutines)
	return nil
}

// idleConnections returns what a server holds without and with so many clients.
func (b *bench) idleConnections(kind, protocol string, clients int) (empty, full Footprint, s *side, err error) {
	// Short, so that the run need not take half a minute to see what a heartbeat leaves behind.
	const heartbeat = 10 * time.Second
	s, err = b.startSide(kind, protocol, heartbeat)
	if err != nil {
		return empty, full, nil, err
	}
	defer s.close()
	if empty, err = s.settle("empty"); err != nil {
		return empty, full, s, err
	}
	if err := s.connect(ConnectArgs{Clients: clients, Topics: clients, Workers: 1}); err != nil {
		return empty, full, s, err
	}
	if kind == kindPushlet {
		time.Sleep(heartbeat + heartbeat/5)
	}
	if full, err = s.settle("idle"); err != nil {
		return empty, full, s, err
	}
	if full.Clients != clients {
		return empty, full, s, fmt.Errorf("%s: %d of %d connections are left", kind, full.Clients, clients)
	}
	return empty, full, s, nil
}

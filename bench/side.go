package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

// A side is a server with the load generator that belongs to it. Both sides of a
// comparison are up at the same time and are measured in turn, in windows of some
// seconds, so that what else the machine does falls on both alike; a side whose
// turn it is not has connections that wait, and costs nothing.
type side struct {
	kind, protocol string
	server, load   *process
	addr           string
}

func (b *bench) startSide(kind, protocol string, heartbeat time.Duration) (*side, error) {
	fromLoad, toServer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer fromLoad.Close()
	defer toServer.Close()
	s := &side{kind: kind, protocol: protocol}
	s.server, err = spawn(fromLoad, roleServer, kind, protocol, heartbeat.String(), b.profiles)
	if err != nil {
		return nil, err
	}
	s.load, err = spawn(toServer, roleLoad)
	if err != nil {
		s.close()
		return nil, err
	}
	if err := s.server.Call("Server.Addr", None{}, &s.addr); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// startSides starts a side of each kind.
func (b *bench) startSides(protocol string, heartbeat time.Duration, kinds ...string) ([]*side, error) {
	var sides []*side
	for _, kind := range kinds {
		s, err := b.startSide(kind, protocol, heartbeat)
		if err != nil {
			closeSides(sides)
			return nil, err
		}
		sides = append(sides, s)
	}
	return sides, nil
}

func closeSides(sides []*side) {
	for _, s := range sides {
		s.close()
	}
}

// close ends both processes. How they end says nothing about what was measured, so
// it is only shown.
func (s *side) close() {
	for _, p := range []*process{s.load, s.server} {
		if p == nil {
			continue
		}
		if err := p.close(); err != nil {
			fmt.Fprintf(os.Stderr, "bench: end of the %s side: %v\n", s.kind, err)
		}
	}
}

// connect connects the clients that args describes.
func (s *side) connect(args ConnectArgs) error {
	args.Addr, args.Protocol = s.addr, s.protocol
	var took time.Duration
	if err := s.load.Call("Load.Connect", args, &took); err != nil {
		return fmt.Errorf("%s: connect: %w", s.kind, err)
	}
	progress("%s %s: %s clients in %v", s.kind, s.protocol, thousands(args.Clients), took.Round(10*time.Millisecond))
	return nil
}

// publish runs the publisher, and replies with what it cost and what arrived.
func (s *side) publish(args PublishArgs) (p Published, r Received, err error) {
	args.Name = s.named(args.Name)
	if err := s.server.Call("Server.Publish", args, &p); err != nil {
		return p, r, fmt.Errorf("%s: publish: %w", s.kind, err)
	}
	if err := s.load.Call("Load.Collect", None{}, &r); err != nil {
		return p, r, fmt.Errorf("%s: collect: %w", s.kind, err)
	}
	if r.Lost > 0 || r.Disorder > 0 {
		return p, r, fmt.Errorf("%s: %d connections lost, %d messages out of order", s.kind, r.Lost, r.Disorder)
	}
	return p, r, nil
}

// settle returns what the server holds when the garbage is gone.
func (s *side) settle(name string) (f Footprint, err error) {
	err = s.server.Call("Server.Settle", s.named(name), &f)
	return f, err
}

// named is the name of this side's profile of a measurement.
func (s *side) named(measurement string) string {
	return measurement + "-" + s.kind + "-" + s.protocol
}

// inTurn calls measure for each side in each round. Who begins alternates.
func inTurn(rounds int, sides []*side, measure func(*side) error) error {
	for round := range rounds {
		for i := range sides {
			if round%2 == 1 {
				i = len(sides) - 1 - i
			}
			if err := measure(sides[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// thousands formats n with a comma for each three digits.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

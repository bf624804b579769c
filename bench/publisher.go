package main

import "time"

// PublishArgs describes a run of the publisher.
type PublishArgs struct {
	Name   string // of the CPU profile, if profiles are wanted
	Topics int    // messages go to topics 0 to Topics-1 in turn

	// Either the publisher is paced: so many messages, so many a second …
	Rate     float64
	Messages int
	// … or, if Rate is 0, it goes as fast as it may for some time: with one topic at
	// most Ahead messages ahead of the slowest connection, with more topics at most
	// Ahead messages that have not arrived.
	Duration time.Duration
	Ahead    int
}

// Published is the outcome of a run of the publisher.
type Published struct {
	Usage
	Messages   int
	Deliveries int // messages that arrived, each counted once for each connection
}

// tick is the shortest sleep of a paced publisher. Waking up more often than this
// would cost as much as the publishing that is to be measured.
const tick = 2 * time.Millisecond

// Publish runs the publisher, and returns when everything it has published has
// arrived. So the measurement holds the whole cost of exactly these messages.
func (s *Server) Publish(args PublishArgs, reply *Published) error {
	// How many connections follow each topic; all scenarios spread them evenly.
	followers := s.target.clients() / args.Topics
	if err := s.Begin(args.Name, nil); err != nil {
		return err
	}
	before := s.sent
	var err error
	if args.Rate > 0 {
		err = s.paced(args)
	} else {
		err = s.unpaced(args, followers)
	}
	if err != nil {
		return err
	}
	if followers > 0 {
		if err := s.feedback.wait(func(_, total int) bool { return total >= s.sent*followers }); err != nil {
			return err
		}
	}
	reply.Messages = s.sent - before
	reply.Deliveries = reply.Messages * followers
	return s.End(None{}, &reply.Usage)
}

func (s *Server) paced(args PublishArgs) error {
	start := time.Now()
	for n := 0; n < args.Messages; {
		due := min(args.Messages, 1+int(args.Rate*time.Since(start).Seconds()))
		for ; n < due; n++ {
			if err := s.publishNext(args.Topics); err != nil {
				return err
			}
		}
		next := start.Add(time.Duration(float64(n) / args.Rate * float64(time.Second)))
		time.Sleep(max(tick, time.Until(next)))
	}
	return nil
}

func (s *Server) unpaced(args PublishArgs, followers int) error {
	mayGoOn := func(least, total int) bool {
		if args.Topics == 1 {
			return s.sent < least+args.Ahead
		}
		return s.sent*followers < total+args.Ahead
	}
	for start := time.Now(); time.Since(start) < args.Duration; {
		if err := s.feedback.wait(mayGoOn); err != nil {
			return err
		}
		if err := s.publishNext(args.Topics); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) publishNext(topics int) error {
	var buf [messageSize]byte
	data := string(appendMessage(buf[:0], time.Now(), s.sent/topics))
	k := s.sent % topics
	s.sent++
	return s.target.publish(k, data)
}

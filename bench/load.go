package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Load is the load role: many clients in few threads. Its exported methods have
// the form net/rpc asks for; the parent calls them one after another.
type Load struct {
	workers []*worker
}

// runLoad is the main function of the load role.
func runLoad() error {
	load := &Load{}
	defer load.stop()
	return answerCalls(load)
}

// ConnectArgs describes the clients of a load generator.
type ConnectArgs struct {
	Addr     string
	Protocol string
	Clients  int
	Topics   int // client i follows topic i modulo Topics
	Workers  int // threads

	// Check sees to it that messages come in order, and notes latencies; else
	// messages are only counted.
	Check bool

	// ReportEvery is after how much progress a worker reports to the server's
	// publisher: messages to its slowest connection if there is one topic, else
	// messages to all. If it is 0, workers report only when nothing has come for
	// a while, as at the end of a paced run.
	ReportEvery int
}

// Connect connects all clients, and replies with the time that took.
func (l *Load) Connect(args ConnectArgs, reply *time.Duration) error {
	start := time.Now()
	if err := l.start(args, false); err != nil {
		return err
	}
	for _, w := range l.workers {
		w.do(w.dialAll)
	}
	err := l.await(func(w *worker) bool { return w.opened >= len(w.conns) })
	*reply = time.Since(start)
	return err
}

func (w *worker) dialAll() {
	for i := range w.conns {
		w.free = append(w.free, i)
	}
	slices.Reverse(w.free) // they are taken from the end
}

// start starts the workers.
func (l *Load) start(args ConnectArgs, churn bool) error {
	server, err := netip.ParseAddrPort(args.Addr)
	if err != nil {
		return err
	}
	first := 0
	for id := range args.Workers {
		conns := args.Clients / args.Workers
		if id == 0 {
			conns += args.Clients % args.Workers
		}
		config := workerConfig{ConnectArgs: args, server: server, feedback: feedbackFD, churn: churn, id: id}
		w, err := newWorker(config, first, conns)
		if err != nil {
			return err
		}
		first += conns
		l.workers = append(l.workers, w)
		go w.run()
	}
	return nil
}

func (l *Load) stop() {
	for _, w := range l.workers {
		w.do(func() { w.stopped = true })
	}
	l.workers = nil
}

// await waits until done says of every worker that it is done. It gives up if a
// worker has failed, or if that takes very long.
func (l *Load) await(done func(*worker) bool) error {
	const limit = 2 * time.Minute
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		finished := 0
		var failed error
		for _, w := range l.workers {
			w.do(func() {
				if done(w) {
					finished++
				}
				failed = errors.Join(failed, w.failed)
			})
		}
		if failed != nil {
			return failed
		}
		if finished == len(l.workers) {
			return nil
		}
	}
	return fmt.Errorf("the clients were not done in %v", limit)
}

// Received is what clients have received since the last call of Collect.
type Received struct {
	Messages int // since they connected
	Bytes    int
	Lost     int // connections that the server closed, since they connected
	Disorder int // messages out of order, since they connected
	P50, P99 time.Duration
	CPU      time.Duration // of the load generator, since it started
}

// Collect replies with what clients have received.
func (l *Load) Collect(_ None, reply *Received) error {
	var latencies []time.Duration
	for _, w := range l.workers {
		w.do(func() {
			reply.Messages += w.total
			reply.Bytes += w.bytes
			reply.Lost += w.lost
			reply.Disorder += w.disorder
			latencies = append(latencies, w.latencies...)
			w.bytes, w.latencies = 0, w.latencies[:0]
		})
	}
	slices.Sort(latencies)
	reply.P50, reply.P99 = quantile(latencies, 0.50), quantile(latencies, 0.99)
	reply.CPU = cpuTime()
	return nil
}

// Leave closes all connections, which keep the ID from which they can resume.
func (l *Load) Leave(None, *None) error {
	for _, w := range l.workers {
		w.do(func() {
			for i := range w.conns {
				w.leave(i)
			}
			w.opened = 0
		})
	}
	return nil
}

// Resume connects all clients again at once, each from where it was, and replies
// with the time until each has received n messages since it connected first.
func (l *Load) Resume(n int, reply *time.Duration) error {
	start := time.Now()
	for _, w := range l.workers {
		w.do(func() {
			for i := range w.conns {
				w.conns[i].resuming = true
			}
			w.dialAll()
		})
	}
	err := l.Await(n, nil)
	*reply = time.Since(start)
	return err
}

// Await waits until every client has received n messages since it connected first.
func (l *Load) Await(n int, _ *None) error {
	return l.await(func(w *worker) bool { return int(w.least) >= n })
}

// ChurnArgs describes clients that leave when they have received the first event.
type ChurnArgs struct {
	ConnectArgs
	Duration time.Duration
}

// Churn connects and leaves as fast as it goes, with at most Clients connections
// at a time, and replies with how often.
func (l *Load) Churn(args ChurnArgs, reply *int) error {
	if err := l.start(args.ConnectArgs, true); err != nil {
		return err
	}
	for _, w := range l.workers {
		w.do(w.dialAll)
	}
	time.Sleep(args.Duration)
	var failed error
	for _, w := range l.workers {
		w.do(func() {
			*reply += w.opened
			failed = errors.Join(failed, w.failed)
			w.free = nil
			for i := range w.conns {
				w.leave(i)
			}
		})
	}
	l.stop()
	return failed
}

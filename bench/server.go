package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A target is what is measured: Pushlet, or one of the baselines.
type target interface {
	// serve answers /events?topic=… with Server-Sent Events and /ws?topic=… with
	// WebSocket, until l is closed.
	serve(l net.Listener) error
	// publish sends data to the connections that follow topic k.
	publish(k int, data string) error
	// clients is the number of open connections.
	clients() int
}

func newTarget(kind, protocol string, heartbeat time.Duration) (target, error) {
	switch kind {
	case kindLoop:
		return newLoop(protocol), nil
	case kindBare:
		return newBare(), nil
	case kindPushlet:
		return newPushlet(heartbeat)
	}
	return nil, fmt.Errorf("no such server: %q", kind)
}

// Kinds of server.
const (
	kindLoop    = "loop"    // the baseline: writes ready bytes, and nothing else
	kindBare    = "bare"    // the baseline for connecting: a bare net/http handler
	kindPushlet = "pushlet" // the library
)

// topicName is the name under which load and server know topic k.
func topicName(k int) string { return "t" + strconv.Itoa(k) }

func topicNumber(name string) (int, error) { return strconv.Atoi(strings.TrimPrefix(name, "t")) }

// Server is the server role: a target, its publisher, and the calls by which the
// parent drives and measures them. Its exported methods have the form net/rpc
// asks for; the parent calls them one after another, never at once.
type Server struct {
	target   target
	addr     string
	feedback *feedback
	profiles string // directory for CPU and heap profiles; none are written if empty

	sent int // messages published since the start

	// The running measurement.
	began   time.Time
	cpu     time.Duration
	mallocs uint64
	profile *os.File
}

// runServer is the main function of the server role.
func runServer(kind, protocol string, heartbeat time.Duration, profiles string) error {
	t, err := newTarget(kind, protocol, heartbeat)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		if err := t.serve(l); err != nil {
			fmt.Fprintln(os.Stderr, "bench: serve:", err)
		}
	}()
	f := newFeedback()
	// Without O_NONBLOCK each report would block and wake a thread, and not just a goroutine.
	if err := syscall.SetNonblock(feedbackFD, true); err != nil {
		return fmt.Errorf("feedback pipe: %w", err)
	}
	go func() { _ = f.read(os.NewFile(feedbackFD, "feedback")) }() // ends with the process
	return answerCalls(&Server{target: t, addr: l.Addr().String(), feedback: f, profiles: profiles})
}

// None is the argument or the reply of a call that has none.
type None struct{}

// Addr replies with the address on which the target listens.
func (s *Server) Addr(_ None, reply *string) error {
	*reply = s.addr
	return nil
}

// Footprint is what a server holds.
type Footprint struct {
	RSS, Peak  int64 // bytes
	Heap       int64 // of it for objects, dead ones included
	Stacks     int64 // of it for goroutines
	Goroutines int
	Clients    int
}

// Footprint replies with what the server holds at this moment.
func (s *Server) Footprint(_ None, reply *Footprint) error {
	rss, peak, err := memory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	*reply = Footprint{
		RSS:        rss,
		Peak:       peak,
		Heap:       int64(m.HeapInuse),
		Stacks:     int64(m.StackInuse),
		Goroutines: runtime.NumGoroutine(),
		Clients:    s.target.clients(),
	}
	return err
}

// Settle replies with what the server holds once the garbage is gone. Several
// rounds, because a pool gives up its content in the second one and the stacks of
// goroutines shrink only during a collection. name is that of the heap profile, if
// profiles are wanted.
func (s *Server) Settle(name string, reply *Footprint) error {
	for range 4 {
		runtime.GC()
		time.Sleep(100 * time.Millisecond)
	}
	debug.FreeOSMemory()
	if err := s.Footprint(None{}, reply); err != nil || s.profiles == "" {
		return err
	}
	f, err := s.createProfile(name + ".heap")
	if err != nil {
		return err
	}
	defer f.Close()
	return pprof.Lookup("heap").WriteTo(f, 0)
}

func (s *Server) createProfile(name string) (*os.File, error) {
	return os.Create(filepath.Join(s.profiles, name+".pprof"))
}

// AwaitClients waits, within limits, until n connections are open, and replies
// with how many there are.
func (s *Server) AwaitClients(n int, reply *int) error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if s.target.clients() == n {
			break
		}
	}
	*reply = s.target.clients()
	return nil
}

// Usage is what the server process spent in one measurement.
type Usage struct {
	Elapsed time.Duration
	CPU     time.Duration // user and system
	Mallocs uint64        // heap allocations
}

// Begin starts a measurement. name is that of the CPU profile, if profiles are wanted.
func (s *Server) Begin(name string, _ *None) error {
	if err := resetPeak(); err != nil {
		return err
	}
	if s.profiles != "" {
		f, err := s.createProfile(name)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		s.profile = f
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s.mallocs = m.Mallocs
	s.cpu = cpuTime()
	s.began = time.Now()
	return nil
}

// End ends the measurement that Begin started.
func (s *Server) End(_ None, reply *Usage) error {
	reply.Elapsed = time.Since(s.began)
	reply.CPU = cpuTime() - s.cpu
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	reply.Mallocs = m.Mallocs - s.mallocs
	if s.profile != nil {
		pprof.StopCPUProfile()
		s.profile.Close()
		s.profile = nil
	}
	return nil
}

// NobodyArgs describes publishing to a topic that nobody follows.
type NobodyArgs struct {
	Goroutines int // that publish at the same time
	Messages   int // all together
}

// Nobody publishes to a topic that nobody follows, as fast as it goes.
func (s *Server) Nobody(args NobodyArgs, reply *Usage) error {
	data := string(appendMessage(nil, time.Now(), 0))
	// The first message makes what the topic needs, which is not what is asked here.
	if err := s.target.publish(0, data); err != nil {
		return err
	}
	if err := s.Begin(fmt.Sprintf("nobody-%d", args.Goroutines), nil); err != nil {
		return err
	}
	errs := make(chan error, args.Goroutines)
	var publishers sync.WaitGroup
	for range args.Goroutines {
		publishers.Go(func() {
			for range args.Messages / args.Goroutines {
				if err := s.target.publish(0, data); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	publishers.Wait()
	if err := s.End(None{}, reply); err != nil {
		return err
	}
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

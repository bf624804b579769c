package chaostest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/internal/redistest"
)

// Failovers by Sentinel, and what they lose.

// startSentinel starts a group and waits until its replicas really follow the master: Redis
// says that they do before they have asked for anything, which takes a second.
func startSentinel(t *testing.T) *redistest.Sentinel {
	t.Helper()
	s := redistest.StartSentinel(t)
	conn := s.Servers[0].Client().Conn()
	defer conn.Close()
	must(t, conn.Set(t.Context(), "first", "", 0).Err())
	if n, err := conn.Wait(t.Context(), 2, patience).Result(); n != 2 {
		t.Fatalf("%d replicas follow the master: %v", n, err)
	}
	return s
}

// sentinelClients returns what makes a client of a group for each instance.
func sentinelClients(s *redistest.Sentinel) func(int) redis.UniversalClient {
	return func(int) redis.UniversalClient { return s.Client() }
}

// withAcks are the options for waiting for a replica or not.
func withAcks(acks bool) []pushlet.Option {
	if acks {
		return []pushlet.Option{pushlet.WithReplicaAcks(1, time.Second)}
	}
	return nil
}

// eachAcks runs a test with and without waiting for a replica, with -short only the latter.
func eachAcks(t *testing.T, test func(*testing.T, []pushlet.Option)) {
	for _, acks := range []bool{false, true} {
		if testing.Short() && acks {
			continue
		}
		t.Run(fmt.Sprintf("acks=%t", acks), func(t *testing.T) {
			t.Parallel()
			test(t, withAcks(acks))
		})
	}
}

// TestSentinelKill kills the master, so that a replica takes over.
func TestSentinelKill(t *testing.T) {
	t.Parallel()
	eachAcks(t, func(t *testing.T, options []pushlet.Option) {
		s := startSentinel(t)
		w := newWorld(t, settings{redis: sentinelClients(s), options: options, reasons: []string{"rolled_back"}})
		w.run(func() {
			for range int(lasts(1, 3)) {
				old := s.Master()
				old.Kill()
				s.WaitForMaster(old)
				w.ready()
				time.Sleep(lasts(100*time.Millisecond, time.Second))
				old.Restart()
				s.WaitForReplicas(2)
				time.Sleep(lasts(0, 6*time.Second)) // until the sentinels may do it again
			}
		})
		if d := w.during(); d.refused+d.uncertain == 0 || !w.noticed() {
			t.Errorf("nobody noticed the fault: %v", d)
		}
	})
}

// TestSentinelFailover has the sentinels replace a master that is well.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	eachAcks(t, func(t *testing.T, options []pushlet.Option) {
		s := startSentinel(t)
		w := newWorld(t, settings{redis: sentinelClients(s), options: options, reasons: []string{"rolled_back"}})
		w.run(func() {
			for range int(lasts(1, 3)) {
				s.Failover()
				w.ready()
				s.WaitForReplicas(2)
				time.Sleep(lasts(0, 6*time.Second))
			}
		})
		if !w.noticed() {
			t.Error("no instance has lost its connection")
		}
	})
}

// TestSentinelLag has a replica take over that lacks messages which the master had
// acknowledged.
func TestSentinelLag(t *testing.T) {
	t.Parallel()
	s := startSentinel(t)
	w := newWorld(t, settings{redis: sentinelClients(s), reasons: []string{"rolled_back"}})
	var lost []message
	w.run(func() {
		old := s.Master()
		replicas := replicasOf(s, old)
		for _, r := range replicas {
			r.Pause()
		}
		// What is sent to them now they would get later. So cut them off.
		must(t, old.Client().ClientKillByFilter(t.Context(), "TYPE", "replica").Err())
		time.Sleep(lasts(300*time.Millisecond, time.Second))
		for i := range 30 {
			m := w.publish(w.instances[i%len(w.instances)], w.names[i%len(w.names)], 10, 5*time.Second)
			if m.outcome == acked {
				lost = append(lost, m)
			}
		}
		old.Kill()
		for _, r := range replicas {
			r.Continue()
		}
		s.WaitForMaster(old)
		w.ready()
		old.Restart()
		s.WaitForReplicas(2)
	})
	if len(lost) < 10 {
		t.Errorf("only %d messages were lost", len(lost))
	}
	w.expectGap("rolled_back")
}

func replicasOf(s *redistest.Sentinel, master *redistest.Server) (replicas []*redistest.Server) {
	for _, server := range s.Servers {
		if server != master {
			replicas = append(replicas, server)
		}
	}
	return replicas
}

// TestSentinelSplit cuts a master off from everything but one instance, for which it goes
// on working while a replica has taken over for the others. When that instance comes over,
// what it has published meanwhile is lost.
func TestSentinelSplit(t *testing.T) {
	t.Parallel()
	s := startSentinel(t)
	old := s.Master()
	// The instance has a user of its own, so that all others can be locked out.
	const user, password = "cutoff", "secret"
	for _, server := range s.Servers {
		must(t, server.Client().ACLSetUser(t.Context(), user, "on", ">"+password, "~*", "&*", "+@all").Err())
	}
	own := func(o *redis.Options) { o.Username, o.Password = user, password }
	l := newLink(t, old.Addr())
	w := newWorld(t, settings{reasons: []string{"rolled_back"}, redis: func(i int) redis.UniversalClient {
		if i > 0 {
			return s.Client()
		}
		c := redis.NewClient(&redis.Options{Addr: l.proxy.Listen, Username: user, Password: password})
		t.Cleanup(func() { c.Close() })
		return c
	}})
	admin := old.Client(own)
	cutOff := w.instances[0]
	lost := 0
	w.run(func() {
		must(t, admin.ACLSetUser(t.Context(), "default", "off").Err())
		must(t, admin.ClientKillByFilter(t.Context(), "USER", "default").Err())
		master := s.WaitForMaster(old)
		for _, in := range w.instances[1:] {
			w.eventually("instance "+in.name()+" is ready", func() bool { return in.ready() == nil })
		}
		split := w.since()
		time.Sleep(lasts(500*time.Millisecond, 4*time.Second))
		w.mu.Lock()
		for _, m := range w.messages {
			if m.via == cutOff.name() && m.begun > split && m.outcome == acked {
				lost++
			}
		}
		w.mu.Unlock()
		// It learns of the new master.
		l.pointTo(master.Addr())
		w.ready()
		time.Sleep(lasts(300*time.Millisecond, 2*time.Second))
		must(t, admin.ACLSetUser(context.Background(), "default", "on", "nopass").Err())
		s.WaitForReplicas(2)
	})
	if lost < 10 {
		t.Errorf("only %d messages were lost", lost)
	}
	w.expectGap("rolled_back")
}

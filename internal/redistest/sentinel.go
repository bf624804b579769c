package redistest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"
)

// A Sentinel is a master and two replicas, watched by three sentinels of which two must
// agree. They replace a master that is down for a second, but not within the six seconds
// after they last did.
type Sentinel struct {
	MasterName    string
	SentinelAddrs []string
	Servers       []*Server // the master and its replicas; [Sentinel.Master] knows which is which
	Sentinels     []*Server

	tb testing.TB
}

// ofGroup are the options of a server that has replicas or is one.
func ofGroup(options ...string) Option {
	return Args(append(options, "--replica-announce-ip", "127.0.0.1", "--repl-diskless-sync-delay", "0")...)
}

// StartSentinel starts the servers and waits until the sentinels know all of them.
func StartSentinel(tb testing.TB) *Sentinel {
	tb.Helper()
	s := &Sentinel{MasterName: "main", tb: tb}
	for range 3 {
		s.Servers = append(s.Servers, Start(tb, ofGroup()))
	}
	master := s.Servers[0]
	for _, replica := range s.Servers[1:] {
		replica.do("REPLICAOF", "127.0.0.1", master.port)
	}
	eventually(tb, "replicas", func(ctx context.Context) error { return master.onlineReplicas(ctx, 2) })
	for range 3 {
		sentinel := Start(tb, func(s *Server) { s.sentinel = true }, Args(
			"--sentinel", "monitor", s.MasterName, "127.0.0.1", strconv.Itoa(master.port), "2",
			"--sentinel", "down-after-milliseconds", s.MasterName, "1000",
			"--sentinel", "failover-timeout", s.MasterName, "3000",
			"--sentinel", "parallel-syncs", s.MasterName, "1"))
		// They find each other soon, and a busy machine does not make them idle for 30 s.
		sentinel.do("SENTINEL", "DEBUG", "INFO-PERIOD", 1000, "PING-PERIOD", 400,
			"PUBLISH-PERIOD", 200, "TILT-PERIOD", 1000)
		s.Sentinels = append(s.Sentinels, sentinel)
		s.SentinelAddrs = append(s.SentinelAddrs, sentinel.Addr())
	}
	eventually(tb, "sentinels know each other", func(ctx context.Context) error {
		for _, sentinel := range s.Sentinels {
			m := redis.NewMapStringStringCmd(ctx, "SENTINEL", "MASTER", s.MasterName)
			if err := sentinel.admin.Process(ctx, m); err != nil {
				return err
			}
			if v := m.Val(); v["flags"] != "master" || v["num-other-sentinels"] != "2" {
				return fmt.Errorf("%s knows %v", sentinel.Addr(), v)
			}
			if err := sentinel.admin.Do(ctx, "SENTINEL", "CKQUORUM", s.MasterName).Err(); err != nil {
				return err
			}
		}
		return nil
	})
	s.WaitForReplicas(2)
	// Four times this is how long a sentinel lets a server say that it is the master until it
	// makes it a replica: a new master, of which it does not know yet, or an old one, restarted.
	for _, sentinel := range s.Sentinels {
		sentinel.do("SENTINEL", "DEBUG", "PUBLISH-PERIOD", 500)
	}
	return s
}

// Client returns a client of whichever server is the master, closed at the end of the test.
func (s *Sentinel) Client(options ...func(*redis.FailoverOptions)) *redis.Client {
	o := &redis.FailoverOptions{MasterName: s.MasterName, SentinelAddrs: slices.Clone(s.SentinelAddrs)}
	for _, option := range options {
		option(o)
	}
	c := redis.NewFailoverClient(o)
	s.tb.Cleanup(func() { c.Close() })
	return c
}

// master returns which server all sentinels that answer say is the master.
func (s *Sentinel) master(ctx context.Context) (*Server, error) {
	var addr string
	for _, sentinel := range s.Sentinels {
		if !sentinel.answers() {
			continue
		}
		got, err := sentinel.admin.Do(ctx, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", s.MasterName).StringSlice()
		if err != nil {
			return nil, err
		}
		one := net.JoinHostPort(got[0], got[1])
		if addr != "" && one != addr {
			return nil, fmt.Errorf("the master is %s or %s", addr, one)
		}
		addr = one
	}
	for _, server := range s.Servers {
		if server.Addr() == addr {
			return server, nil
		}
	}
	return nil, fmt.Errorf("the master is %q", addr)
}

// Master returns the master, as the sentinels say: it may be down.
func (s *Sentinel) Master() (master *Server) {
	s.tb.Helper()
	eventually(s.tb, "sentinels agree", func(ctx context.Context) (err error) {
		master, err = s.master(ctx)
		return err
	})
	return master
}

// WaitForMaster waits until all sentinels say that a server, not the other one, is the
// master, and it says so too.
func (s *Sentinel) WaitForMaster(other *Server) (master *Server) {
	s.tb.Helper()
	eventually(s.tb, "another master", func(ctx context.Context) (err error) {
		if master, err = s.master(ctx); err != nil {
			return err
		}
		if master == other || !master.answers() {
			return fmt.Errorf("the master is %s", master.Addr())
		}
		return master.onlineReplicas(ctx, 0)
	})
	return master
}

// WaitForReplicas waits until the master has n replicas that follow it, and the sentinels
// know that they do.
func (s *Sentinel) WaitForReplicas(n int) {
	s.tb.Helper()
	eventually(s.tb, "replicas", func(ctx context.Context) error {
		master, err := s.master(ctx)
		if err != nil {
			return err
		}
		for _, sentinel := range s.Sentinels {
			if !sentinel.answers() {
				continue
			}
			replicas := redis.NewMapStringStringSliceCmd(ctx, "SENTINEL", "REPLICAS", s.MasterName)
			if err := sentinel.admin.Process(ctx, replicas); err != nil {
				return err
			}
			well := 0
			for _, r := range replicas.Val() {
				if r["flags"] == "slave" && r["role-reported"] == "slave" && r["master-link-status"] == "ok" {
					well++
				}
			}
			if well < n {
				return fmt.Errorf("%s knows %v", sentinel.Addr(), replicas.Val())
			}
		}
		return master.onlineReplicas(ctx, n)
	})
}

// Failover has the sentinels make a replica the master, and returns it once it is.
func (s *Sentinel) Failover() *Server {
	s.tb.Helper()
	old := s.Master()
	eventually(s.tb, "failover", func(ctx context.Context) error { // none may be possible yet
		now, err := s.master(ctx)
		if err != nil || now != old {
			return err
		}
		return cmp.Or(s.Sentinels[0].admin.Do(ctx, "SENTINEL", "FAILOVER", s.MasterName).Err(), errors.New("begun"))
	})
	return s.WaitForMaster(old)
}

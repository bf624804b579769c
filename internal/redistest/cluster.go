package redistest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// A Cluster is three masters, each with a third of the slots, and a replica for each. A
// replica takes over from a master that is down for about two seconds.
type Cluster struct {
	Servers []*Server // at first the masters, then their replicas in the same order

	tb testing.TB
}

const masters, slots = 3, 16384

// StartCluster starts the servers and waits until all of them are ready for all slots.
func StartCluster(tb testing.TB) *Cluster {
	tb.Helper()
	c := &Cluster{tb: tb}
	for i := range 2 * masters {
		c.Servers = append(c.Servers, Start(tb, ofGroup(
			"--cluster-enabled", "yes",
			"--cluster-announce-ip", "127.0.0.1",
			"--cluster-node-timeout", "1500",
			"--cluster-replica-validity-factor", "0",
			"--cluster-allow-replica-migration", "no",
		)))
		// Without this they would first have to settle whose claims are newer.
		c.Servers[i].do("CLUSTER", "SET-CONFIG-EPOCH", i+1)
	}
	for i, s := range c.Servers {
		if i < masters {
			s.do("CLUSTER", "ADDSLOTSRANGE", i*slots/masters, (i+1)*slots/masters-1)
		}
		for _, other := range c.Servers[:i] {
			s.do("CLUSTER", "MEET", "127.0.0.1", other.port)
		}
	}
	for i, s := range c.Servers[masters:] {
		id := c.Servers[i].do("CLUSTER", "MYID").Val()
		eventually(tb, "the replica knows its master", func(ctx context.Context) error {
			return s.admin.Do(ctx, "CLUSTER", "REPLICATE", id).Err()
		})
	}
	c.WaitOK()
	for i, s := range c.Servers[masters:] {
		eventually(tb, "the master knows its replica", func(ctx context.Context) error {
			return errors.Join(c.Servers[i].onlineReplicas(ctx, 1), c.follows(ctx, s))
		})
	}
	return c
}

// Client returns a client of the cluster, closed at the end of the test. By itself it may
// take a minute to leave a master that is down: see ClusterStateReloadInterval.
func (c *Cluster) Client(options ...func(*redis.ClusterOptions)) *redis.ClusterClient {
	o := new(redis.ClusterOptions)
	for _, s := range c.Servers {
		o.Addrs = append(o.Addrs, s.Addr())
	}
	for _, option := range options {
		option(o)
	}
	client := redis.NewClusterClient(o)
	c.tb.Cleanup(func() { client.Close() })
	return client
}

// A node is a line of CLUSTER NODES: what a server says of itself or of another one.
type node struct {
	id, port string
	flags    []string // myself, master, slave, fail?, fail, handshake...
	master   string   // the id of a replica's master
	epoch    int      // of two that claim a slot, the higher one has it
	slots    [][2]int // first and last of each range
}

func (n *node) is(flag string) bool { return slices.Contains(n.flags, flag) }

func (n *node) owns(slot int) bool {
	return slices.ContainsFunc(n.slots, func(r [2]int) bool { return r[0] <= slot && slot <= r[1] })
}

// nodes returns what the server says of all, itself first.
func (s *Server) nodes(ctx context.Context) (nodes []*node, err error) {
	text, err := s.admin.ClusterNodes(ctx).Result()
	for line := range strings.Lines(text) {
		// id ip:port@bus flags master ping pong epoch link slot slot-slot [slot->-id]
		f := strings.Fields(line)
		_, port, _ := strings.Cut(f[1], ":")
		port, _, _ = strings.Cut(port, "@")
		n := &node{id: f[0], port: port, flags: strings.Split(f[2], ","), master: f[3]}
		n.epoch, _ = strconv.Atoi(f[6])
		for _, r := range f[8:] {
			if r[0] == '[' {
				continue // on the move: still the source's
			}
			first, last, isRange := strings.Cut(r, "-")
			if !isRange {
				last = first
			}
			a, _ := strconv.Atoi(first)
			b, _ := strconv.Atoi(last)
			n.slots = append(n.slots, [2]int{a, b})
		}
		if n.is("myself") {
			nodes = slices.Insert(nodes, 0, n)
		} else {
			nodes = append(nodes, n)
		}
	}
	if err == nil && len(nodes) == 0 {
		err = errors.New("CLUSTER NODES is empty")
	}
	return nodes, err
}

// selves returns what each server that answers says of itself.
func (c *Cluster) selves(ctx context.Context) (map[*Server]*node, error) {
	selves := make(map[*Server]*node)
	for _, s := range c.Servers {
		if !s.answers() {
			continue
		}
		nodes, err := s.nodes(ctx)
		if err != nil {
			return nil, err
		}
		selves[s] = nodes[0]
	}
	return selves, nil
}

// follows returns an error unless the server is a replica that has all of its master.
func (c *Cluster) follows(ctx context.Context, s *Server) error {
	info, err := s.info(ctx)
	if err == nil && info["master_link_status"] != "up" {
		err = fmt.Errorf("%s: role %s, master_link_status %q", s.Addr(), info["role"], info["master_link_status"])
	}
	return err
}

// WaitOK waits until all servers that run say that the cluster is well, that the same
// masters have the same slots, and that those are up; and until the replicas follow them.
func (c *Cluster) WaitOK() {
	c.tb.Helper()
	eventually(c.tb, "the cluster is well", c.ok)
}

func (c *Cluster) ok(ctx context.Context) error {
	selves, err := c.selves(ctx)
	if err != nil {
		return err
	}
	up := make(map[string]bool) // ids
	for _, self := range selves {
		up[self.id] = true
	}
	var first map[string][][2]int
	for s, self := range selves {
		text, err := s.admin.ClusterInfo(ctx).Result()
		if err != nil {
			return err
		}
		if info := fields(text); info["cluster_state"] != "ok" || info["cluster_slots_ok"] != strconv.Itoa(slots) ||
			info["cluster_known_nodes"] != strconv.Itoa(2*masters) {
			return fmt.Errorf("%s: %v", s.Addr(), info)
		}
		if self.is("slave") {
			if err := c.follows(ctx, s); err != nil {
				return err
			}
		}
		nodes, err := s.nodes(ctx)
		if err != nil {
			return err
		}
		owners := make(map[string][][2]int)
		for _, n := range nodes {
			if up[n.id] && (n.is("fail") || n.is("fail?") || n.is("handshake")) {
				return fmt.Errorf("%s says %s is %v", s.Addr(), n.port, n.flags)
			}
			if len(n.slots) > 0 {
				if !up[n.id] {
					return fmt.Errorf("%s says %s has slots", s.Addr(), n.port)
				}
				owners[n.id] = n.slots
			}
		}
		if first == nil {
			first = owners
		}
		if !maps.EqualFunc(first, owners, slices.Equal) {
			return fmt.Errorf("%s says that %v have slots, another server that %v have", s.Addr(), owners, first)
		}
	}
	return nil
}

// Slot returns the slot of a key.
func (c *Cluster) Slot(key string) (slot int) {
	c.tb.Helper()
	for _, s := range c.Servers {
		if s.answers() {
			slot, err := s.do("CLUSTER", "KEYSLOT", key).Int()
			if err != nil {
				c.tb.Fatal(err)
			}
			return slot
		}
	}
	c.tb.Fatal("no server runs")
	return 0
}

// MasterOf returns the server that has the key's slot, once there is one that answers.
func (c *Cluster) MasterOf(key string) (master *Server) {
	c.tb.Helper()
	slot := c.Slot(key)
	eventually(c.tb, "a master of slot "+strconv.Itoa(slot), func(ctx context.Context) error {
		selves, err := c.selves(ctx)
		if err != nil {
			return err
		}
		master = nil
		for s, self := range selves {
			if self.is("master") && self.owns(slot) && (master == nil || self.epoch > selves[master].epoch) {
				master = s
			}
		}
		if master == nil {
			return errors.New("no server has it")
		}
		return nil
	})
	return master
}

// ReplicaOf returns a replica of the master, once there is one that answers and follows it.
func (c *Cluster) ReplicaOf(master *Server) (replica *Server) {
	c.tb.Helper()
	eventually(c.tb, "a replica of "+master.Addr(), func(ctx context.Context) error {
		selves, err := c.selves(ctx)
		if err != nil {
			return err
		}
		if selves[master] == nil {
			return errors.New("the master is down")
		}
		for s, self := range selves {
			if self.master == selves[master].id {
				replica = s
				return c.follows(ctx, s)
			}
		}
		return errors.New("none says it is one")
	})
	return replica
}

// MoveSlot gives the key's slot, with all keys in it, to another master.
func (c *Cluster) MoveSlot(key string, to *Server) {
	c.tb.Helper()
	c.MoveSlotSlowly(key, to, 0)
}

// MoveSlotSlowly is [Cluster.MoveSlot] with a pause after each step, for what clients do
// meanwhile. A step moves up to five keys.
func (c *Cluster) MoveSlotSlowly(key string, to *Server, pause time.Duration) {
	c.tb.Helper()
	from, slot := c.MasterOf(key), c.Slot(key)
	if from == to {
		return
	}
	toID := to.do("CLUSTER", "MYID").Val()
	to.do("CLUSTER", "SETSLOT", slot, "IMPORTING", from.do("CLUSTER", "MYID").Val())
	from.do("CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
	for {
		time.Sleep(pause)
		keys, err := from.do("CLUSTER", "GETKEYSINSLOT", slot, 5).Slice()
		if err != nil {
			c.tb.Fatal(err)
		}
		if len(keys) == 0 {
			break
		}
		from.do(append([]any{"MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS"}, keys...)...)
	}
	selves, err := c.selves(context.Background())
	if err != nil {
		c.tb.Fatal(err)
	}
	to.do("CLUSTER", "SETSLOT", slot, "NODE", toID) // before any other: it gets a new epoch
	from.do("CLUSTER", "SETSLOT", slot, "NODE", toID)
	for s, self := range selves {
		if s != to && s != from && self.is("master") {
			s.do("CLUSTER", "SETSLOT", slot, "NODE", toID)
		}
	}
}

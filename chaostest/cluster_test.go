package chaostest

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/internal/redistest"
)

// Failovers in a Redis Cluster, and slots that move.

// clusterClients returns what makes a client of a cluster for each instance.
func clusterClients(c *redistest.Cluster) func(int) redis.UniversalClient {
	return func(int) redis.UniversalClient { return c.Client() }
}

// partitionOf returns a key of the partition in which a topic is: its stream, which one
// node of the cluster has.
func partitionOf(t *testing.T, c *redistest.Cluster, topic string) string {
	t.Helper()
	client := c.Client()
	for i := range 16 {
		key := fmt.Sprintf("pushlet{%d}:t:%s", i, topic)
		if n, err := client.Exists(t.Context(), key).Result(); err == nil && n == 1 {
			return key
		}
	}
	t.Fatalf("no partition has %s", topic)
	return ""
}

// TestClusterKill kills the master that has the slot of a topic, so that its replica takes
// over.
func TestClusterKill(t *testing.T) {
	t.Parallel()
	eachAcks(t, func(t *testing.T, options []pushlet.Option) {
		c := redistest.StartCluster(t)
		w := newWorld(t, settings{redis: clusterClients(c), options: options, reasons: []string{"rolled_back"}})
		w.run(func() {
			for i := range int(lasts(1, 3)) {
				key := partitionOf(t, c, w.names[i])
				old := c.MasterOf(key)
				replica := c.ReplicaOf(old)
				old.Kill()
				if now := c.MasterOf(key); now != replica {
					t.Errorf("%s has taken over, not %s", now.Addr(), replica.Addr())
				}
				w.ready()
				time.Sleep(lasts(0, time.Second))
				old.Restart()
				c.WaitOK()
			}
		})
		if d := w.during(); d.refused+d.uncertain == 0 || !w.noticed() {
			t.Errorf("nobody noticed the fault: %v", d)
		}
	})
}

// TestClusterFailover has replicas take over from masters that are well: together with
// the master, which loses nothing, or on their own.
func TestClusterFailover(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"", "FORCE", "TAKEOVER"} {
		if testing.Short() && how == "FORCE" {
			continue
		}
		t.Run("CLUSTER FAILOVER "+how, func(t *testing.T) {
			t.Parallel()
			c := redistest.StartCluster(t)
			w := newWorld(t, settings{redis: clusterClients(c), whole: how == "", reasons: []string{"rolled_back"}})
			w.run(func() {
				for i := range int(lasts(2, 6)) {
					key := partitionOf(t, c, w.names[i%len(w.names)])
					old := c.MasterOf(key)
					replica := c.ReplicaOf(old)
					cmd := []any{"CLUSTER", "FAILOVER"}
					if how != "" {
						cmd = append(cmd, how)
					}
					must(t, replica.Client().Do(t.Context(), cmd...).Err())
					w.eventually("the replica is the master", func() bool { return c.MasterOf(key) == replica })
					c.WaitOK()
					w.ready()
					time.Sleep(lasts(100*time.Millisecond, time.Second))
				}
			})
			if !w.noticed() {
				t.Error("no instance has lost its connection")
			}
		})
	}
}

// TestClusterMove moves the slot of a topic in use from master to master, slowly, so that
// its keys are in two places for a time.
func TestClusterMove(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t)
	w := newWorld(t, settings{redis: clusterClients(c), whole: true})
	w.run(func() {
		for i := range int(lasts(2, 8)) {
			key := partitionOf(t, c, w.names[i%len(w.names)])
			from := c.MasterOf(key)
			to := c.Servers[i%3]
			if to == from {
				to = c.Servers[(i+1)%3]
			}
			c.MoveSlotSlowly(key, to, lasts(50*time.Millisecond, 400*time.Millisecond))
			w.ready()
			time.Sleep(lasts(100*time.Millisecond, time.Second))
		}
	})
	if !w.noticed() {
		t.Error("no instance has lost its connection")
	}
}

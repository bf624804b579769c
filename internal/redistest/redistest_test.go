package redistest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestMain fails if the tests leave a goroutine behind: each process has one.
func TestMain(m *testing.M) {
	code := m.Run()
	for deadline := time.Now().Add(10 * time.Second); code == 0; time.Sleep(5 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		stacks := string(buf[:runtime.Stack(buf, true)])
		if strings.Count(stacks, "\n\n") == 0 {
			break // only this one
		}
		if time.Now().After(deadline) {
			fmt.Printf("goroutines are left:\n\n%s\n", stacks)
			code = 1
		}
	}
	os.Exit(code)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// setGet writes a value through the client and reads it.
func setGet(t testing.TB, c redis.Cmdable, key, value string) {
	t.Helper()
	check(t, c.Set(t.Context(), key, value, 0).Err())
	if got, err := c.Get(t.Context(), key).Result(); err != nil || got != value {
		t.Fatalf("GET %s: %q, %v; want %q", key, got, err, value)
	}
}

func TestServer(t *testing.T) {
	s := Start(t, Args("--maxmemory", "10mb"))
	c := s.Client()
	setGet(t, c, "key", "value")
	if got := c.ConfigGet(t.Context(), "maxmemory").Val()["maxmemory"]; got != "10485760" {
		t.Errorf("maxmemory is %q", got)
	}
	cpu := s.CPU()
	for i := 0; s.CPU() <= cpu; i++ {
		if i == 100_000 {
			t.Fatalf("the server still has used %v", cpu)
		}
	}
	s.Stop()
	if s.Running() || c.Ping(t.Context()).Err() == nil {
		t.Error("a stopped server still runs")
	}
	s.Restart()
	if n, err := c.Exists(t.Context(), "key").Result(); n != 0 || err != nil {
		t.Errorf("without persistence EXISTS returns %d, %v", n, err)
	}
}

func TestPassword(t *testing.T) {
	s := Start(t, Password(`a "b" \c`))
	setGet(t, s.Client(), "key", "value")
	bad := s.Client(func(o *redis.Options) { o.Password = "" })
	if err := bad.Ping(t.Context()).Err(); err == nil || !strings.HasPrefix(err.Error(), "NOAUTH") {
		t.Errorf("without the password PING returns %v", err)
	}
}

func TestACLUser(t *testing.T) {
	s := Start(t, ACLUser("writer", "secret", "~ours:* &* -@all +set +get"))
	c := s.Client(func(o *redis.Options) { o.Username, o.Password = "writer", "secret" })
	setGet(t, c, "ours:key", "value")
	for _, err := range []error{
		c.Set(t.Context(), "theirs:key", "value", 0).Err(),
		c.Del(t.Context(), "ours:key").Err(),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "NOPERM") {
			t.Errorf("%v; want NOPERM", err)
		}
	}
}

func TestTLS(t *testing.T) {
	s := Start(t, TLS())
	setGet(t, s.Client(), "key", "value")
	if err := s.Client(func(o *redis.Options) { o.TLSConfig = nil }).Ping(t.Context()).Err(); err == nil {
		t.Error("the server answers without TLS")
	}
	s.Kill()
	s.Restart()
	setGet(t, s.Client(), "key", "value")
}

func TestKillKeepsData(t *testing.T) {
	s := Start(t, AppendOnly("always"))
	c := s.Client()
	for i := range 100 {
		check(t, c.Set(t.Context(), fmt.Sprint("key", i), i, 0).Err())
	}
	s.Kill()
	if s.Running() {
		t.Error("a killed server still runs")
	}
	s.Restart()
	if n, err := c.DBSize(t.Context()).Result(); n != 100 || err != nil {
		t.Fatalf("after kill and restart there are %d keys, %v; want 100", n, err)
	}
	s.Kill()
	s.Wipe()
	s.Restart()
	if n, err := c.DBSize(t.Context()).Result(); n != 0 || err != nil {
		t.Fatalf("after Wipe there are %d keys, %v", n, err)
	}
}

func TestPause(t *testing.T) {
	s := Start(t)
	c := s.Client(func(o *redis.Options) { o.ReadTimeout, o.MaxRetries = 100*time.Millisecond, -1 })
	check(t, c.Ping(t.Context()).Err())
	s.Pause()
	if err := c.Ping(t.Context()).Err(); err == nil || !s.Running() {
		t.Errorf("paused: PING returns %v; running %t", err, s.Running())
	}
	s.Continue()
	eventually(t, "PING", func(ctx context.Context) error { return c.Ping(ctx).Err() })
	s.Pause()
	s.Stop()
	s.Restart()
	s.Pause() // and end the test so
}

func TestFreePort(t *testing.T) {
	if a, b := FreePort(t), FreePort(t); a == b {
		t.Errorf("port %d twice", a)
	}
	s, other := Start(t), Start(t)
	other.Stop()
	ports := []int{s.port, s.port, FreePort(t)} // two that are taken after all
	check(t, other.start(func(testing.TB) (port int) {
		port, ports = ports[0], ports[1:]
		return port
	}))
	setGet(t, other.Client(), "key", "value")
}

// soon sets and gets until that works: a failover takes time.
func soon(t testing.TB, c redis.Cmdable, key string) {
	t.Helper()
	eventually(t, "SET and GET", func(ctx context.Context) error {
		return errors.Join(c.Set(ctx, key, "value", 0).Err(), c.Get(ctx, key).Err())
	})
}

func TestSentinel(t *testing.T) {
	begin := time.Now()
	s := StartSentinel(t)
	t.Log("set up in", time.Since(begin))
	c := s.Client()
	setGet(t, c, "key", "value")
	old := s.Master()
	if old != s.Servers[0] {
		t.Errorf("%s is the master", old.Addr())
	}
	check(t, c.Wait(t.Context(), 2, patience).Err()) // or the key may be lost with the master

	begin = time.Now()
	old.Kill()
	now := s.WaitForMaster(old)
	t.Log("another master in", time.Since(begin))
	soon(t, c, "another key")
	t.Log("the client has it in", time.Since(begin))
	if n, err := now.Client().Exists(t.Context(), "key", "another key").Result(); n != 2 || err != nil {
		t.Errorf("%d keys, %v; want 2", n, err)
	}
	old.Restart()
	s.WaitForReplicas(2)

	begin = time.Now()
	if third := s.Failover(); third == now || third != s.Master() {
		t.Errorf("%s is the master before and after Failover", now.Addr())
	}
	t.Log("failover in", time.Since(begin))
	s.WaitForReplicas(2)
	soon(t, c, "key")
}

func TestCluster(t *testing.T) {
	begin := time.Now()
	c := StartCluster(t)
	t.Log("set up in", time.Since(begin))
	client := c.Client(func(o *redis.ClusterOptions) { o.ClusterStateReloadInterval = time.Second })
	for i := range 100 {
		setGet(t, client, fmt.Sprint("key", i), "value")
	}
	if slot := c.Slot("123456789"); slot != 0x31c3 { // as in the specification
		t.Errorf("slot %#x", slot)
	}

	old := c.MasterOf("key")
	replica := c.ReplicaOf(old)
	begin = time.Now()
	old.Kill()
	if now := c.MasterOf("key"); now != replica {
		t.Errorf("%s is the master, not the replica %s", now.Addr(), replica.Addr())
	}
	t.Log("another master in", time.Since(begin))
	soon(t, client, "key")
	t.Log("the client has it in", time.Since(begin))
	c.WaitOK()
	t.Log("all is well in", time.Since(begin))
	old.Restart()
	if got := c.ReplicaOf(replica); got != old {
		t.Errorf("%s is the replica, not %s", got.Addr(), old.Addr())
	}
	c.WaitOK()
}

func TestMoveSlot(t *testing.T) {
	c := StartCluster(t)
	client := c.Client()
	const n = 23
	for i := range n {
		setGet(t, client, fmt.Sprint("{tag}", i), "value")
	}
	from := c.MasterOf("{tag}")
	var to *Server
	for _, s := range c.Servers[:masters] {
		if s != from {
			to = s
		}
	}
	c.MoveSlot("{tag}", to)
	if got := c.MasterOf("{tag}"); got != to {
		t.Errorf("the slot is at %s, not at %s", got.Addr(), to.Addr())
	}
	c.WaitOK()
	if n, err := from.Client().DBSize(t.Context()).Result(); n != 0 || err != nil {
		t.Errorf("%d keys have stayed, %v", n, err)
	}

	// Back, while the client works.
	stop, sum := make(chan struct{}), make(chan int)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				sum <- i
				return
			default:
			}
			if err := client.Incr(t.Context(), fmt.Sprint("{tag}n", i%n)).Err(); err != nil {
				t.Errorf("while the slot moves: %v", err)
			}
		}
	}()
	c.MoveSlotSlowly("{tag}", from, 10*time.Millisecond)
	close(stop)
	want := <-sum
	c.WaitOK()
	for i := range n {
		check(t, client.Get(t.Context(), fmt.Sprint("{tag}", i)).Err())
		counted, err := client.Get(t.Context(), fmt.Sprint("{tag}n", i)).Int()
		check(t, err)
		want -= counted
	}
	if want != 0 {
		t.Errorf("%d increments too few", want)
	}
}

package pushlet_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Peers that vanish without a word, with a network that really drops packets: server and
// clients in a network namespace each, with a cable between them.

// A wsNamespace is a network namespace that belongs to one thread. Sockets that are made by
// that thread, and programs that it starts, are in it. It ends with the thread and the last
// socket, even if the test is killed, and takes the cable with it.
type wsNamespace struct {
	work chan func()
	tid  int
}

// wsNewNamespace skips the test where there can be no namespace.
func wsNewNamespace(t *testing.T) *wsNamespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace in which packets are dropped")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip, of iproute2, for a network namespace in which packets are dropped")
	}
	ns := &wsNamespace{work: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends here
		ns.tid = syscall.Gettid()
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		made <- err
		if err != nil {
			return
		}
		for f := range ns.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		t.Skipf("cannot make a network namespace: %v", err)
	}
	t.Cleanup(func() { close(ns.work) })
	return ns
}

// do runs f in the namespace.
func (ns *wsNamespace) do(f func()) {
	done := make(chan struct{})
	ns.work <- func() { defer close(done); f() }
	<-done
}

// ip runs ip commands in the namespace.
func (ns *wsNamespace) ip(t *testing.T, commands ...string) {
	t.Helper()
	for _, command := range commands {
		var out []byte
		var err error
		ns.do(func() { out, err = exec.Command("ip", strings.Fields(command)...).CombinedOutput() })
		if err != nil {
			t.Fatalf("ip %s: %v: %s", command, err, out)
		}
	}
}

func TestHalfOpen(t *testing.T) {
	const heartbeat = time.Second
	for name, vanish := range map[string]string{
		"the cable is cut":     "link set peer down",
		"packets are dropped":  "route add blackhole 192.0.2.1",
		"the address moves on": "addr flush dev peer",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, clients := wsNewNamespace(t), wsNewNamespace(t)
			server.ip(t, fmt.Sprintf("link add here type veth peer name peer netns %d", clients.tid),
				"addr add 192.0.2.1/24 dev here", "link set here up")
			clients.ip(t, "addr add 192.0.2.2/24 dev peer", "link set peer up")

			var l net.Listener
			var err error
			server.do(func() { l, err = net.Listen("tcp4", "192.0.2.1:0") })
			if err != nil {
				t.Fatal(err)
			}
			s := wsServeOn(t, l, nil)
			s.dial = func() (conn net.Conn, err error) {
				clients.do(func() { conn, err = net.DialTimeout("tcp4", l.Addr().String(), wsPatience) })
				return conn, err
			}
			s.beatEvery(heartbeat)
			var alive sync.WaitGroup
			for _, topic := range []string{"quiet", "busy"} {
				s.stream("/events?topic=" + topic)
				r := s.raw("?topic=" + topic)
				r.expect(topic, "pushlet.subscribed", "")
				alive.Go(func() { r.until(time.Now(), 5*heartbeat/2) }) // whoever answers lives
			}
			alive.Wait()
			if n := len(s.ended); n > 0 {
				t.Fatalf("%d connections have ended before their peers vanished", n)
			}
			clients.ip(t, vanish)
			vanished := time.Now()
			for range 200 { // more than the sockets take
				s.publish("busy", strings.Repeat("x", 64<<10))
			}
			wsExpectNoticed(t, s, vanished, heartbeat, 4)
		})
	}
}

package pushlet_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usual2970/pushlet"
)

// Heartbeats: who answers lives, whatever the interval; who vanished is noticed within about
// two. The first tests run in fake time, on in-memory connections.

func TestWebSocketHeartbeat(t *testing.T) {
	for _, interval := range []time.Duration{
		20 * time.Millisecond, 50 * time.Millisecond, time.Second, 30 * time.Second, 60 * time.Second, 10 * time.Minute,
	} {
		t.Run(interval.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := wsServePipes(t)
				s.beatEvery(interval)
				var wg sync.WaitGroup
				for range 5 { // in different places of the interval
					r := s.raw("?topic=t")
					r.expect("t", "pushlet.subscribed", "")
					wg.Go(func() { wsCountPings(t, r, interval) })
					time.Sleep(interval / 3)
				}
				wg.Wait()
			})
		})
	}
}

// wsCountPings answers the pings of ten intervals and checks how many there were.
func wsCountPings(t *testing.T, r *wsRaw, interval time.Duration) {
	const intervals = 10
	pings := 0
	for begin := time.Now(); ; pings++ {
		r.SetReadDeadline(begin.Add(intervals * interval))
		w, err := wsReadFrame(r.br)
		if wsIsTimeout(err) {
			break
		}
		if err != nil || w.first != wsFin|wsPing {
			t.Errorf("after %v: frame %#x, error %v; want a ping", time.Since(begin), w.first, err)
			return
		}
		r.frame(wsFin|wsPong, w.payload)
	}
	if pings < intervals-1 || pings > intervals+1 {
		t.Errorf("%d pings in %d intervals", pings, intervals)
	}
	r.Close()
}

// Whoever gives no sign of life is ended between one and two intervals after the last.
func TestWebSocketSilentClient(t *testing.T) {
	alive := func(s *wsServer, r *wsRaw, act func()) { // does act once in an interval, ten times
		begin := time.Now()
		for range 10 {
			act()
			begin = begin.Add(30 * time.Second)
			for {
				r.SetReadDeadline(begin)
				if _, err := wsReadFrame(r.br); wsIsTimeout(err) {
					break
				} else if err != nil {
					s.t.Errorf("after %v: %v", time.Since(begin), err)
					return
				}
			}
		}
	}
	for _, test := range []struct {
		name string
		act  func(*wsServer, *wsRaw)
	}{
		{"answers no ping", func(*wsServer, *wsRaw) {}},
		{"stalls within a header", func(_ *wsServer, r *wsRaw) { r.write([]byte{wsFin | wsText}) }},
		{"stalls within a payload", func(_ *wsServer, r *wsRaw) { r.write(wsMasked(wsFin|wsText, make([]byte, 100))[:50]) }},
		{"stalls between fragments", func(_ *wsServer, r *wsRaw) { r.frame(wsText, []byte("{")) }},
		{"sends a command now and then", func(s *wsServer, r *wsRaw) {
			alive(s, r, func() { r.text(`{"action":"ping"}`) })
		}},
		{"sends a ping now and then", func(s *wsServer, r *wsRaw) {
			alive(s, r, func() { r.frame(wsFin|wsPing, nil) })
		}},
		{"sends a pong now and then", func(s *wsServer, r *wsRaw) {
			alive(s, r, func() { r.frame(wsFin|wsPong, []byte("unasked")) })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := wsServePipes(t)
				const interval = 30 * time.Second
				r := s.raw("?topic=t")
				r.expect("t", "pushlet.subscribed", "")
				test.act(s, r)
				begin := time.Now()
				for {
					if _, err := r.tryRead(); err != nil {
						break
					}
				}
				if took := time.Since(begin); took > 2*interval+time.Second {
					t.Errorf("ended after %v, the interval is %v", took, interval)
				}
				if end := s.end(); end.reason != pushlet.ReasonHeartbeat {
					t.Errorf("reason %q, want %q", end.reason, pushlet.ReasonHeartbeat)
				}
			})
		})
	}
}

// A client that takes nothing is not asked for pongs, since no ping reaches it: it has the
// write timeout.
func TestWebSocketWriteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := wsServePipes(t, pushlet.WithWriteTimeout(5*time.Minute))
		r := s.raw("?topic=t")
		r.expect("t", "pushlet.subscribed", "")
		begin := time.Now()
		s.publish("t", "nobody reads this")
		if end := s.end(); end.reason != pushlet.ReasonWriteTimeout {
			t.Errorf("reason %q, want %q", end.reason, pushlet.ReasonWriteTimeout)
		}
		if took := time.Since(begin); took < 5*time.Minute || took > 6*time.Minute {
			t.Errorf("ended after %v, want 5 minutes", took)
		}
		if n := s.Stats().WriteTimeouts; n != 1 {
			t.Errorf("%d write timeouts, want 1", n)
		}
	})
}

func TestSetHeartbeatInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := wsServePipes(t)
		for _, bad := range []time.Duration{0, -time.Second} {
			if err := s.SetHeartbeatInterval(bad); err == nil {
				t.Errorf("an interval of %v is accepted", bad)
			}
		}
		if err := s.SetHeartbeatInterval(24 * time.Hour); err != nil {
			t.Error(err)
		}
		r := s.raw("?topic=t")
		r.expect("t", "pushlet.subscribed", "")
		r.until(time.Now(), time.Hour)
		if err := s.SetHeartbeatInterval(time.Second); err != nil { // holds for those who are there
			t.Error(err)
		}
		wsCountPings(t, r, time.Second)
	})
}

// The command rate is a budget that fills up again.
func TestWebSocketCommandRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := wsServePipes(t, pushlet.WithCommandRate(2, 10))
		r := s.raw("")
		use := func(n int) {
			t.Helper()
			for range n {
				r.text(`{"action":"ping"}`)
				r.expect("", "pushlet.pong", "")
			}
		}
		use(10)
		time.Sleep(3 * time.Second)
		use(6)
		r.until(time.Now(), time.Hour)
		use(10)
		r.text(`{"action":"ping"}`)
		if code := r.closed(); code != 1008 {
			t.Errorf("close code %d, want 1008", code)
		}
	})
}

// From here on the connections are real.

// Gorilla's client, and an interval shorter than many a round trip: a client that answers
// too late for it is gone, but those who answer get ping after ping.
func TestWebSocketShortHeartbeat(t *testing.T) {
	s := wsServe(t)
	s.beatEvery(50 * time.Millisecond)
	wsUntil(t, "one connection gets 5 pings", func() bool {
		c := s.connect("?topic=t")
		defer c.Close()
		pings := 0
		answer := c.PingHandler()
		c.SetPingHandler(func(data string) error {
			pings++
			if pings == 5 {
				s.publish("t", "enough")
			}
			return answer(data)
		})
		for {
			m, err := c.tryNext()
			if err != nil {
				return false // this machine was busy
			}
			if m.Data == "enough" {
				return true
			}
		}
	})
}

// A client whose socket is full is not one that vanished: its kernel still answers, and the
// write timeout, not the heartbeat, says how long it may take nothing.
func TestSlowIsNotHalfOpen(t *testing.T) {
	const (
		heartbeat = 500 * time.Millisecond
		pause     = 4 * heartbeat // far below the write timeout of 30 s
		messages  = 100
	)
	for _, protocol := range []string{"sse", "websocket"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			s := wsServeSmall(t, wsEverything()) // what lies in its sockets is soon read, and pings behind it
			s.beatEvery(heartbeat)
			var next func(data string)
			switch protocol {
			case "sse":
				stream := s.stream("/events?topic=t")
				next = func(data string) { stream.until("data: " + data) }
			case "websocket":
				r := s.raw("?topic=t")
				r.expect("t", "pushlet.subscribed", "")
				next = func(data string) { r.expect("t", "message", data) }
			}
			data := strings.Repeat("x", 64<<10)
			for i := range messages {
				s.publish("t", fmt.Sprint(data, i))
			}
			select {
			case end := <-s.ended:
				t.Fatalf("ended while the client did not read: %s", end.reason)
			case <-time.After(pause):
			}
			for i := range messages {
				next(fmt.Sprint(data, i))
			}
			if n := len(s.ended); n > 0 {
				t.Errorf("%d connections have ended", n)
			}
		})
	}
}

// A peer that has stopped reading takes nothing, even if what is left for it fits into our
// socket and nobody has to wait for a write: it has no more than the write timeout.
func TestStalledPeerIsEnded(t *testing.T) {
	const (
		heartbeat    = 500 * time.Millisecond
		writeTimeout = time.Second
		slack        = 3 * time.Second // of a busy machine
	)
	for _, protocol := range []string{"sse", "websocket"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			s := wsServe(t, wsEverything(), pushlet.WithWriteTimeout(writeTimeout))
			s.beatEvery(heartbeat)
			var conn net.Conn
			switch protocol {
			case "sse":
				conn = s.stream("/events?topic=t").Conn
			case "websocket":
				r := s.raw("?topic=t")
				r.expect("t", "pushlet.subscribed", "")
				conn = r.Conn
			}
			if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
				t.Fatal(err)
			}
			for range 30 {
				s.publish("t", strings.Repeat("x", 10<<10))
			}
			begin := time.Now()
			select {
			case end := <-s.ended:
				t.Logf("ended after %v: %s", time.Since(begin), end.reason)
			case <-time.After(2*heartbeat + writeTimeout + slack):
				t.Errorf("is still there after %v; %v", time.Since(begin), s.Stats())
			}
		})
	}
}

// A proxy that goes silent keeps both connections and passes on nothing.
func TestWebSocketBehindSilentProxy(t *testing.T) {
	t.Parallel()
	const heartbeat = time.Second
	s := wsServe(t)
	s.beatEvery(heartbeat)
	direct := s.dial
	proxy := &wsProxy{silent: make(chan struct{})}
	defer proxy.close()
	s.dial = func() (net.Conn, error) { return proxy.dial(direct) }
	r := s.raw("?topic=t")
	r.expect("t", "pushlet.subscribed", "")
	r.until(time.Now(), 2*heartbeat) // a client that answers, through the proxy, lives
	close(proxy.silent)
	wsExpectNoticed(t, s, time.Now(), heartbeat, 1)
}

// wsExpectNoticed waits until all connections, whose peers have vanished, have been ended for
// that.
func wsExpectNoticed(t *testing.T, s *wsServer, vanished time.Time, heartbeat time.Duration, connections int) {
	t.Helper()
	const slack = 2 * time.Second // of a busy machine
	for range connections {
		end := s.end()
		took := time.Since(vanished)
		if took > 2*heartbeat+slack {
			t.Errorf("%s: noticed after %v, the heartbeat is %v", end.client.Protocol, took, heartbeat)
		}
		if end.reason != pushlet.ReasonHeartbeat {
			t.Errorf("%s: reason %q, want %q", end.client.Protocol, end.reason, pushlet.ReasonHeartbeat)
		}
	}
	s.until("all have left", func(st pushlet.Stats) bool { return st.Clients == 0 })
}

// A wsProxy passes bytes on, both ways, until it is silent.
type wsProxy struct {
	silent chan struct{}
	conns  []net.Conn
	wg     sync.WaitGroup
}

func (p *wsProxy) dial(next func() (net.Conn, error)) (net.Conn, error) {
	client, near := net.Pipe()
	far, err := next()
	if err != nil {
		return nil, err
	}
	p.conns = append(p.conns, near, far)
	p.wg.Go(func() { p.pass(near, far) })
	p.wg.Go(func() { p.pass(far, near) })
	return client, nil
}

func (p *wsProxy) pass(from, to net.Conn) {
	buf := make([]byte, 1<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		select {
		case <-p.silent: // takes what comes and drops it
		default:
			if _, err := to.Write(buf[:n]); err != nil && !errors.Is(err, io.ErrClosedPipe) {
				return
			}
		}
	}
}

func (p *wsProxy) close() {
	for _, conn := range p.conns {
		conn.Close()
	}
	p.wg.Wait()
}

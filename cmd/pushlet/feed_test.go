package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/usual2970/pushlet/consumer"
)

// TestFeedPositions: over WebSocket only IDs of the topic are positions in it, and only its own
// confirmation says that it is followed.
func TestFeedPositions(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{}
		conn, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		for _, f := range [][3]string{
			{"@user", "pushlet.subscribed", "1"}, {"a", "pushlet.subscribed", "2"}, {"*", "message", "3"},
			{"a", "message", "4"}, {"@user", "message", "5"}, {"", "pushlet.error", ""},
		} {
			if conn.WriteJSON(map[string]string{"topic": f[0], "event": f[1], "id": f[2]}) != nil {
				return
			}
		}
	}))
	t.Cleanup(srv.Close)
	to, err := newOptions("").target(strings.Replace(srv.URL, "http", "ws", 1), streamPaths)
	check(t, err)
	var conn net.Conn
	f, err := newDialer(to).open(t.Context(), "a", "", func(c net.Conn) { conn = c })
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	got := ""
	var m consumer.Message
	for m, err = f.next(); err == nil; m, err = f.next() {
		got += m.Topic + " " + m.Event + " " + m.ID + "\n"
	}
	if want := "a pushlet.subscribed 2\n* message \na message 4\n@user message \n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if refused := (*consumer.TopicError)(nil); !errors.As(err, &refused) {
		t.Errorf("the end is %v", err)
	}
}

// TestBenchInterruptedInHandshake: what was not tried to its end has not failed.
func TestBenchInterruptedInHandshake(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var accepted atomic.Int64
	done := make(chan struct{})
	go func() { // ends with the listener
		defer close(done)
		for {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			accepted.Add(1)
		}
	}()
	t.Cleanup(func() {
		silent.Close()
		<-done
	})
	for _, scheme := range []string{"http", "https", "ws", "wss"} {
		before := accepted.Load()
		p := start(t, "bench", scheme+"://"+silent.Addr().String(), "-no-publish", "-n", "3", "-timeout", "1h", "-json")
		eventually(t, "it connects", func() bool { return accepted.Load() == before+3 })
		p.interrupt()
		if got := p.ends(exitOK); !strings.Contains(got, `"opened":0,"failed":0`) {
			t.Errorf("%s: printed %q", scheme, got)
		}
	}
}

// TestWhy: reasons do not differ from connection to connection, so that they can be counted.
func TestWhy(t *testing.T) {
	t.Parallel()
	reset := &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET,
		Source: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000}, Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80}}
	for _, c := range []struct {
		err  error
		want string
	}{
		{reset, "read tcp: connection reset by peer"},
		{io.ErrUnexpectedEOF, "the server has ended the connection"},
		{errNoPorts, "no local ports are left for this server (net.ipv4.ip_local_port_range)"},
		{&net.OpError{Op: "dial", Net: "tcp", Err: errNoFiles}, "too many open files (ulimit -n)"},
		{&consumer.ResponseError{Status: 403}, "status 403 Forbidden"},
		{context.Canceled, "context canceled"},
		{errors.New("a->b"), "a->b"},
	} {
		if got := why(c.err); got != c.want {
			t.Errorf("%v: got %q, want %q", c.err, got, c.want)
		}
	}
}

package browsertest

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
)

// blankPage lets a test follow topics with the browser's own EventSource, as in
//
//	window.stream = follow("/events")
//
// and look at what arrived: how often the server said pushlet.connected, the data of the
// messages and the reasons of the gaps, both in their order, and the last event ID.
const blankPage = `<!DOCTYPE html>
<title>blank</title>
<link rel="icon" href="data:,">
<script>
function follow(url) {
  const stream = new EventSource(url);
  stream.connected = 0;
  stream.messages = [];
  stream.gaps = [];
  stream.addEventListener("pushlet.connected", () => stream.connected++);
  stream.addEventListener("pushlet.gap", e => stream.gaps.push(JSON.parse(e.data).reason));
  stream.onmessage = e => {
    stream.messages.push(e.data);
    stream.lastID = e.lastEventId;
  };
  return stream;
}
</script>`

// startPushlet returns a running instance. Who serves it also stops it; see [serve].
func startPushlet(t *testing.T, options ...pushlet.Option) *pushlet.Pushlet {
	t.Helper()
	p := pushlet.New(options...)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// routes is what the documents' program serves, with page at /.
func routes(p *pushlet.Pushlet, page string) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/events", p.HandleSSE)
	mux.HandleFunc("/ws", p.HandleWebSocket)
	mux.HandleFunc("/{$}", servePage(page))
	return mux
}

func servePage(page string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) }
}

// serve serves handler, in which p is mounted, until the test ends.
func serve(t *testing.T, p *pushlet.Pushlet, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(handler)
	stopAtEnd(t, p, server)
	return server
}

// stopAtEnd stops p before server, which waits for its streams.
func stopAtEnd(t *testing.T, p *pushlet.Pushlet, server *httptest.Server) {
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error("Stop: ", err)
		}
		server.Close()
	})
}

// must fails the test if a call such as Publish went wrong.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A signal is given once or more, and waited for.
type signal struct {
	given chan struct{}
	give  func()
}

func newSignal() signal {
	given := make(chan struct{})
	return signal{given, sync.OnceFunc(func() { close(given) })}
}

func (s signal) wait(t *testing.T, what string) {
	t.Helper()
	select {
	case <-s.given:
	case <-time.After(patience):
		t.Fatal("waited in vain for " + what)
	}
}

// A flakyProxy forwards TCP connections until it is told to break or to freeze them.
type flakyProxy struct {
	addr   string // where it listens
	target string

	closed chan struct{} // when the test ends

	mu     sync.Mutex
	broken bool
	conns  map[net.Conn]bool // both ends of what it forwards; true: frozen
}

// startProxy forwards a port of its own to the address target until the test ends.
func startProxy(t *testing.T, target string) *flakyProxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &flakyProxy{addr: listener.Addr().String(), target: target, closed: make(chan struct{}), conns: map[net.Conn]bool{}}
	var forwarders sync.WaitGroup
	forwarders.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			forwarders.Go(func() { x.forward(conn) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		close(x.closed)
		x.cut()
		forwarders.Wait()
	})
	return x
}

// cut breaks all connections, and new ones as soon as they come.
func (x *flakyProxy) cut() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.broken = true
	for conn := range x.conns {
		conn.Close()
	}
}

// mend lets connections through again.
func (x *flakyProxy) mend() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.broken = false
}

// freeze forwards nothing more on the connections that there are, and leaves them open.
func (x *flakyProxy) freeze() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for conn := range x.conns {
		x.conns[conn] = true
	}
}

func (x *flakyProxy) frozen(conn net.Conn) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.conns[conn]
}

// A thawed reads from a connection until it is frozen.
type thawed struct {
	net.Conn
	x *flakyProxy
}

func (r thawed) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	if r.x.frozen(r.Conn) {
		<-r.x.closed
		return 0, io.EOF
	}
	return n, err
}

// hold keeps conn for cut, and reports whether it may live.
func (x *flakyProxy) hold(conn net.Conn) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.broken {
		return false
	}
	x.conns[conn] = false
	return true
}

func (x *flakyProxy) drop(conn net.Conn) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.conns, conn)
	conn.Close()
}

func (x *flakyProxy) forward(client net.Conn) {
	defer x.drop(client)
	server, err := net.Dial("tcp", x.target)
	if err != nil {
		return
	}
	defer x.drop(server)
	if !x.hold(client) || !x.hold(server) {
		return
	}
	var answers sync.WaitGroup
	answers.Go(func() {
		io.Copy(client, thawed{server, x})
		client.Close() // also ends the other direction
	})
	io.Copy(server, thawed{client, x})
	server.Close()
	answers.Wait()
}

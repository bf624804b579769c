package browsertest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/usual2970/pushlet"
)

func TestWebSocketOfAnotherOrigin(t *testing.T) {
	t.Parallel()
	page := httptest.NewServer(servePage(blankPage))
	t.Cleanup(page.Close)

	t.Run("refused by default", func(t *testing.T) {
		t.Parallel()
		p := startPushlet(t)
		var status atomic.Int32
		next := routes(p, "")
		server := serve(t, p, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(statusRecorder{w, &status}, r)
		}))
		tab := openTab(t, page.URL)
		openSocket(tab, server)
		tab.waitFor(`socket.readyState === WebSocket.CLOSED`)
		if eval[bool](tab, `socket.opened`) {
			t.Error("the socket was open")
		}
		if got := status.Load(); got != http.StatusForbidden {
			t.Errorf("status %d, want 403", got)
		}
	})

	t.Run("allowed", func(t *testing.T) {
		t.Parallel()
		p := startPushlet(t, pushlet.WithAllowedOrigins(page.URL))
		server := serve(t, p, routes(p, ""))
		tab := openTab(t, page.URL)
		openSocket(tab, server)
		tab.waitFor(`socket.frames[0]?.event === "pushlet.subscribed"`)
		must(t, p.Publish("default", "message", "Hello, World!"))
		tab.waitFor(`socket.frames.at(-1).data === "Hello, World!"`)
	})
}

// openSocket opens window.socket to server, follows the topic default, and keeps the frames that come.
func openSocket(tab *tab, server *httptest.Server) {
	tab.t.Helper()
	eval[chromedp.Void](tab, fmt.Sprintf(`
		window.socket = new WebSocket("%s/ws?topic=default");
		socket.binaryType = "arraybuffer";
		socket.opened = false;
		socket.frames = [];
		socket.onopen = () => socket.opened = true;
		socket.onmessage = e => socket.frames.push(JSON.parse(new TextDecoder().decode(e.data)));`,
		strings.Replace(server.URL, "http", "ws", 1)))
}

// A statusRecorder remembers the status of an answer.
type statusRecorder struct {
	http.ResponseWriter
	status *atomic.Int32
}

func (s statusRecorder) WriteHeader(status int) {
	s.status.Store(int32(status))
	s.ResponseWriter.WriteHeader(status)
}

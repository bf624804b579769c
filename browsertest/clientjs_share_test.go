package browsertest

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"

	"github.com/usual2970/pushlet"
)

// shared are options for one connection of all tabs.
const shared = `{share: "/pushlet.js"}`

// overEachShared runs a test with a connection over each transport that all tabs share.
func overEachShared(t *testing.T, test func(t *testing.T, options string)) {
	overEach(t, func(t *testing.T, options string) {
		test(t, fmt.Sprintf(`{...%s, ...%s}`, shared, options))
	})
}

// wantOneConnection checks that there never was another connection than the one that there is.
func wantOneConnection(t *testing.T, p *pushlet.Pushlet) {
	t.Helper()
	if s := p.Stats(); s.Clients != 1 || s.WebSocket > 0 && s.Connected != 1 {
		t.Errorf("there are %d connections, of %d that came", s.Clients, s.Connected)
	}
}

func TestClientJSShares(t *testing.T) {
	t.Parallel()
	overEachShared(t, func(t *testing.T, options string) {
		p := startPushlet(t, pushlet.WithPresence(0))
		server := serve(t, p, clientRoutes(t, p))
		a := openClient(t, server.URL, options, "both", "of a", "*")
		b := openClient(t, server.URL, options, "both", "of b", "*")
		c := openClient(t, server.URL, options, "*")
		a.waitFor(live("both", "of a", "*") + ` && ` + isOpen)
		b.waitFor(live("both", "of b", "*") + ` && ` + isOpen)
		c.waitFor(live("*") + ` && ` + isOpen)
		wantOneConnection(t, p)

		publish := func(text string) {
			t.Helper()
			for _, topic := range []string{"both", "of a", "of b"} {
				must(t, p.Publish(topic, "message", text))
			}
			must(t, p.PublishToAll("message", text))
		}
		publish("one")
		for _, tab := range []*tab{a, b, c} {
			waitForLast(tab, "*", "one")
		}
		for _, topic := range []string{"both", "of a", "*"} {
			wantSeen(a, topic, "<live>", "one")
		}
		for _, topic := range []string{"both", "of b", "*"} {
			wantSeen(b, topic, "<live>", "one")
		}
		if got := eval[int](a, `messages.length`) + eval[int](b, `messages.length`) + eval[int](c, `messages.length`); got != 7 {
			t.Errorf("the tabs got %d messages, want 7", got)
		}

		// Who comes later is told that it is live, and gets nothing that was before. A topic that
		// a tab gives up goes on for the others.
		follow(c, "both")
		c.waitFor(live("both"))
		follow(c, "of b")
		c.waitFor(live("of b"))
		unfollow(a, "both")
		follow(a, "later")
		a.waitFor(live("later")) // the worker has seen this, so also what was before
		publish("two")
		waitForLast(b, "*", "two")
		waitForLast(c, "*", "two")
		waitForLast(a, "*", "two")
		wantSeen(a, "both", "<live>", "one")
		wantSeen(b, "both", "<live>", "one", "two")
		wantSeen(c, "both", "<live>", "two")
		wantSeen(c, "of b", "<live>", "two")

		// A tab that closes takes its topics with it, and leaves the others'.
		clientsOf(t, p, "of a", 1)
		a.close()
		clientsOf(t, p, "of a", 0)
		publish("three")
		for _, tab := range []*tab{b, c} {
			waitForLast(tab, "*", "three")
			waitForLast(tab, "of b", "three")
		}
		runJS(b, `push.close()`) // which is as good as gone
		unfollow(c, "of b")
		clientsOf(t, p, "of b", 0)
		publish("four")
		waitForLast(c, "both", "four")
		wantSeen(b, "of b", "<live>", "one", "two", "three")
		if s := p.Stats(); s.Clients != 1 {
			t.Errorf("there are %d connections", s.Clients)
		}

		// The last one closes the connection. Who comes then has a new one.
		b.close()
		c.close()
		clientsOf(t, p, "*", 0)
		d := openClient(t, server.URL, options, "both")
		d.waitFor(live("both"))
		publish("five")
		waitForLast(d, "both", "five")
		wantSeen(d, "both", "<live>", "five")
	})
}

// TestClientJSSharesThroughCuts is TestClientJSThroughCuts for two tabs, and a third that is loaded again and again.
func TestClientJSSharesThroughCuts(t *testing.T) {
	t.Parallel()
	overEachShared(t, func(t *testing.T, options string) {
		p := startPushlet(t, longHistory)
		server := serve(t, p, clientRoutes(t, p))
		proxy := startProxy(t, server.Listener.Addr().String())
		url := "http://" + proxy.addr
		a, b := openClient(t, url, options, "one", "both", "*"), openClient(t, url, options, "two", "both", "*")
		c := openClient(t, url, options, "both")
		a.waitFor(live("one", "both", "*"))
		b.waitFor(live("two", "both", "*"))
		n := &numbering{t: t, p: p, topics: []string{"one", "two", "both", "*"}}
		for range 5 {
			n.publish(100)
			proxy.cut()
			n.publish(100)
			a.waitFor(isWaiting)
			proxy.mend()
			n.publish(100)
			c.do(chromedp.Reload())
			start(c, options, "both")
			c.waitFor(live("both"))
		}
		n.check(a, "one", "both", "*")
		n.check(b, "two", "both", "*")
		if got := p.Stats(); got.Clients != 1 {
			t.Errorf("there are %d connections", got.Clients)
		}
		n.publish(1)
		waitForLast(c, "both", fmt.Sprint(n.next-1))
	})
}

// TestClientJSWorkerDies ends the SharedWorker, as a browser that needs memory may.
func TestClientJSWorkerDies(t *testing.T) {
	t.Parallel()
	overEachShared(t, func(t *testing.T, options string) {
		p := startPushlet(t)
		server := serve(t, p, clientRoutes(t, p))
		tabs := []*tab{openClient(t, server.URL, options, "news", "*"), openClient(t, server.URL, options, "news", "sports")}
		tabs[0].waitFor(live("news", "*"))
		tabs[1].waitFor(live("news", "sports"))
		for i := range 2 {
			killWorker(tabs[0], server.URL)
			for _, tab := range tabs {
				tab.waitFor(fmt.Sprintf(`Object.values(seen).every(told => told.filter(s => s === "<gap not_resumable>").length === %d)`, i+1))
			}
			// It is told when nothing more will be missed, so that what the page loads then is complete.
			must(t, p.Publish("news", "message", fmt.Sprint(i)))
			must(t, p.PublishToAll("message", fmt.Sprint(i)))
			for _, tab := range tabs {
				waitForLast(tab, "news", fmt.Sprint(i))
			}
			waitForLast(tabs[0], "*", fmt.Sprint(i))
		}
		wantSeen(tabs[0], "*", "<live>", "<gap not_resumable>", "0", "<gap not_resumable>", "1")
		wantSeen(tabs[1], "news", "<live>", "<gap not_resumable>", "0", "<gap not_resumable>", "1")
		wantSeen(tabs[1], "sports", "<live>", "<gap not_resumable>", "<gap not_resumable>")
	})
}

func TestClientJSSharesBackAndForth(t *testing.T) {
	t.Parallel()
	overEachShared(t, goesBackAndForth)
}

func TestClientJSSharesGaps(t *testing.T) {
	t.Parallel()
	overEachShared(t, isToldOfGap)
}

func TestClientJSSharesRefusals(t *testing.T) {
	t.Parallel()
	overEachShared(t, isRefused)
}

// TestClientJSSharesOneVersion: a worker of another version than the page's says so.
func TestClientJSSharesOneVersion(t *testing.T) {
	t.Parallel()
	p := startPushlet(t)
	mux := clientRoutes(t, p)
	mux.HandleFunc("/old.js", func(w http.ResponseWriter, r *http.Request) {
		served := httptest.NewRecorder()
		p.HandleClientJS(served, httptest.NewRequest(http.MethodGet, "/pushlet.js", nil))
		old := strings.Replace(served.Body.String(), "pushlet 1 ", "pushlet 0 ", 1)
		if old == served.Body.String() {
			t.Error("pushlet.js has no version in the name of its worker")
		}
		w.Header().Set("Content-Type", "text/javascript")
		io.WriteString(w, old)
	})
	server := serve(t, p, mux)
	for _, script := range []string{"/old.js", "/none.js"} {
		tab := openClient(t, server.URL, fmt.Sprintf(`{share: %q}`, script), "news")
		tab.waitFor(`failures.length`)
		if got := eval[string](tab, `failures.join()`); !strings.HasPrefix(got, "pushlet: ") {
			t.Errorf("with %s the page is told %q", script, got)
		}
	}
}

func TestClientJSSharesAndComesBack(t *testing.T) {
	t.Parallel()
	overEachShared(t, comesBack)
}

// killWorker ends the SharedWorker of an origin.
func killWorker(p *tab, origin string) {
	p.t.Helper()
	var worker *target.Info
	eventually(p.t, "there is a worker", func() bool {
		all, err := chromedp.CallBrowser(p.ctx, target.GetTargets, target.GetTargetsParams{})
		must(p.t, err)
		i := slices.IndexFunc(all.TargetInfos, func(x *target.Info) bool {
			return x.Type == "shared_worker" && strings.HasPrefix(x.URL, origin+"/")
		})
		if i >= 0 {
			worker = all.TargetInfos[i]
		}
		return i >= 0
	})
	_, err := chromedp.CallBrowser(p.ctx, target.CloseTarget, target.CloseTargetParams{TargetID: worker.TargetID})
	must(p.t, err)
}

// TestClientJSSharesByOptions: tabs that want different connections do not share one.
func TestClientJSSharesByOptions(t *testing.T) {
	t.Parallel()
	p := startPushlet(t, pushlet.WithPresence(0))
	must(t, p.SetHeartbeatInterval(time.Minute))
	server := serve(t, p, clientRoutes(t, p))
	for i, options := range []string{
		shared,
		`{share: "/pushlet.js", webSocket: "/ws?token=1"}`,
		`{share: "/pushlet.js", transports: ["eventSource"]}`,
		`{}`, // a connection of its own
	} {
		tab := openClient(t, server.URL, options, "news")
		tab.waitFor(live("news"))
		clientsOf(t, p, "news", i+1)
	}
	tab := openClient(t, server.URL, `{share: "/pushlet.js", webSocket: new URL("/ws", location)}`, "news") // as the first
	tab.waitFor(live("news"))
	if n := p.Stats().Clients; n != 4 {
		t.Errorf("there are %d connections, want 4", n)
	}
	if got := eval[string](tab, `(() => { try { start({share: "/pushlet.js", webSocket: () => "/ws"}); } catch (err) { return err.name; } })()`); got != "TypeError" {
		t.Errorf("an address that is a function gives %q", got)
	}
}

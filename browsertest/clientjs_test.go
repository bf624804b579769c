package browsertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/usual2970/pushlet"
)

// clientPage follows topics with pushlet.js; see testdata/client.js.
const clientPage = `<!DOCTYPE html>
<title>client</title>
<link rel="icon" href="data:,">
<script type="module" src="/client.js"></script>`

// clientRoutes serves clientPage at / with what it needs.
func clientRoutes(t *testing.T, p *pushlet.Pushlet) *http.ServeMux {
	t.Helper()
	mux := routes(p, clientPage)
	mux.HandleFunc("/pushlet.js", p.HandleClientJS)
	script := readPage(t, "client.js")
	mux.HandleFunc("/client.js", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		w.Header().Set("Cache-Control", "no-store")
		io.WriteString(w, script)
	})
	return mux
}

// openClient shows clientPage, and follows topics with a Pushlet of these options, an object in JavaScript.
func openClient(t *testing.T, url, options string, topics ...string) *tab {
	t.Helper()
	p := openTab(t, url)
	start(p, options, topics...)
	return p
}

func start(p *tab, options string, topics ...string) {
	p.t.Helper()
	runJS(p, fmt.Sprintf(`start(%s)`, options))
	follow(p, topics...)
}

func follow(p *tab, topics ...string) {
	p.t.Helper()
	runJS(p, fmt.Sprintf(`follow(...%s)`, inJS(topics)))
}

func unfollow(p *tab, topics ...string) {
	p.t.Helper()
	runJS(p, fmt.Sprintf(`unfollow(...%s)`, inJS(topics)))
}

// runJS runs a statement for what it does.
func runJS(p *tab, statement string) {
	p.t.Helper()
	eval[chromedp.Void](p, statement)
}

// inJS returns a value as JavaScript has it.
func inJS(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // no test has such a value
	}
	return string(text)
}

// live is the condition that a page has been told that it follows these topics.
func live(topics ...string) string {
	return fmt.Sprintf(`%s.every(topic => seen[topic]?.includes("<live>"))`, inJS(topics))
}

const (
	isOpen    = `push.status === "open"`
	isWaiting = `push.status === "waiting"`
)

// waitForLast waits until the last that a page was told of a topic is this.
func waitForLast(p *tab, topic, text string) {
	p.t.Helper()
	p.waitFor(fmt.Sprintf(`seen[%q].at(-1) === %s`, topic, inJS(text)))
}

// wantSeen checks all that a page was told of a topic.
func wantSeen(p *tab, topic string, want ...string) {
	p.t.Helper()
	got := eval[[]string](p, fmt.Sprintf(`seen[%q]`, topic))
	if slices.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	p.t.Errorf("of %s the page was told %d things, want %d; from number %d on %.200q, want %.200q",
		topic, len(got), len(want), at, got[at:], want[at:])
}

// eventually waits for a condition of the server.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain until ", what)
		}
	}
}

// clientsOf waits until so many connections follow a topic; "*" is all. It needs WithPresence.
func clientsOf(t *testing.T, p *pushlet.Pushlet, topic string, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d connections follow %s", want, topic), func() bool {
		who, err := p.Presence(t.Context(), topic)
		must(t, err)
		return who.Clients == want
	})
}

// overEach runs a test over each transport, with the options that choose it.
func overEach(t *testing.T, test func(t *testing.T, options string)) {
	for _, transport := range []string{"webSocket", "eventSource"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			test(t, fmt.Sprintf(`{transports: [%q]}`, transport))
		})
	}
}

// A numbering publishes "0", "1", … to each of some topics; "*" is for everyone.
type numbering struct {
	t      *testing.T
	p      *pushlet.Pushlet
	topics []string
	next   int
}

func (n *numbering) publish(count int) {
	n.t.Helper()
	for range count {
		for _, topic := range n.topics {
			publish := func(event, data string) error { return n.p.Publish(topic, event, data) }
			if topic == "*" {
				publish = n.p.PublishToAll
			}
			must(n.t, publish("message", fmt.Sprint(n.next)))
		}
		n.next++
	}
}

// check waits until a page has the last message of each topic, and checks that it was told
// nothing but all of them.
func (n *numbering) check(p *tab, topics ...string) {
	p.t.Helper()
	want := []string{"<live>"}
	for i := range n.next {
		want = append(want, fmt.Sprint(i))
	}
	for _, topic := range topics {
		waitForLast(p, topic, want[n.next])
		wantSeen(p, topic, want...)
	}
}

// longHistory forgets nothing that a test publishes.
var longHistory = pushlet.WithHistory(100_000, 64<<20, time.Hour)

func TestClientJSFollows(t *testing.T) {
	t.Parallel()
	odd := []string{
		"plain", "", " one leading space", "trailing space ", "a\nb\r\nc\rd\n\n", "\x00", "tab\t, \"quoted\" and \\",
		"\ufeffBOM", "emoji 👩‍👩‍👧‍👦 🇩🇪 é 你好", "\u2028 and \u0085", "data: forged\n\nid: forged", "</script>", "[object Object]",
		strings.Repeat("中\r\n", 1<<17), "the end",
	}
	overEach(t, func(t *testing.T, options string) {
		p := startPushlet(t, pushlet.WithPresence(0), pushlet.WithIdentity(func(*http.Request) (string, error) { return "ann", nil }))
		server := serve(t, p, clientRoutes(t, p))
		tab := openClient(t, server.URL, options, "news", "sports", "中文/é", "*", "@user")
		tab.waitFor(live("news", "sports", "中文/é", "*", "@user"))

		for _, data := range odd {
			must(t, p.Publish("news", "message", data))
		}
		waitForLast(tab, "news", "the end")
		wantSeen(tab, "news", append([]string{"<live>"}, odd...)...)
		must(t, p.Publish("中文/é", "an event: of mine", "named"))
		must(t, p.Publish("sports", "", "without a name"))
		must(t, p.PublishToAll("alarm", "to all"))
		must(t, p.PublishToUsers([]string{"ann", "bob"}, "letter", "to ann"))
		must(t, p.PublishToUsers([]string{"bob"}, "letter", "to bob"))
		tab.waitFor(fmt.Sprintf(`messages.length === %d`, len(odd)+4))
		got := eval[[]string](tab, fmt.Sprintf(`messages.slice(%d).map(m => [m.topic, m.event, m.data].join(" | "))`, len(odd)))
		want := []string{"中文/é | an event: of mine | named", "sports | message | without a name", "* | alarm | to all", "@user | letter | to ann"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if !eval[bool](tab, `messages.every(m => m.id && Math.abs(new Date(m.timestamp) - Date.now()) < 60e3)`) {
			t.Error("a message has no ID, or was not published just now")
		}

		// One more, and one less.
		follow(tab, "late")
		tab.waitFor(live("late"))
		unfollow(tab, "sports")
		clientsOf(t, p, "sports", 0)
		must(t, p.Publish("sports", "message", "not wanted"))
		must(t, p.Publish("late", "message", "wanted"))
		waitForLast(tab, "late", "wanted")
		wantSeen(tab, "late", "<live>", "wanted")
		wantSeen(tab, "sports", "<live>", "without a name")

		// It is new when it is wanted again.
		follow(tab, "sports")
		waitForLast(tab, "sports", "<live>")
		must(t, p.Publish("sports", "message", "wanted again"))
		waitForLast(tab, "sports", "wanted again")
		wantSeen(tab, "sports", "<live>", "without a name", "<live>", "wanted again")
		wantSeen(tab, "*", "<live>", "to all")

		// Back and forth at once.
		runJS(tab, `for (let i = 0; i < 5; i++) { unfollow("sports", "late"); follow("late", "sports"); }`)
		tab.waitFor(`["sports", "late"].every(topic => seen[topic].at(-1) === "<live>")`)
		must(t, p.Publish("sports", "message", "after all that"))
		must(t, p.Publish("late", "message", "after all that"))
		for _, topic := range []string{"sports", "late"} {
			waitForLast(tab, topic, "after all that")
			if lives := eval[int](tab, fmt.Sprintf(`seen[%q].filter(s => s === "<live>").length`, topic)); lives > 7 {
				t.Errorf("%s was live %d times", topic, lives)
			}
		}

		// Nothing is wanted any more, and then something is.
		unfollow(tab, "news", "sports", "中文/é", "*", "@user", "late")
		tab.waitFor(`push.status === "idle"`)
		clientsOf(t, p, "*", 0)
		must(t, p.Publish("news", "message", "into the blue"))
		follow(tab, "news")
		waitForLast(tab, "news", "<live>")
		runJS(tab, `push.close()`)
		clientsOf(t, p, "*", 0)
		if got := eval[[]string](tab, `failures`); len(got) > 0 {
			t.Errorf("failures: %q", got)
		}
	})
}

func TestClientJSBackAndForth(t *testing.T) {
	t.Parallel()
	overEach(t, goesBackAndForth)
}

// goesBackAndForth gives a topic up and wants it again at once, while its messages are on their way. What comes
// then has no hole: it does not begin with what was still meant for the subscription before.
func goesBackAndForth(t *testing.T, options string) {
	t.Helper()
	p := startPushlet(t, longHistory)
	server := serve(t, p, clientRoutes(t, p))
	tab := openClient(t, server.URL, options, "news", "other")
	tab.waitFor(live("news", "other"))
	next := 0
	for range 40 {
		var publisher sync.WaitGroup
		publisher.Go(func() {
			for range 100 {
				if err := p.Publish("news", "message", fmt.Sprint(next)); err != nil {
					t.Error(err)
				}
				next++
			}
		})
		runJS(tab, `unfollow("news"); seen.news.push("<again>"); follow("news")`)
		tab.waitFor(`seen.news.slice(seen.news.lastIndexOf("<again>")).includes("<live>")`)
		publisher.Wait()
	}
	must(t, p.Publish("news", "message", "the end"))
	waitForLast(tab, "news", "the end")
	all := eval[[]string](tab, `seen.news`)
	last, messages := -1, 0
	for i, told := range all[:len(all)-1] {
		switch number, err := strconv.Atoi(told); {
		case told == "<again>":
			if last = -1; all[i+1] != "<live>" {
				t.Fatalf("what comes first is %q", all[i+1])
			}
		case err == nil && last >= 0 && number != last+1:
			t.Fatalf("%d came after %d", number, last)
		case err == nil:
			last = number
			messages++
		}
	}
	if messages == 0 {
		t.Error("no message came in between")
	}
}

func TestClientJSRefused(t *testing.T) {
	t.Parallel()
	overEach(t, isRefused)
}

func isRefused(t *testing.T, options string) {
	t.Helper()
	p := startPushlet(t, pushlet.WithAuthorize(func(_ *http.Request, topic string) error {
		if topic == "secret" {
			return errors.New("not for you")
		}
		return nil
	}))
	server := serve(t, p, clientRoutes(t, p))
	tab := openClient(t, server.URL, options, "news", "secret")
	tab.waitFor(live("news"))
	tab.waitFor(`seen.secret.length`)
	must(t, p.Publish("secret", "message", "a secret"))
	must(t, p.Publish("news", "message", "no secret"))
	waitForLast(tab, "news", "no secret")
	wantSeen(tab, "news", "<live>", "no secret")
	if got := eval[[]string](tab, `seen.secret`); len(got) != 1 || !strings.Contains(got[0], "not for you") {
		t.Errorf("of the secret the page was told %q", got)
	}
	if got := eval[string](tab, `(() => { try { follow("a\nb"); } catch (err) { return err.name; } })()`); got != "TypeError" {
		t.Errorf("a topic that cannot be gives %q", got)
	}
}

// TestClientJSThroughCuts cuts the network again and again while messages come.
func TestClientJSThroughCuts(t *testing.T) {
	t.Parallel()
	overEach(t, func(t *testing.T, options string) {
		p := startPushlet(t, longHistory)
		server := serve(t, p, clientRoutes(t, p))
		proxy := startProxy(t, server.Listener.Addr().String())
		n := &numbering{t: t, p: p, topics: []string{"a", "b", "*"}}
		tab := openClient(t, "http://"+proxy.addr, options, n.topics...)
		tab.waitFor(live(n.topics...))
		for round := range 8 {
			n.publish(100)
			proxy.cut()
			n.publish(100)
			if round%2 == 0 {
				tab.waitFor(isWaiting) // else it may not even have noticed
			}
			proxy.mend()
			n.publish(100)
			if round%3 > 0 {
				tab.waitFor(isOpen) // else it is cut again while it comes back
			}
		}
		n.check(tab, n.topics...)
	})
}

// TestClientJSManyTopics comes back with more topics than a client may send commands at once.
func TestClientJSManyTopics(t *testing.T) {
	t.Parallel()
	overEach(t, func(t *testing.T, options string) {
		var topics []string
		for i := range 500 {
			topics = append(topics, fmt.Sprint("a/topic/", i))
		}
		p := startPushlet(t, longHistory, pushlet.WithMaxTopics(len(topics)+1))
		server := serve(t, p, clientRoutes(t, p))
		proxy := startProxy(t, server.Listener.Addr().String())
		n := &numbering{t: t, p: p, topics: append(topics, "*")}
		tab := openClient(t, "http://"+proxy.addr, options, n.topics...)
		tab.waitFor(live(topics[0], topics[len(topics)-1], "*"))
		for range 2 {
			n.publish(1)
			proxy.cut()
			n.publish(1)
			tab.waitFor(isWaiting)
			proxy.mend()
			n.publish(1)
			tab.waitFor(isOpen)
		}
		tab.waitFor(fmt.Sprintf(`messages.length === %d`, n.next*len(n.topics)))
		n.check(tab, topics[0], topics[100], topics[250], topics[len(topics)-1], "*")
		if got := eval[[]string](tab, `failures`); len(got) > 0 {
			t.Errorf("failures: %q", got)
		}
	})
}

// TestClientJSGap cuts a page off for longer than history reaches.
func TestClientJSGap(t *testing.T) {
	t.Parallel()
	overEach(t, isToldOfGap)
}

func isToldOfGap(t *testing.T, options string) {
	t.Helper()
	p := startPushlet(t, pushlet.WithHistory(3, 1<<20, time.Hour))
	server := serve(t, p, clientRoutes(t, p))
	proxy := startProxy(t, server.Listener.Addr().String())
	tab := openClient(t, "http://"+proxy.addr, options, "busy", "quiet", "*")
	tab.waitFor(live("busy", "quiet", "*"))
	busy := &numbering{t: t, p: p, topics: []string{"busy", "*"}}
	quiet := &numbering{t: t, p: p, topics: []string{"quiet"}}
	busy.publish(1)
	quiet.publish(1)
	for _, topic := range []string{"busy", "quiet", "*"} {
		waitForLast(tab, topic, "0")
	}

	proxy.cut()
	tab.waitFor(isWaiting)
	busy.publish(9)
	quiet.publish(1)
	proxy.mend()
	waitForLast(tab, "busy", "9")
	waitForLast(tab, "*", "9")
	busy.publish(1)
	quiet.publish(1)
	quiet.check(tab, "quiet")
	for _, topic := range busy.topics {
		waitForLast(tab, topic, "10")
		wantSeen(tab, topic, "<live>", "0", "<gap trimmed>", "7", "8", "9", "10")
	}
}

// TestClientJSServerRestarts kills the server, and stops it, and starts another at the same address.
func TestClientJSServerRestarts(t *testing.T) {
	t.Parallel()
	overEach(t, func(t *testing.T, options string) {
		server := startProgram(t, buildBrowser, "-addr", "127.0.0.1:0")
		base := server.base
		push := func(data string) {
			t.Helper()
			body := fmt.Sprintf(`{"topics":["news"],"events":[{"data":%q}]}`, data)
			response, err := http.Post(base+"/push", "application/json", strings.NewReader(body))
			must(t, err)
			response.Body.Close()
			if response.StatusCode != http.StatusOK {
				t.Fatal("/push answers ", response.Status)
			}
		}
		tab := openTab(t, base)
		runModule(tab, readPage(t, "client.js"))
		tab.waitFor(`window.unfollow`) // its page has elements with IDs like the others
		start(tab, options, "news")
		tab.waitFor(live("news"))
		push("before")
		waitForLast(tab, "news", "before")

		server.kill()
		tab.waitFor(isWaiting)
		server = server.again(buildBrowser)
		waitForLast(tab, "news", "<gap restarted>")
		push("killed")
		waitForLast(tab, "news", "killed")

		server.stop()
		tab.waitFor(isWaiting)
		server.again(buildBrowser)
		waitForLast(tab, "news", "<gap restarted>")
		push("stopped")
		waitForLast(tab, "news", "stopped")
		wantSeen(tab, "news", "<live>", "before", "<gap restarted>", "killed", "<gap restarted>", "stopped")
	})
}

// TestClientJSFallsBack has one of the endpoints not work.
func TestClientJSFallsBack(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, broken, options string
		answer                http.HandlerFunc
	}{
		{"404 for a WebSocket", "/ws", `{}`, http.NotFound},
		{"502 for a WebSocket", "/ws", `{}`, answer(http.StatusBadGateway)},
		{"404 for an EventSource", "/events", `{transports: ["eventSource", "webSocket"]}`, http.NotFound},
		{"502 for an EventSource", "/events", `{transports: ["eventSource", "webSocket"]}`, answer(http.StatusBadGateway)},
		{"204 for an EventSource", "/events", `{transports: ["eventSource", "webSocket"]}`, answer(http.StatusNoContent)},
		{"a page for an EventSource", "/events", `{transports: ["eventSource", "webSocket"]}`, servePage("<title>Log in</title>")},
		{"another stream", "/events", `{idle: 600, transports: ["eventSource", "webSocket"]}`, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprint(w, "data: hello\n\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}},
		{"silence", "/ws", `{idle: 600}`, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := startPushlet(t)
			mux := clientRoutes(t, p)
			server := serve(t, p, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == c.broken {
					c.answer(w, r)
					return
				}
				mux.ServeHTTP(w, r)
			}))
			proxy := startProxy(t, server.Listener.Addr().String())
			tab := openClient(t, "http://"+proxy.addr, c.options, "news")
			tab.waitFor(live("news"))
			must(t, p.Publish("news", "message", "one"))
			waitForLast(tab, "news", "one")
			if got := p.Stats(); (c.broken == "/ws") != (got.SSE == 1) || got.Clients != 1 {
				t.Errorf("there are %d EventSources and %d WebSockets", got.SSE, got.WebSocket)
			}

			// What has worked is used again.
			proxy.cut()
			must(t, p.Publish("news", "message", "two"))
			tab.waitFor(isWaiting)
			proxy.mend()
			must(t, p.Publish("news", "message", "three"))
			waitForLast(tab, "news", "three")
			wantSeen(tab, "news", "<live>", "one", "two", "three")
		})
	}

	t.Run("not where it may not", func(t *testing.T) {
		t.Parallel()
		p := startPushlet(t)
		mux := clientRoutes(t, p)
		var refused, streams atomic.Int32
		server := serve(t, p, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/events" {
				streams.Add(1)
			}
			if r.URL.Path == "/ws" && refused.Add(1) < 5 {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			mux.ServeHTTP(w, r)
		}))
		tab := openClient(t, server.URL, `{eventSource: false}`, "news")
		tab.waitFor(live("news"))
		if n := streams.Load(); n > 0 {
			t.Errorf("it has tried %d EventSources", n)
		}
		if got := eval[string](tab, `(() => { try { new Pushlet({eventSource: false, webSocket: false}); } catch (err) { return err.name; } })()`); got != "TypeError" {
			t.Errorf("without any transport it gives %q", got)
		}
	})
}

func answer(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

// TestClientJSHalfOpen: connections on which nothing comes any more, and that nobody closes.
func TestClientJSHalfOpen(t *testing.T) {
	t.Parallel()
	overEach(t, func(t *testing.T, options string) {
		p := startPushlet(t, longHistory)
		must(t, p.SetHeartbeatInterval(400*time.Millisecond)) // for the EventSource
		server := serve(t, p, clientRoutes(t, p))
		proxy := startProxy(t, server.Listener.Addr().String())
		n := &numbering{t: t, p: p, topics: []string{"a", "*"}}
		tab := openClient(t, "http://"+proxy.addr, `{idle: 900, ...`+options+`}`, n.topics...)
		tab.waitFor(live(n.topics...))
		for range 3 {
			n.publish(10)
			connected := p.Stats().Connected
			proxy.freeze()
			n.publish(10)
			eventually(t, "the page comes back", func() bool { return p.Stats().Connected > connected })
		}
		n.publish(10)
		n.check(tab, n.topics...)
	})
}

// farAway are options with which the next attempt would be too late for the test.
const farAway = `reconnect: [600_000, 600_000]`

func TestClientJSOnline(t *testing.T) {
	t.Parallel()
	overEach(t, func(t *testing.T, options string) {
		p := startPushlet(t)
		server := serve(t, p, clientRoutes(t, p))
		proxy := startProxy(t, server.Listener.Addr().String())
		tab := openClient(t, "http://"+proxy.addr, `{`+farAway+`, ...`+options+`}`, "news")
		tab.waitFor(live("news"))
		offline := func(is bool) {
			t.Helper()
			_, err := chromedp.Call(tab.ctx, network.OverrideNetworkState, network.OverrideNetworkStateParams{
				Offline: is, DownloadThroughput: -1, UploadThroughput: -1})
			must(t, err)
			tab.waitFor(fmt.Sprintf(`navigator.onLine === %t`, !is))
		}
		offline(true)
		proxy.cut()
		tab.waitFor(isWaiting)
		must(t, p.Publish("news", "message", "missed"))
		proxy.mend()
		offline(false)
		waitForLast(tab, "news", "missed")

		// By hand.
		proxy.cut()
		tab.waitFor(isWaiting)
		must(t, p.Publish("news", "message", "missed, too"))
		proxy.mend()
		runJS(tab, `push.wake()`)
		waitForLast(tab, "news", "missed, too")
		wantSeen(tab, "news", "<live>", "missed", "missed, too")
	})
}

// show makes the page believe that it is shown, or hidden.
func show(p *tab, shown bool) {
	p.t.Helper()
	state := map[bool]string{true: "visible", false: "hidden"}[shown]
	runJS(p, fmt.Sprintf(`
		Object.defineProperty(document, "visibilityState", {value: %q, configurable: true});
		document.dispatchEvent(new Event("visibilitychange", {bubbles: true}));`, state))
}

func TestClientJSHidden(t *testing.T) {
	t.Parallel()
	overEach(t, func(t *testing.T, options string) {
		p := startPushlet(t, pushlet.WithPresence(0))
		server := serve(t, p, clientRoutes(t, p))
		proxy := startProxy(t, server.Listener.Addr().String())
		tab := openClient(t, "http://"+proxy.addr, `{pauseHidden: 50, `+farAway+`, ...`+options+`}`, "news", "*")
		tab.waitFor(live("news", "*"))
		for i := range 3 {
			show(tab, false)
			tab.waitFor(`push.status === "paused"`)
			clientsOf(t, p, "*", 0)
			must(t, p.Publish("news", "message", fmt.Sprint(i)))
			must(t, p.PublishToAll("message", fmt.Sprint(i)))
			show(tab, true)
			waitForLast(tab, "news", fmt.Sprint(i))
			waitForLast(tab, "*", fmt.Sprint(i))
		}
		for _, topic := range []string{"news", "*"} {
			wantSeen(tab, topic, "<live>", "0", "1", "2")
		}

		// What is wanted meanwhile comes when it is shown.
		show(tab, false)
		tab.waitFor(`push.status === "paused"`)
		follow(tab, "more")
		show(tab, true)
		tab.waitFor(live("more"))

		// Shown is a good moment to try again.
		proxy.cut()
		tab.waitFor(isWaiting)
		proxy.mend()
		show(tab, true)
		tab.waitFor(isOpen)
	})
}

// TestClientJSOfAnotherOrigin imports the module from, and connects to, another origin.
func TestClientJSOfAnotherOrigin(t *testing.T) {
	t.Parallel()
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "clientjs", Value: "ann"}) // for the host, whatever the port
		io.WriteString(w, blankPage)
	}))
	t.Cleanup(page.Close)
	importFrom := func(tab *tab, server *httptest.Server) {
		t.Helper()
		runJS(tab, fmt.Sprintf(`import("%s/pushlet.js").then(m => window.module = m, err => window.module = String(err))`, server.URL))
		tab.waitFor(`window.module`)
	}
	t.Run("refused by default", func(t *testing.T) {
		t.Parallel()
		p := startPushlet(t)
		tab := openTab(t, page.URL)
		importFrom(tab, serve(t, p, clientRoutes(t, p)))
		if !eval[bool](tab, `typeof module === "string"`) {
			t.Error("the module was imported")
		}
	})
	overEach(t, func(t *testing.T, options string) {
		p := startPushlet(t, pushlet.WithAllowedOrigins(page.URL), pushlet.WithIdentity(func(r *http.Request) (string, error) {
			for _, cookie := range r.CookiesNamed("clientjs") {
				return cookie.Value, nil
			}
			return "", nil
		}))
		server := serve(t, p, clientRoutes(t, p))
		proxy := startProxy(t, server.Listener.Addr().String())
		tab := openTab(t, page.URL)
		importFrom(tab, server)
		runJS(tab, fmt.Sprintf(`
			window.got = [];
			const push = new module.Pushlet({
				webSocket: "http://%[1]s/ws", eventSource: "http://%[1]s/events", withCredentials: true, reconnect: [20, 200], ...%[2]s});
			push.subscribe("@user", m => got.push(m.data), {onLive: () => got.push("<live>")});`, proxy.addr, options))
		tab.waitFor(`got.includes("<live>")`)
		must(t, p.PublishToUsers([]string{"ann"}, "message", "one"))
		tab.waitFor(`got.at(-1) === "one"`)
		proxy.cut()
		must(t, p.PublishToUsers([]string{"ann"}, "message", "two"))
		proxy.mend()
		tab.waitFor(`got.at(-1) === "two"`)
		if got := eval[string](tab, `got.join()`); got != "<live>,one,two" {
			t.Errorf("got %s", got)
		}
	})
}

// TestClientJSPolicy: nothing that a strict Content-Security-Policy forbids.
func TestClientJSPolicy(t *testing.T) {
	t.Parallel()
	const trusted = `{share: trustedTypes.createPolicy("app", {createScriptURL: url => url}).createScriptURL("/pushlet.js")}`
	for _, options := range []string{`{transports: ["webSocket"]}`, `{transports: ["eventSource"]}`, trusted} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			p := startPushlet(t)
			mux := clientRoutes(t, p)
			server := serve(t, p, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Security-Policy", "default-src 'self'; img-src data:; require-trusted-types-for 'script'")
				mux.ServeHTTP(w, r)
			}))
			tab := openTab(t, server.URL)
			runJS(tab, `
				window.violations = [];
				document.addEventListener("securitypolicyviolation", e => violations.push(e.violatedDirective + " " + e.blockedURI));`)
			start(tab, options, "news")
			tab.waitFor(live("news") + ` || violations.length`)
			must(t, p.Publish("news", "message", "hello"))
			tab.waitFor(`seen.news.at(-1) === "hello" || violations.length`)
			if got := eval[[]string](tab, `violations`); len(got) > 0 {
				t.Errorf("the browser forbids %q", got)
			}
		})
	}
}

func TestClientJSComesBack(t *testing.T) {
	t.Parallel()
	overEach(t, comesBack)
}

// comesBack leaves the page for another, and goes back to it as the browser has kept it. What the page was
// told it tells the server, since such a page is out of the reach of DevTools.
func comesBack(t *testing.T, options string) {
	t.Helper()
	p := startPushlet(t)
	told := make(chan string, 100) // more than there is
	mux := clientRoutes(t, p)
	mux.HandleFunc("/elsewhere", servePage(blankPage))
	mux.HandleFunc("/told", func(_ http.ResponseWriter, r *http.Request) { told <- r.FormValue("text") })
	var loaded atomic.Int32
	server := serve(t, p, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/client.js" && loaded.Add(1) > 1 {
			told <- "loaded again"
		}
		mux.ServeHTTP(w, r)
	}))
	tab := openClient(t, server.URL, options, "news")
	tab.waitFor(live("news"))
	runJS(tab, `{
		const tell = text => fetch("/told", {method: "POST", body: new URLSearchParams({text})});
		push.subscribe("news", m => tell(m.data), {onGap: ({reason}) => tell(reason)});
		addEventListener("pageshow", () => tell("shown"));
	}`)
	tab.do(chromedp.Navigate(server.URL + "/elsewhere"))
	must(t, p.Publish("news", "message", "missed"))
	runJS(tab, `history.back()`)
	next := func() string {
		t.Helper()
		select {
		case text := <-told:
			if text == "loaded again" {
				t.Skip("the browser has not kept the page")
			}
			return text
		case <-time.After(patience):
			t.Fatal("waited in vain for the page")
			return ""
		}
	}
	got := []string{next(), next()}
	must(t, p.Publish("news", "message", "after"))
	got = append(got, next())
	slices.Sort(got[:2]) // they are on their way at once
	if want := []string{"missed", "shown", "after"}; !slices.Equal(got, want) {
		t.Errorf("the page says %q, want %q", got, want)
	}
}

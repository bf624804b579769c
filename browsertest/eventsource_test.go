package browsertest

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/usual2970/pushlet"
)

// Over HTTP/1.1 a browser opens six streams to a host and no more; over HTTP/2 they share a connection.
func TestTwelveEventSourcesOverHTTP2(t *testing.T) {
	t.Parallel()
	const streams = 12
	p := startPushlet(t)
	var http2 atomic.Int32
	routes := routes(p, blankPage)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" && r.ProtoMajor == 2 {
			http2.Add(1)
		}
		routes.ServeHTTP(w, r)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	stopAtEnd(t, p, server)

	tab := openTab(t, server.URL)
	eval[chromedp.Void](tab, fmt.Sprintf(
		`window.streams = Array.from({length: %d}, (_, i) => follow("/events?topic=topic-" + i))`, streams))
	tab.waitFor(`streams.every(stream => stream.connected === 1)`)
	for i := range streams {
		must(t, p.Publish(fmt.Sprintf("topic-%d", i), "message", fmt.Sprint("for ", i)))
	}
	must(t, p.PublishToAll("message", "for all"))
	tab.waitFor(`streams.every(stream => stream.messages.length === 2)`)
	for i, got := range eval[[][]string](tab, `streams.map(stream => stream.messages)`) {
		if want := []string{fmt.Sprint("for ", i), "for all"}; !slices.Equal(got, want) {
			t.Errorf("stream %d got %q, want %q", i, got, want)
		}
	}
	if n := http2.Load(); n != streams {
		t.Errorf("%d streams came over HTTP/2, want %d", n, streams)
	}
}

func TestEventSourceSeesWhatWasPublished(t *testing.T) {
	t.Parallel()
	published := []string{
		"plain",
		"",
		" one leading space",
		"  two",
		"trailing space ",
		"a\nb", "a\rb", "a\r\nb", "a\n\rb", "a\n\nb",
		"\n", "\r", "\r\n", "\n\n", "\n leading newline", "trailing newline\n", "two\n\n",
		"NUL \x00 inside", "\x00",
		"\ufeffBOM at the start", "BOM \ufeff inside", "\ufeff",
		"emoji 👩‍👩‍👧‍👦 🇩🇪 é 你好", "\u2028 and \u0085 end no line",
		"data: forged\n\nevent: forged\ndata: forged", "id: forged", ": comment", "retry: 1",
		"invalid \xff UTF-8",
		strings.Repeat("x", 1<<20),
		strings.Repeat("中\r\n", 1<<20/5),
		"the end",
	}
	asSeen := strings.NewReplacer("\r\n", "\n", "\r", "\n", "\xff", "\ufffd")

	p := startPushlet(t)
	server := serve(t, p, routes(p, blankPage))
	tab := openTab(t, server.URL)
	eval[chromedp.Void](tab, `window.stream = follow("/events")`)
	tab.waitFor(`stream.connected === 1`)
	for _, data := range published {
		must(t, p.Publish("default", "message", data))
	}
	tab.waitFor(`stream.messages.at(-1) === "the end"`)
	got := eval[[]string](tab, `stream.messages`)
	if len(got) != len(published) {
		t.Errorf("%d messages arrived, want %d", len(got), len(published))
	}
	for i := range min(len(got), len(published)) {
		if want := asSeen.Replace(published[i]); got[i] != want {
			t.Errorf("published %.60q (%d bytes): e.data = %.60q (%d bytes)", published[i], len(published[i]), got[i], len(got[i]))
		}
	}
}

func TestEventSourceOfAnotherOrigin(t *testing.T) {
	t.Parallel()
	page := httptest.NewServer(servePage(blankPage))
	t.Cleanup(page.Close)

	t.Run("refused by default", func(t *testing.T) {
		t.Parallel()
		p := startPushlet(t)
		server := serve(t, p, routes(p, ""))
		tab := openTab(t, page.URL)
		eval[chromedp.Void](tab, fmt.Sprintf(`window.stream = follow("%s/events")`, server.URL))
		tab.waitFor(`stream.readyState === EventSource.CLOSED`)
		if n := eval[int](tab, `stream.connected`); n != 0 {
			t.Errorf("the page could read %d events", n)
		}
	})

	for _, topics := range []int{1, 6, 20} {
		t.Run(fmt.Sprintf("allowed, resumes %d topics", topics), func(t *testing.T) {
			t.Parallel()
			p := startPushlet(t, pushlet.WithAllowedOrigins(page.URL), pushlet.WithRetry(50*time.Millisecond))
			recorder := &requestRecorder{next: routes(p, "")}
			server := serve(t, p, recorder)
			proxy := startProxy(t, server.Listener.Addr().String())

			var query []string
			for i := range topics {
				query = append(query, fmt.Sprintf("topic=topic-%d", i))
			}
			tab := openTab(t, page.URL)
			eval[chromedp.Void](tab, fmt.Sprintf(`window.stream = follow("http://%s/events?%s")`, proxy.addr, strings.Join(query, "&")))
			tab.waitFor(`stream.connected === 1`)

			var want []string
			publish := func(n int) {
				for range n {
					data := fmt.Sprint("message ", len(want))
					must(t, p.Publish(fmt.Sprintf("topic-%d", len(want)%topics), "message", data))
					want = append(want, data)
				}
			}
			publish(topics)
			tab.waitFor(fmt.Sprintf(`stream.messages.length === %d`, len(want)))
			proxy.cut()
			publish(3)
			proxy.mend()
			tab.waitFor(`stream.connected === 2`)
			publish(1)
			tab.waitFor(fmt.Sprintf(`stream.messages.at(-1) === "%s"`, want[len(want)-1]))

			got := eval[[]string](tab, `stream.messages`)
			slices.Sort(got) // only messages of one topic keep their order
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			if gaps := eval[[]string](tab, `stream.gaps`); len(gaps) > 0 {
				t.Errorf("gaps: %q", gaps)
			}
			if recorder.resumes.Load() == 0 {
				t.Error("the browser sent no Last-Event-ID")
			}
		})
	}

	// Chromium resumes an EventSource without asking, whatever the standard says of a Last-Event-ID
	// over 128 bytes. What others ask, it asks for a fetch that sets the header.
	t.Run("allowed, resumes after a preflight", func(t *testing.T) {
		t.Parallel()
		p := startPushlet(t, pushlet.WithAllowedOrigins(page.URL))
		recorder := &requestRecorder{next: routes(p, "")}
		server := serve(t, p, recorder)
		tab := openTab(t, page.URL)
		eval[chromedp.Void](tab, fmt.Sprintf(`window.stream = follow("%s/events")`, server.URL))
		tab.waitFor(`stream.connected === 1`)
		must(t, p.Publish("default", "message", "seen"))
		tab.waitFor(`stream.lastID`)
		eval[chromedp.Void](tab, `stream.close()`)
		must(t, p.Publish("default", "message", "missed"))

		eval[chromedp.Void](tab, fmt.Sprintf(`
			window.answer = "";
			fetch("%s/events", {headers: {"Last-Event-ID": stream.lastID}}).then(async response => {
				const text = new TextDecoder();
				for await (const chunk of response.body) answer += text.decode(chunk);
			});`, server.URL))
		tab.waitFor(`answer.includes("data: missed\n\n")`)
		if answer := eval[string](tab, `answer`); !strings.Contains(answer, `"resumed":true`) || strings.Contains(answer, "data: seen") {
			t.Errorf("the stream began with %q, want it resumed after the message seen", answer)
		}
		if recorder.preflights.Load() == 0 {
			t.Error("the browser sent no preflight")
		}
	})
}

// A requestRecorder counts what came before it lets it through.
type requestRecorder struct {
	next       http.Handler
	resumes    atomic.Int32 // requests with a Last-Event-ID
	preflights atomic.Int32
}

func (c *requestRecorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Last-Event-ID") != "" {
		c.resumes.Add(1)
	}
	if r.Method == http.MethodOptions {
		c.preflights.Add(1)
	}
	c.next.ServeHTTP(w, r)
}

// A stopped instance tells an EventSource to come back, because after a plain refusal it never would.
func TestEventSourceOutlivesAnInstance(t *testing.T) {
	t.Parallel()
	old := startPushlet(t, pushlet.WithRetry(50*time.Millisecond))
	oldRoutes := routes(old, blankPage)
	var stopped atomic.Bool
	turnedAway := newSignal()
	oldServer := serve(t, old, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if stopped.Load() {
			turnedAway.give()
		}
		oldRoutes.ServeHTTP(w, r)
	}))

	tab := openTab(t, oldServer.URL)
	eval[chromedp.Void](tab, `window.stream = follow("/events")`)
	tab.waitFor(`stream.connected === 1`)
	must(t, old.Publish("default", "message", "before"))
	tab.waitFor(`stream.messages.length === 1`)

	// Stopped, but still listening, as behind a load balancer that has not noticed yet.
	must(t, old.Stop())
	stopped.Store(true)
	turnedAway.wait(t, "the EventSource to come back to the stopped instance")
	oldServer.Close()

	// Now nobody listens, and then the next version of the application does.
	p := startPushlet(t, pushlet.WithRetry(50*time.Millisecond))
	listener, err := net.Listen("tcp", oldServer.Listener.Addr().String())
	must(t, err)
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: routes(p, "")}}
	server.Start()
	stopAtEnd(t, p, server)

	tab.waitFor(`stream.connected === 2`)
	must(t, p.Publish("default", "message", "after"))
	tab.waitFor(`stream.messages.at(-1) === "after"`)
	if got, want := eval[[]string](tab, `stream.gaps`), []string{"restarted"}; !slices.Equal(got, want) {
		t.Errorf("gaps %q, want %q", got, want)
	}
	if got, want := eval[[]string](tab, `stream.messages`), []string{"before", "after"}; !slices.Equal(got, want) {
		t.Errorf("messages %q, want %q", got, want)
	}
}

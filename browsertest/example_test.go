package browsertest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// buildExample compiles example/dual_protocol.go once for all tests.
var buildExample = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(scratch, "dual_protocol")
	build := exec.Command("go", "build", "-o", binary, "./example/dual_protocol.go")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the example: %w\n%s", err, out)
	}
	return binary, nil
})

// An example is a running process of the example program.
type example struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr string // host:port
}

// startExample runs the example at addr until the test ends; port 0 takes a free one.
func startExample(t *testing.T, addr string) *example {
	t.Helper()
	binary, err := buildExample()
	must(t, err)
	cmd := exec.Command(binary, "-addr", addr)
	stderr, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })

	e := &example{t: t, cmd: cmd}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if _, base, ok := strings.Cut(lines.Text(), "Server started at http://"); ok {
			e.addr = base
		}
		if strings.Contains(lines.Text(), "WebSocket endpoint: ws://"+e.addr+"/ws") {
			go io.Copy(io.Discard, stderr) // ends with the process
			return e
		}
	}
	t.Fatal("the example ended before it served")
	return nil
}

// kill ends the process as kill -9 does.
func (e *example) kill() {
	e.t.Helper()
	must(e.t, e.cmd.Process.Kill())
	e.cmd.Wait() // its error is the kill
}

// get asks for a path, and returns the status and the answer.
func (e *example) get(path string) (int, string) {
	e.t.Helper()
	response, err := http.Get("http://" + e.addr + path)
	must(e.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(e.t, err)
	return response.StatusCode, string(body)
}

// send publishes with a plain GET, as the documents do.
func (e *example) send(topic, message string) {
	e.t.Helper()
	status, answer := e.get("/send?" + url.Values{"topic": {topic}, "message": {message}}.Encode())
	if status != http.StatusOK || answer != "Message sent" {
		e.t.Fatalf("/send answered %d %q", status, answer)
	}
}

// row is the JavaScript condition that a pane (sse or ws) shows a row of this kind with this text.
func row(pane, kind, text string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("#%s-log > [data-kind=%s] .data")].some(e => e.textContent.includes(%q))`, pane, kind, text)
}

func inBothPanes(condition func(pane string) string) string {
	return condition("sse") + " && " + condition("ws")
}

func shown(text string) string {
	return inBothPanes(func(pane string) string { return row(pane, "message", text) })
}

// state is the condition that a pane is connecting, open, waiting to try again, or closed.
func state(state string) func(pane string) string {
	return func(pane string) string {
		return fmt.Sprintf(`document.querySelector("#%s[data-state=%s]")`, pane, state)
	}
}

// began is the condition that both panes are connected, and say how that began: new, resumed or gap.
func began(how string) string {
	return inBothPanes(func(pane string) string {
		return fmt.Sprintf(`document.querySelector("#%s[data-state=open][data-began=%s]")`, pane, how)
	})
}

// messages returns what a pane shows, without the notices.
func messages(p *tab, pane string) []string {
	p.t.Helper()
	return eval[[]string](p, fmt.Sprintf(
		`[...document.querySelectorAll("#%s-log > [data-kind=message] .data")].map(e => e.textContent)`, pane))
}

func count(list []string, text string) int {
	n := 0
	for _, s := range list {
		if s == text {
			n++
		}
	}
	return n
}

// fill replaces the text of an input as a person does.
func fill(input, text string) []chromedp.Action[chromedp.Void] {
	return []chromedp.Action[chromedp.Void]{
		chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`document.querySelector(%q).select()`, input)),
		chromedp.SendKeys(chromedp.CSS(input), text),
	}
}

func click(button string) chromedp.Action[chromedp.Void] {
	return chromedp.Click(chromedp.CSS(button))
}

func TestExampleShowsMessages(t *testing.T) {
	t.Parallel()
	e := startExample(t, "127.0.0.1:0")
	tab := openTab(t, "http://"+e.addr)
	tab.waitFor(began("new"))

	// From the send box: the button, and the Enter key.
	tab.do(click("#send-button"))
	tab.waitFor(shown("Hello, World!"))
	tab.waitFor(`document.querySelector("#send-result").textContent === "Message sent"`)
	tab.do(fill("#send-message", "你好 <img src=x>"+kb.Enter)...)
	tab.waitFor(shown("你好 <img src=x>"))
	if eval[bool](tab, `document.querySelector("img") !== null`) {
		t.Error("a message became markup")
	}

	// From anywhere else.
	e.send("default", "from curl")
	tab.waitFor(shown("from curl"))
	if status, answer := e.get("/send?message=no+topic"); status != http.StatusOK || answer != "Message sent" {
		t.Errorf("/send answered %d %q", status, answer)
	}
	tab.waitFor(shown("no topic"))

	// Events: of the field, and one that the send box is the first to name.
	for _, event := range []string{"user-login", "new-event"} {
		tab.do(fill("#send-event", event)...)
		tab.do(append(fill("#send-message", "a "+event), click("#send-button"))...)
		tab.waitFor(shown("a " + event))
		tab.waitFor(inBothPanes(func(pane string) string {
			return fmt.Sprintf(`document.querySelector("#%s-log > :last-child").dataset.event === "%s"`, pane, event)
		}))
	}

	// A broadcast comes once, however many topics a client follows.
	tab.do(append(fill("#ws-topic", "news"), click("#ws-subscribe"))...)
	tab.waitFor(`document.querySelector('#ws-topics [data-topic=news][data-state=subscribed]')`)
	tab.do(append(fill("#send-message", "to everyone"), click("#broadcast-button"))...)
	tab.waitFor(shown("to everyone"))
	e.send("default", "after the broadcast")
	tab.waitFor(shown("after the broadcast"))
	for _, pane := range []string{"sse", "ws"} {
		got := messages(tab, pane)
		if n := count(got, "to everyone"); n != 1 {
			t.Errorf("%s shows the broadcast %d times in %q", pane, n, got)
		}
	}
}

func TestExampleSubscribesAndUnsubscribes(t *testing.T) {
	t.Parallel()
	e := startExample(t, "127.0.0.1:0")
	tab := openTab(t, "http://"+e.addr)
	tab.waitFor(began("new"))

	tab.do(fill("#ws-topic", "news"+kb.Enter)...)
	tab.waitFor(`document.querySelector('#ws-topics [data-topic=news][data-state=subscribed]')`)
	e.send("news", "wanted")
	tab.waitFor(row("ws", "message", "wanted"))

	// Commands are answered in order: once "other" is subscribed, "news" no longer is.
	tab.do(click("#ws-topics [data-topic=news] button"))
	tab.do(fill("#ws-topic", "other"+kb.Enter)...)
	tab.waitFor(`document.querySelector('#ws-topics [data-topic=other][data-state=subscribed]')`)
	e.send("news", "no longer")
	e.send("default", "the end")
	tab.waitFor(shown("the end"))
	if got, want := messages(tab, "ws"), []string{"wanted", "the end"}; !slices.Equal(got, want) {
		t.Errorf("the WebSocket pane shows %q, want %q", got, want)
	}
	if got, want := messages(tab, "sse"), []string{"the end"}; !slices.Equal(got, want) {
		t.Errorf("the SSE pane shows %q, want %q", got, want)
	}

	// The other pane chooses its topics when it connects.
	tab.do(click("#sse-connect"))
	tab.do(fill("#sse-topic", "news, other"+kb.Enter)...)
	tab.waitFor(`document.querySelector("#sse[data-state=open][data-began=new]")`)
	e.send("news", "to the stream")
	tab.waitFor(row("sse", "message", "to the stream"))
}

func TestExampleResumesAfterItsButtons(t *testing.T) {
	t.Parallel()
	e := startExample(t, "127.0.0.1:0")
	tab := openTab(t, "http://"+e.addr)
	tab.waitFor(began("new"))
	e.send("default", "before")
	tab.waitFor(shown("before"))
	tab.do(click("#sse-connect"), click("#ws-connect"))
	tab.waitFor(inBothPanes(state("closed")))
	e.send("default", "while away")
	tab.do(click("#sse-connect"), click("#ws-connect"))
	tab.waitFor(began("resumed"))
	tab.waitFor(shown("while away"))
}

func TestExampleSurvivesKill(t *testing.T) {
	t.Parallel()
	e := startExample(t, "127.0.0.1:0")
	tab := openTab(t, "http://"+e.addr)
	killAndRestart(tab, e, func() {})
}

// A proxy that answers 502 while the server is away makes an EventSource give up, and the page try again.
func TestExampleSurvivesKillBehindAProxy(t *testing.T) {
	t.Parallel()
	e := startExample(t, "127.0.0.1:0")
	refused := newSignal()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: e.addr})
	proxy.ErrorHandler = func(w http.ResponseWriter, r *http.Request, _ error) {
		w.WriteHeader(http.StatusBadGateway)
		if r.URL.Path == "/events" {
			refused.give()
		}
	}
	proxy.ErrorLog = log.New(io.Discard, "", 0) // it would tell of the streams that break
	front := httptest.NewServer(proxy)
	t.Cleanup(front.Close)
	tab := openTab(t, front.URL)
	killAndRestart(tab, e, func() { refused.wait(t, "the EventSource to be refused") })
}

// killAndRestart kills the server of the page, waits until the page and whileDown have seen it,
// and runs another at the same address.
func killAndRestart(tab *tab, e *example, whileDown func()) {
	t := tab.t
	t.Helper()
	tab.waitFor(began("new"))
	e.send("default", "before")
	tab.waitFor(shown("before"))

	e.kill()
	tab.waitFor(inBothPanes(state("waiting")))
	whileDown()
	e = startExample(t, e.addr)
	tab.waitFor(began("gap"))
	tab.waitFor(inBothPanes(func(pane string) string { return row(pane, "gap", "restarted") }))
	e.send("default", "after")
	tab.waitFor(shown("after"))
	for _, pane := range []string{"sse", "ws"} {
		if got, want := messages(tab, pane), []string{"before", "after"}; !slices.Equal(got, want) {
			t.Errorf("%s shows %q, want %q", pane, got, want)
		}
	}
}

func TestExampleResumesWhatACutConnectionMissed(t *testing.T) {
	t.Parallel()
	const last = 300
	e := startExample(t, "127.0.0.1:0")
	proxy := startProxy(t, e.addr)
	tab := openTab(t, "http://"+proxy.addr)
	tab.waitFor(began("new"))

	// The connections break in the middle of a stream of messages, and come back in the middle of it.
	var want []string
	for i := range last + 1 {
		switch i {
		case last / 3:
			proxy.cut()
		case last / 2:
			if _, answer := e.get("/broadcast?message=to+all"); answer != "Message sent to all" {
				t.Errorf("/broadcast answered %q", answer)
			}
		case last * 2 / 3:
			tab.waitFor(inBothPanes(state("waiting")))
			proxy.mend()
		}
		message := fmt.Sprintf("message %d of %d", i, last)
		e.send("default", message)
		want = append(want, message)
	}

	tab.waitFor(began("resumed"))
	tab.waitFor(shown("to all"))
	tab.waitFor(shown(want[last]))
	for _, pane := range []string{"sse", "ws"} {
		got := messages(tab, pane)
		broadcasts := count(got, "to all")
		got = slices.DeleteFunc(got, func(m string) bool { return m == "to all" }) // may stand anywhere
		if !slices.Equal(got, want) || broadcasts != 1 {
			t.Errorf("%s shows %d broadcasts, want 1, and %q, want %q", pane, broadcasts, got, want)
		}
		if eval[bool](tab, row(pane, "gap", "")) {
			t.Errorf("%s shows a gap", pane)
		}
		if !eval[bool](tab, row(pane, "resumed", "nothing is missing")) {
			t.Errorf("%s does not say that it resumed", pane)
		}
	}
}

func TestExampleAnswers(t *testing.T) {
	t.Parallel()
	e := startExample(t, "127.0.0.1:0")
	for _, path := range []string{"/send?topic=*", "/send?event=pushlet.gap", "/send?event=a%0Ab", "/broadcast?event=pushlet.gap"} {
		status, answer := e.get(path)
		if status != http.StatusBadRequest || !strings.HasPrefix(answer, "pushlet: ") {
			t.Errorf("%s answered %d %q, want 400 with the reason", path, status, answer)
		}
	}
	if status, _ := e.get("/no-such-page"); status != http.StatusNotFound {
		t.Errorf("an unknown path answered %d, want 404", status)
	}
}

func TestExampleReportsAPortInUse(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	binary, err := buildExample()
	must(t, err)
	out, err := exec.Command(binary, "-addr", listener.Addr().String()).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("ended with %v, want exit status 1", err)
	}
	if !strings.Contains(string(out), "address already in use") || strings.Contains(string(out), "started") {
		t.Errorf("printed %q", out)
	}
}

func TestExampleStopsOnSignal(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		e := startExample(t, "127.0.0.1:0")
		stream, err := http.Get("http://" + e.addr + "/events") // must not keep it from ending
		must(t, err)
		must(t, e.cmd.Process.Signal(signal))
		if _, err := io.ReadAll(stream.Body); err != nil {
			t.Errorf("%v: the stream ended with %v", signal, err)
		}
		stream.Body.Close()
		if err := e.cmd.Wait(); err != nil {
			t.Errorf("%v: %v", signal, err)
		}
	}
}

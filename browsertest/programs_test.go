package browsertest

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/chromedp/chromedp"
)

// These compile an example once for all tests.
var (
	buildZones   = sync.OnceValues(func() (string, error) { return buildProgram("zones") })
	buildHub     = sync.OnceValues(func() (string, error) { return buildProgram("hub") })
	buildBrowser = sync.OnceValues(func() (string, error) { return buildProgram("browser") })
)

// buildProgram compiles an example that has a folder.
func buildProgram(name string) (string, error) {
	binary := filepath.Join(scratch, name)
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Dir = filepath.Join("..", "example", name)
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the example: %w\n%s", err, out)
	}
	return binary, nil
}

// A program is a running process of an example.
type program struct {
	t    *testing.T
	cmd  *exec.Cmd
	base string // its URL
}

// startProgram runs an example until the test ends, if it does not end before.
func startProgram(t *testing.T, build func() (string, error), args ...string) *program {
	t.Helper()
	binary, err := build()
	must(t, err)
	cmd := exec.Command(binary, args...)
	stderr, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if _, base, ok := strings.Cut(lines.Text(), "Server started at "); ok {
			go io.Copy(io.Discard, stderr) // ends with the process
			return &program{t, cmd, base}
		}
	}
	t.Fatal("the example ended before it served")
	return nil
}

// kill ends the process as kill -9 does.
func (x *program) kill() {
	x.t.Helper()
	must(x.t, x.cmd.Process.Kill())
	x.cmd.Wait() // its error is the kill
}

// stop asks the process to end, and waits until it has.
func (x *program) stop() {
	x.t.Helper()
	must(x.t, x.cmd.Process.Signal(syscall.SIGTERM))
	must(x.t, x.cmd.Wait())
}

// again starts the program anew at the same address.
func (x *program) again(build func() (string, error)) *program {
	x.t.Helper()
	return startProgram(x.t, build, "-addr", strings.TrimPrefix(x.base, "http://"))
}

// online is the condition that a page shows these users in its zone.
func online(users ...string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("#online [data-user]")].map(e => e.textContent).join() === %q`, strings.Join(users, ","))
}

// received returns what a page shows as received, such as "hello to zone".
func received(p *tab) []string {
	p.t.Helper()
	return eval[[]string](p, `[...document.querySelectorAll("#log [data-kind=message]")].map(e => e.querySelector(".data").textContent + " to " + e.dataset.to)`)
}

func has(message string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("#log [data-kind=message] .data")].some(e => e.textContent === %q)`, message)
}

const zonesOpen = `document.querySelector("#connection[data-state=open]")`

// TestZonesExample has three pages in two zones, and sends to one, to a zone and to everyone.
func TestZonesExample(t *testing.T) {
	t.Parallel()
	zones := startProgram(t, buildZones, "-addr", "127.0.0.1:0")
	base := zones.base

	// One by hand, two by their URL.
	ann := openTab(t, base)
	ann.do(fill("#zone", "red")...)
	ann.do(fill("#user", "ann")...)
	ann.do(fill("#events", "customEvent, news")...)
	ann.do(click("#connect-button"))
	ann.waitFor(zonesOpen)
	bob := openTab(t, base+"/?zone=red&user=bob")
	bob.waitFor(zonesOpen)
	carol := openTab(t, base+"/?zone=blue&user=carol")
	carol.waitFor(zonesOpen)
	pages := []*tab{ann, bob, carol}
	ann.waitFor(online("ann", "bob"))
	bob.waitFor(online("ann", "bob"))
	carol.waitFor(online("carol"))
	ids := map[string]bool{}
	for _, p := range pages {
		ids[eval[string](p, `document.querySelector("#client").textContent`)] = true
	}
	if len(ids) != 3 || ids["–"] {
		t.Errorf("the IDs of the connections are %v", ids)
	}

	send := func(text, button string, clients int) {
		t.Helper()
		ann.do(append(fill("#content", text), click(button))...)
		ann.waitFor(fmt.Sprintf(`document.querySelector("#send-result[data-ok=true]")?.textContent === "Sent to %d connections."`, clients))
		eval[chromedp.Void](ann, `document.querySelector("#send-result").textContent = ""`)
	}
	ann.do(click("#online [data-user=bob]")) // fills in whom to send to
	send("for bob <img src=x>", "#send-user", 1)
	send("for red", "#send-zone", 2)
	send("for all", "#send-all", 3)
	for _, p := range pages {
		p.waitFor(has("for all"))
	}
	for i, want := range [][]string{
		{"for red to zone", "for all to everyone"},
		{"for bob <img src=x> to user", "for red to zone", "for all to everyone"},
		{"for all to everyone"},
	} {
		if got := received(pages[i]); !slices.Equal(got, want) {
			t.Errorf("page %d shows %q, want %q", i, got, want)
		}
	}
	if eval[bool](bob, `document.querySelector("img") !== null`) {
		t.Error("a message became markup")
	}

	// An event that only ann listens for; and one that nobody may send.
	ann.do(fill("#event", "news")...)
	send("an event", "#send-zone", 2)
	ann.waitFor(`document.querySelector("#log [data-kind=message][data-tag=news]")`)
	ann.do(append(fill("#event", "pushlet.gap"), click("#send-zone"))...)
	ann.waitFor(`document.querySelector("#send-result[data-ok=false]")?.textContent.includes("reserved")`)
	ann.do(fill("#event", "customEvent")...)

	// Who leaves is no longer shown.
	bob.do(click("#connect-button"))
	bob.waitFor(`document.querySelector("#connection[data-state=closed]")`)
	ann.waitFor(online("ann"))

	// A server that starts again has all back, and they are told that there was a gap.
	zones.kill()
	for _, p := range []*tab{ann, carol} {
		p.waitFor(`document.querySelector("#connection[data-state=connecting]")`)
	}
	zones.again(buildZones)
	for _, p := range []*tab{ann, carol} {
		p.waitFor(zonesOpen)
		p.waitFor(`document.querySelector("#log [data-kind=gap]")?.textContent.includes("restarted")`)
	}
	send("after the restart", "#send-all", 2)
	for _, p := range []*tab{ann, carol} {
		p.waitFor(has("after the restart"))
	}

	// A name that is not allowed.
	bob.do(append(fill("#user", "a/b"), click("#connect-button"))...)
	bob.waitFor(`document.querySelector("#log > :last-child")?.textContent.includes("refused")`)
}

// TestHubExample has two users' pages, one of which pushes to the other.
func TestHubExample(t *testing.T) {
	t.Parallel()
	base := startProgram(t, buildHub, "-addr", "127.0.0.1:0", "-every", "100ms").base
	one, two := openTab(t, base+"/?uid=u001"), openTab(t, base+"/?uid=u002")
	item := func(text string) string {
		return fmt.Sprintf(`[...document.querySelectorAll("#messages li")].some(e => e.textContent.startsWith(%q))`, text)
	}
	for _, p := range []*tab{one, two} {
		p.waitFor(`document.querySelector("#state").textContent === "connected" && ` + item("hello_world_"))
	}
	push := func(to, text string, clients int) {
		t.Helper()
		eval[chromedp.Void](one, fmt.Sprintf(`document.querySelector("#to").value = %q`, to))
		one.do(append(fill("#data", text), click("form button"))...)
		one.waitFor(fmt.Sprintf(`document.querySelector("#answer").textContent === "Sent to %d connections."`, clients))
	}
	push("u002", "for u002", 1)
	push("", "for all", 2)
	for _, p := range []*tab{one, two} {
		p.waitFor(item("for all"))
	}
	if !eval[bool](two, item("for u002")) || eval[bool](one, item("for u002")) {
		t.Error("what was for u002 did not come to u002 alone")
	}
}

// TestBrowserExample has the pages of example/browser: two with the client, one without.
func TestBrowserExample(t *testing.T) {
	t.Parallel()
	server := startProgram(t, buildBrowser, "-addr", "127.0.0.1:0")
	one, two := openTab(t, server.base), openTab(t, server.base)
	status := func(status string) string {
		return fmt.Sprintf(`document.querySelector("#client[data-state=%s]")`, status)
	}
	chip := func(topic, state string, count int) string {
		return fmt.Sprintf(`document.querySelector('#topics [data-topic=%q][data-state=%s] .count')?.textContent === "%d"`, topic, state, count)
	}
	row := func(kind, text string) string {
		return fmt.Sprintf(`[...document.querySelectorAll("#log [data-kind=%s] .data")].some(e => e.textContent.includes(%q))`, kind, text)
	}
	publish := func(p *tab, text, button string, clients string) {
		t.Helper()
		p.do(append(fill("#data", text), click("#publish "+button))...)
		p.waitFor(fmt.Sprintf(`document.querySelector("#published[data-ok=true]")?.textContent === "Published, to %s."`, clients))
		runJS(p, `document.querySelector("#published").textContent = ""`)
	}
	const toTopic, toAll = ".primary", "[value=all]"
	for _, p := range []*tab{one, two} {
		p.waitFor(status("open") + ` && ` + chip("news", "live", 0) + ` && ` + chip("*", "live", 0))
	}

	// Topics that come and go, and counts.
	one.do(append(fill("#name", "sports"), click("#follow button"))...)
	one.waitFor(chip("sports", "live", 0))
	one.do(fill("#topic", "sports")...)
	publish(one, "goal <img src=x>", toTopic, "1 connection")
	one.waitFor(chip("sports", "live", 1) + ` && ` + row("message", "goal <img src=x>"))
	publish(one, "for all", toAll, "2 connections")
	for _, p := range []*tab{one, two} {
		p.waitFor(chip("*", "live", 1) + ` && ` + row("message", "for all"))
		if eval[bool](p, `document.querySelector("img") !== null`) {
			t.Error("a message became markup")
		}
	}
	if eval[bool](two, row("message", "goal")) {
		t.Error("a page shows a topic that it does not follow")
	}
	one.do(click(`#topics [data-topic=sports] button`))
	one.waitFor(`!document.querySelector('#topics [data-topic=sports]')`)
	one.do(fill("#topic", "news")...)
	publish(one, "news", toTopic, "2 connections")
	if eval[int](one, `Number(document.querySelector("#count").textContent)`) != 3 {
		t.Error("the page does not count 3 messages")
	}
	one.do(append(fill("#event", "pushlet.gap"), click("#publish .primary"))...)
	one.waitFor(`document.querySelector("#published[data-ok=false]")?.textContent.includes("reserved")`)
	one.do(fill("#event", "message")...)
	runJS(one, `document.querySelector("#name").value = "a\u0001"`)
	one.do(click("#follow button"))
	one.waitFor(row("error", "invalid topic"))

	// Over the other transport; then one connection for both.
	one.do(chromedp.SetValue(chromedp.CSS("#transport"), "eventSource"))
	runJS(one, `document.querySelector("#transport").dispatchEvent(new Event("change"))`)
	one.waitFor(status("open") + ` && ` + chip("news", "live", 1))
	publish(one, "over an EventSource", toTopic, "2 connections")
	one.waitFor(row("message", "over an EventSource"))
	one.do(chromedp.SetValue(chromedp.CSS("#transport"), "webSocket eventSource"))
	for _, p := range []*tab{one, two} {
		p.do(click("#share"))
		p.waitFor(status("open") + ` && document.querySelectorAll("#topics [data-state=live]").length === 2`)
	}
	eventually(t, "the pages share a connection", func() bool {
		one.do(click("#publish .primary"))
		one.waitFor(`document.querySelector("#published").textContent.includes("connection")`)
		return strings.Contains(eval[string](one, `document.querySelector("#published").textContent`), "1 connection.")
	})

	// A server that starts again.
	server.kill()
	for _, p := range []*tab{one, two} {
		p.waitFor(status("waiting") + ` && /^\d+ s$/.test(document.querySelector("#wait").textContent)`)
	}
	one.do(click("#publish .primary"))
	one.waitFor(`document.querySelector("#published[data-ok=false]")?.textContent.includes("cannot be reached")`)
	server.again(buildBrowser)
	one.waitFor(`document.querySelector("#wake:enabled, #client[data-state=open]")`)
	runJS(one, `document.querySelector("#wake").click()`) // does nothing if it has come back by itself
	for _, p := range []*tab{one, two} {
		p.waitFor(status("open") + ` && ` + row("gap", "restarted"))
	}
	publish(two, "after the restart", toTopic, "1 connection")
	one.waitFor(row("message", "after the restart"))
}

// TestBrowserExampleWithoutClient has the page that does without pushlet.js.
func TestBrowserExampleWithoutClient(t *testing.T) {
	t.Parallel()
	server := startProgram(t, buildBrowser, "-addr", "127.0.0.1:0")
	tab := openTab(t, server.base)
	tab.do(click(`a[href="plain.html"]`), chromedp.WaitVisible(chromedp.CSS("#sse")))
	both := func(condition string) string {
		return strings.ReplaceAll(`["sse", "ws"].every(pane => CONDITION)`, "CONDITION", condition)
	}
	state := func(state string) string {
		return both(fmt.Sprintf(`document.querySelector("#" + pane + "[data-state=%s]")`, state))
	}
	row := func(kind, text string) string {
		return both(fmt.Sprintf(`[...document.querySelectorAll("#" + pane + " [data-kind=%s] .body")].some(e => e.textContent.includes(%q))`, kind, text))
	}
	tab.waitFor(state("open"))
	tab.waitFor(`since.get("news") && since.get("*")`) // the WebSocket's subscriptions are answered
	tab.do(append(fill("#data", "<img src=x>"), click("#publish .primary"))...)
	tab.waitFor(row("message", "<img src=x>"))
	tab.do(append(fill("#data", "for all"), click("#publish [value=all]"))...)
	tab.waitFor(row("message", "for all"))
	tab.do(append(fill("#event", "user-login"), click("#publish .primary"))...)
	tab.waitFor(`document.querySelector("#sse .log").textContent.includes("login: for all")`)
	if eval[bool](tab, `document.querySelector("img") !== null`) {
		t.Error("a message became markup")
	}
	if !strings.HasPrefix(eval[string](tab, `document.querySelector("#source").textContent`), "// 1. EventSource.") {
		t.Error("the page does not show its script")
	}
	server.kill()
	tab.waitFor(state("waiting"))
	server.again(buildBrowser)
	tab.waitFor(state("open") + ` && ` + row("gap", "restarted"))
	tab.do(append(fill("#event", "message"), fill("#data", "after the restart")...)...)
	tab.do(click("#publish .primary"))
	tab.waitFor(row("message", "after the restart"))
	tab.do(click(`a[href="index.html"]`), chromedp.WaitVisible(chromedp.CSS("#client")))
	tab.waitFor(`document.querySelector("#client[data-state=open]")`)
}

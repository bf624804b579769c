// Package browsertest tests Pushlet in a real Chromium: the pages of the documents, the
// page of example/, and what only a browser's own EventSource and WebSocket can show.
//
// The tests skip where there is no Chromium, unless PUSHLET_REQUIRE_BROWSER=1.
package browsertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// patience is how long a test waits for a condition. It is never waited for unless
// something is broken, so a busy machine may take its time.
const patience = 30 * time.Second

// scratch holds what several tests share on disk, such as the example's binary.
var scratch string

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "pushlet-browsertest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	scratch = dir
	defer os.RemoveAll(dir)
	defer func() { stopBrowser() }() // which startBrowser sets
	return m.Run()
}

var errNoBrowser = errors.New("no Chromium in PATH; on Debian: apt-get install chromium")

// stopBrowser undoes startBrowser, and waits for it.
var stopBrowser = func() {}

// startBrowser starts the one Chromium of the package; each test has a tab of its own in it.
var startBrowser = sync.OnceValues(func() (context.Context, error) {
	path, err := findBrowser()
	if err != nil {
		return nil, err
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.NoSandbox, // it is our own page, and CI runs as root
		chromedp.DisableGPU,
		chromedp.IgnoreCertErrors, // for httptest's certificate
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
	)
	allocator, stopAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	browser, stop := chromedp.NewContext(allocator)
	stopBrowser = func() { stop(); stopAllocator() }
	if err := chromedp.Do(browser); err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return browser, nil
})

func findBrowser() (string, error) {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errNoBrowser
}

// A tab is a page of its own in the shared browser. It belongs to one test.
type tab struct {
	t     *testing.T
	ctx   context.Context
	close func()
}

// openTab shows url in a new tab that closes with the test, if not before.
func openTab(t *testing.T, url string) *tab {
	t.Helper()
	browser, err := startBrowser()
	if errors.Is(err, errNoBrowser) && os.Getenv("PUSHLET_REQUIRE_BROWSER") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, closeTab := chromedp.NewContext(browser)
	if err := chromedp.Do(ctx); err != nil { // opens the tab; a context with a timeout would close it again
		t.Fatal(err)
	}
	watched := make(chan struct{})
	go func() { defer close(watched); failOnException(t, ctx) }() // ends with the tab
	p := &tab{t, ctx, func() { closeTab(); <-watched }}
	t.Cleanup(p.close)
	p.do(chromedp.Navigate(url))
	return p
}

// failOnException fails the test for each exception that a script of the page does not catch.
func failOnException(t *testing.T, ctx context.Context) {
	for message, err := range chromedp.Console(ctx) {
		if err != nil {
			return
		}
		if message.IsException() {
			t.Error("in the page: ", message.Text)
		}
	}
}

// do runs actions one after the other, each of which waits for its element.
func (p *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	for _, action := range actions {
		if _, err := run(p, action); err != nil {
			p.t.Fatal(err)
		}
	}
}

// waitFor returns once the JavaScript expression is true, and fails the test if it does not become so.
func (p *tab) waitFor(expression string) {
	p.t.Helper()
	if _, err := run(p, chromedp.Poll[chromedp.Void](expression, chromedp.WithPollingInterval(10*time.Millisecond))); err != nil {
		text, _ := run(p, chromedp.Evaluate[string](`document.body.innerText + JSON.stringify(window.seen ?? "").slice(-2000)`))
		p.t.Fatalf("waiting for %s: %v\nthe page shows:\n%s", expression, err, text)
	}
}

// eval returns the value of a JavaScript expression.
func eval[T any](p *tab, expression string) T {
	p.t.Helper()
	value, err := run(p, chromedp.Evaluate[T](expression))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return value
}

// run runs an action, which has as long as the test has patience.
func run[T any](p *tab, action chromedp.Action[T]) (T, error) {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, action)
}

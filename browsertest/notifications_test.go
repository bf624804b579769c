package browsertest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/usual2970/pushlet/internal/redistest"
)

// buildNotifications compiles example/notifications once for all tests.
var buildNotifications = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(scratch, "notifications")
	build := exec.Command("go", "build", "-o", binary, "./example/notifications")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the example: %w\n%s", err, out)
	}
	return binary, nil
})

// startNotifications runs an instance of the example until the test ends, and returns its address.
func startNotifications(t *testing.T, redis *redistest.Server) string {
	t.Helper()
	binary, err := buildNotifications()
	must(t, err)
	_, port, err := net.SplitHostPort(redis.Addr())
	must(t, err)
	cmd := exec.Command(binary)
	cmd.Env = append(os.Environ(), "SSE_HOST=127.0.0.1", "SSE_PORT=0", "REDIS_PORT="+port)
	stderr, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Error("the example ended with ", err)
		}
	})
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if _, after, ok := strings.Cut(lines.Text(), "Listening at http://"); ok {
			go io.Copy(io.Discard, stderr) // ends with the process
			addr, _, _ := strings.Cut(after, ",")
			return addr
		}
	}
	t.Fatal("the example ended before it served")
	return ""
}

// TestNotificationsExample follows users on the pages of two instances, and publishes with
// nothing but Redis's own client. One page is cut off meanwhile, and comes back.
func TestNotificationsExample(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	a, b := startNotifications(t, redis), startNotifications(t, redis)
	proxy := startProxy(t, a)
	cutOff := openTab(t, "http://"+proxy.addr)
	pages := []struct {
		*tab
		user string
	}{{cutOff, "1"}, {openTab(t, "http://"+b), "1"}, {openTab(t, "http://"+b), "27"}}
	for _, p := range pages {
		p.do(append(fill("#user", p.user), click("#connect"))...)
		p.waitFor(`document.querySelector("#client[data-state=open]")`)
		p.waitFor(fmt.Sprintf(`document.querySelector("#client-state").textContent === "connected as user %s"`, p.user))
	}

	publish := func(user, message string) {
		t.Helper()
		payload := fmt.Sprintf(`{"user_id":%s,"message":%q,"created_at":"2024-01-01T12:00:00Z"}`, user, message)
		if _, err := exec.LookPath("redis-cli"); err != nil {
			must(t, redis.Client().Publish(t.Context(), "notifications", payload).Err())
			return
		}
		_, port, err := net.SplitHostPort(redis.Addr())
		must(t, err)
		out, err := exec.Command("redis-cli", "-p", port, "PUBLISH", "notifications", payload).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "2" {
			t.Fatalf("redis-cli: %v %s", err, out)
		}
	}
	shown := func(p *tab, message string) {
		t.Helper()
		p.waitFor(fmt.Sprintf(`[...document.querySelectorAll("#log [data-kind=message] .data")].some(e => e.textContent === %q)`, message))
	}
	publish("1", "你好 <img src=x>")
	publish("27", "for user 27")
	for _, p := range pages[:2] {
		shown(p.tab, "你好 <img src=x>")
		if eval[bool](p.tab, `document.querySelector("img") !== null`) {
			t.Error("a message became markup")
		}
	}

	proxy.cut()
	cutOff.waitFor(`document.querySelector("#client[data-state=waiting]")`)
	publish("1", "missed")
	shown(pages[1].tab, "missed")
	proxy.mend()
	cutOff.waitFor(`document.querySelector("#client[data-state=open]")`)
	shown(cutOff, "missed")
	cutOff.waitFor(`document.querySelector("#log").textContent.includes("nothing is missing")`)

	// One that has disconnected gets nothing more, and may come back as another user.
	moved := pages[1].tab
	moved.do(click("#disconnect"))
	moved.waitFor(`document.querySelector("#client[data-state=closed]")`)
	publish("1", "for one page")
	shown(cutOff, "for one page")
	moved.do(append(fill("#user", "27"), click("#connect:enabled"))...)
	moved.waitFor(`document.querySelector("#client[data-state=open]")`)
	for _, user := range []string{"1", "27"} {
		publish(user, "the end")
	}
	for i, want := range [][]string{
		{"你好 <img src=x>", "missed", "for one page", "the end"}, {"你好 <img src=x>", "missed", "the end"}, {"for user 27", "the end"},
	} {
		shown(pages[i].tab, "the end")
		got := eval[[]string](pages[i].tab, `[...document.querySelectorAll("#log [data-kind=message] .data")].map(e => e.textContent)`)
		if !slices.Equal(got, want) {
			t.Errorf("page %d shows %q, want %q", i, got, want)
		}
	}

	// What is no user ID does not leave the form.
	moved.do(click("#disconnect"))
	moved.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("#user").value = "0"`), click("#connect:enabled"))
	if !eval[bool](moved, `document.querySelector("#client").dataset.state === "closed" && !document.querySelector("#user").validity.valid`) {
		t.Error("user 0 is connected")
	}
}

package browsertest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/usual2970/pushlet/internal/redistest"
)

// buildCluster compiles example/cluster once for all tests.
var buildCluster = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(scratch, "cluster")
	build := exec.Command("go", "build", "-o", binary, "./example/cluster")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the example: %w\n%s", err, out)
	}
	return binary, nil
})

// startClusterExample runs the example with a Redis of its own until the test ends, and
// returns the address of the load balancer.
func startClusterExample(t *testing.T) string {
	t.Helper()
	redis := redistest.Start(t)
	binary, err := buildCluster()
	must(t, err)
	cmd := exec.Command(binary, "-addr", "localhost:0")
	cmd.Env = append(os.Environ(), "REDIS_ADDR="+redis.Addr())
	stderr, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGINT)
		if err := cmd.Wait(); err != nil {
			t.Error("the example ended with ", err)
		}
	})
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if _, addr, ok := strings.Cut(lines.Text(), "Load balancer at http://"); ok {
			go io.Copy(io.Discard, stderr) // ends with the process
			return addr
		}
	}
	t.Fatal("the example ended before it served")
	return ""
}

// TestClusterExample stops the instance that a page is at, again and again and in all the
// ways the page has, while numbered messages come. None is missing, and none comes twice.
func TestClusterExample(t *testing.T) {
	t.Parallel()
	addr := startClusterExample(t)
	ann := openTab(t, "http://"+addr+"/?name=ann")
	pages := map[string]*tab{"ann": ann, "bob": openTab(t, "http://"+addr+"/?name=bob")}
	for _, p := range pages {
		p.waitFor(`document.querySelector("#client[data-state=open][data-began=new]")`)
	}
	ann.waitFor(`["ann", "bob"].every(name => [...document.querySelectorAll("#online li")].some(e => e.textContent === name))`)

	ann.do(click("#stream-button"))
	receiveMore := func() {
		t.Helper()
		for _, p := range pages {
			p.waitFor(fmt.Sprintf(`counter.received >= %d`, eval[int](p, `counter.received`)+5))
		}
	}
	const connected = `#client[data-state=open]:is([data-instance=A], [data-instance=B])`
	for _, how := range []string{"stop", "kill", "stop", "kill"} {
		receiveMore()
		ann.waitFor(fmt.Sprintf(`document.querySelector(%q)`, connected))
		at := eval[string](ann, `document.querySelector("#client").dataset.instance`)
		button := fmt.Sprintf(`.instance[data-name=%s] `, at)
		ann.do(click(button + "." + how))
		ann.waitFor(fmt.Sprintf(`document.querySelector("%s:not([data-instance=%s])[data-began=resumed]")`, connected, at))
		receiveMore()
		ann.do(click(button + ".start:enabled"))
		ann.waitFor(fmt.Sprintf(`document.querySelector(%q)`, ".instance[data-name="+at+"][data-state=up]"))
	}

	// What is sent is published by the instance of the load balancer's choice, and reaches all.
	ann.do(click("#send-button"))
	ann.waitFor(`document.querySelector("#send-result[data-ok=true]")`)
	for _, p := range pages {
		p.waitFor(`[...document.querySelectorAll("#log [data-tag=ann] .data")].some(e => e.textContent === "Hello, World!")`)
	}
	ann.do(click("#stream-button"))
	ann.waitFor(`document.querySelector("#stream-button").dataset.on === "false"`)
	for name, p := range pages {
		if got := eval[[]int](p, `[counter.missed.size, counter.doubled, document.querySelectorAll("#log [data-kind=gap]").length]`); got[0]+got[1]+got[2] > 0 {
			t.Errorf("%s: %d missed, %d doubled, %d gaps", name, got[0], got[1], got[2])
		}
	}
}

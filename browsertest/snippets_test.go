package browsertest

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/usual2970/pushlet"
)

// The snippets of docs/browser.md and the READMEs, run as they stand there.

// snippets returns the fenced blocks of a document by heading, language and, if the first line is
// a comment with one, the name of the file: "React, jsx, News.jsx". A second one of a name is "… 2".
func snippets(t *testing.T, document string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(document)
	must(t, err)
	blocks := map[string]string{}
	heading, lang, block, inBlock := "", "", "", false
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(line, "```") && inBlock:
			name := heading + ", " + lang
			first, _, _ := strings.Cut(block, "\n")
			first = strings.Trim(first, "/<!-> ")
			if filepath.Ext(first) != "" && !strings.Contains(first, " ") {
				name += ", " + first
			}
			for n := 2; blocks[name] != ""; n++ {
				name = fmt.Sprintf("%s %d", name, n)
			}
			blocks[name] = block
			inBlock = false
		case strings.HasPrefix(line, "```"):
			lang, block, inBlock = strings.TrimSpace(line[3:]), "", true
		case inBlock:
			block += line
		case strings.HasPrefix(line, "#"):
			heading = strings.Trim(line, "# \n")
		}
	}
	return blocks
}

// browserDocument is docs/browser.md. What is taken is run.
type browserDocument struct {
	blocks map[string]string
	mu     sync.Mutex
	taken  map[string]bool
}

func (d *browserDocument) take(t *testing.T, name string) string {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.taken[name] = true
	if d.blocks[name] == "" {
		t.Fatalf("docs/browser.md has no block %q", name)
	}
	return d.blocks[name]
}

// A newsServer is what the snippets want of an application: /api/news, /api/token, and a page with a script.
type newsServer struct {
	*httptest.Server
	t     *testing.T
	p     *pushlet.Pushlet
	mux   *http.ServeMux
	loads atomic.Int32 // of /api/news

	mu   sync.Mutex
	news []newsItem
}

type newsItem struct {
	ID      int    `json:"id"`
	Version int    `json:"version"`
	Title   string `json:"title"`
}

// serveNews serves a page with a script at /, and what the script wants.
func serveNews(t *testing.T, script string, options ...pushlet.Option) *newsServer {
	t.Helper()
	p := startPushlet(t, append(options, pushlet.WithPresence(0))...)
	s := &newsServer{t: t, p: p, news: []newsItem{{1, 1, "old"}}}
	s.mux = routes(p, `<!DOCTYPE html>
<title>snippet</title>
<link rel="icon" href="data:,">
<script>
window.complaints = [];
console.error = console.warn = (...args) => complaints.push(args.join(" "));
</script>
<body><div id="app"></div><script type="module" src="/script.js"></script>`)
	s.mux.HandleFunc("/pushlet.js", p.HandleClientJS)
	s.mux.HandleFunc("/script.js", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		io.WriteString(w, script)
	})
	s.mux.HandleFunc("/api/news", func(w http.ResponseWriter, _ *http.Request) {
		s.loads.Add(1)
		s.mu.Lock()
		defer s.mu.Unlock()
		io.WriteString(w, inJS(s.news))
	})
	s.Server = serve(t, p, s.mux)
	return s
}

// publish changes an item, and tells the followers of news.
func (s *newsServer) publish(item newsItem) {
	s.t.Helper()
	s.mu.Lock()
	s.news = append(slices.DeleteFunc(s.news, func(old newsItem) bool { return old.ID == item.ID }), item)
	s.mu.Unlock()
	must(s.t, s.p.Publish("news", "message", inJS(item)))
}

func noComplaints(p *tab) {
	p.t.Helper()
	if got := eval[[]string](p, `complaints`); len(got) > 0 {
		p.t.Errorf("the page complains: %q", got)
	}
}

func textIs(selector, text string) string {
	return fmt.Sprintf(`document.querySelector(%q)?.innerText.trim() === %q`, selector, text)
}

func TestBrowserDocument(t *testing.T) {
	t.Parallel()
	d := &browserDocument{blocks: snippets(t, "../docs/browser.md"), taken: map[string]bool{}}
	t.Cleanup(func() {
		if strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
			return // not all are to run
		}
		for name := range d.blocks {
			if !d.taken[name] && !strings.Contains(name, ", go") && !strings.Contains(name, ", sh") {
				t.Errorf("no test runs %q", name)
			}
		}
	})

	t.Run("without a framework", func(t *testing.T) {
		t.Parallel()
		s := serveNews(t, "")
		page := d.take(t, "Without a framework, html")
		s.mux.HandleFunc("/page", servePage(page))
		tab := openTab(t, s.URL+"/page")
		tab.waitFor(textIs("#status", "open"))
		clientsOf(t, s.p, "news", 1)
		must(t, s.p.Publish("news", "greeting", "hello <b>"))
		tab.waitFor(textIs("#news", "greeting: hello <b>"))
	})

	t.Run("loading", func(t *testing.T) {
		t.Parallel()
		s := serveNews(t, d.take(t, "Loading, and loading again, js"), pushlet.WithHistory(1, 1<<20, 1<<40))
		proxy := startProxy(t, s.Listener.Addr().String())
		tab := openTab(t, "http://"+proxy.addr)
		tab.waitFor(textIs("body", "old"))
		s.publish(newsItem{1, 2, "newer"})
		s.publish(newsItem{2, 1, "another"})
		tab.waitFor(textIs("body", "newer, another"))
		must(t, s.p.Publish("news", "message", inJS(newsItem{1, 1, "late"})))
		s.publish(newsItem{2, 2, "another again"})
		tab.waitFor(textIs("body", "newer, another again"))
		proxy.cut()
		s.publish(newsItem{1, 3, "in the gap"}) // in history there is room for one
		s.publish(newsItem{2, 3, "after it"})
		proxy.mend()
		tab.waitFor(textIs("body", "in the gap, after it"))
		if n := s.loads.Load(); n != 2 {
			t.Errorf("the page loaded %d times, want 2", n)
		}
		noComplaints(tab)
	})

	t.Run("share", func(t *testing.T) {
		t.Parallel()
		s := serveNews(t, d.take(t, "One connection for all tabs, js"))
		tabs := []*tab{openTab(t, s.URL), openTab(t, s.URL)}
		clientsOf(t, s.p, "news", 1)
		for _, tab := range tabs { // who comes second may not follow yet
			eventually(t, "a message comes", func() bool {
				must(t, s.p.Publish("news", "message", "hello "))
				return strings.Contains(eval[string](tab, `document.body.innerText`), "hello")
			})
		}
		if n := s.p.Stats().Clients; n != 1 {
			t.Errorf("there are %d connections", n)
		}
	})

	t.Run("tokens", func(t *testing.T) {
		t.Parallel()
		var given atomic.Int64
		s := serveNews(t, d.take(t, "Tokens that expire, js"), pushlet.WithIdentity(func(r *http.Request) (string, error) {
			if r.URL.Query().Get("token") != fmt.Sprintf("token & %d", given.Load()) { // each is good once
				return "", errors.New("expired")
			}
			return "ann", nil
		}))
		s.mux.HandleFunc("POST /api/token", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "token & %d", given.Add(1)) })
		proxy := startProxy(t, s.Listener.Addr().String())
		tab := openTab(t, "http://"+proxy.addr)
		clientsOf(t, s.p, "*", 1)
		must(t, s.p.PublishToUsers([]string{"ann"}, "message", "one "))
		tab.waitFor(textIs("body", "one"))
		proxy.cut()
		must(t, s.p.PublishToUsers([]string{"ann"}, "message", "two"))
		proxy.mend()
		tab.waitFor(textIs("body", "one two"))
		noComplaints(tab)
	})

	t.Run("another origin", func(t *testing.T) {
		t.Parallel()
		page := httptest.NewServer(servePage(blankPage))
		t.Cleanup(page.Close)
		s := serveNews(t, "", pushlet.WithAllowedOrigins(page.URL))
		script := strings.ReplaceAll(d.take(t, "Another origin, js"), "https://push.example.com", s.URL)
		tab := openTab(t, page.URL)
		runModule(tab, script)
		clientsOf(t, s.p, "news", 1)
		must(t, s.p.Publish("news", "message", "hello"))
		tab.waitFor(textIs("body", "hello"))
	})

	t.Run("React", func(t *testing.T) {
		t.Parallel()
		script := bundle(t, "main.jsx", map[string]string{
			"usePushlet.js": d.take(t, "React, js, usePushlet.js"),
			"News.jsx":      d.take(t, "React, jsx, News.jsx"),
			"main.jsx":      d.take(t, "React, jsx, main.jsx"),
		})
		testApp(t, script)
	})

	t.Run("Vue", func(t *testing.T) {
		t.Parallel()
		script := bundle(t, "main.js", map[string]string{
			"usePushlet.js": d.take(t, "Vue, js, usePushlet.js"),
			"News.vue":      d.take(t, "Vue, vue, News.vue"),
			"App.vue":       d.take(t, "Vue, vue, App.vue"),
			"main.js":       d.take(t, "Vue, js, main.js"),
		})
		testApp(t, script)
	})

	t.Run("TypeScript", func(t *testing.T) {
		t.Parallel()
		for _, from := range []string{"./pushlet.js", "/pushlet.js"} { // copied, or left to the server
			script := bundle(t, "main.ts", map[string]string{
				"follow.ts": d.take(t, "TypeScript and bundlers, ts"),
				"main.ts": fmt.Sprintf(`import { Pushlet } from %q; import { follow } from "./follow.js";
					window.end = follow(new Pushlet(), item => document.body.append(item.title));`, from),
			})
			s := serveNews(t, script)
			tab := openTab(t, s.URL)
			clientsOf(t, s.p, "news", 1)
			s.publish(newsItem{1, 2, "typed"})
			tab.waitFor(textIs("body", "typed"))
			runJS(tab, `end()`)
			clientsOf(t, s.p, "news", 0)
		}
	})

	t.Run("Node.js", func(t *testing.T) {
		t.Parallel()
		s := serveNews(t, "")
		script := strings.ReplaceAll(d.take(t, "Node.js, js, follow.mjs"), "http://localhost:8080", s.URL)
		dir := sources(t, map[string]string{"follow.mjs": script})
		modules, err := filepath.Abs(filepath.Join(frameworks, "node_modules"))
		must(t, err)
		must(t, os.Symlink(modules, filepath.Join(dir, "node_modules")))
		must(t, os.WriteFile(filepath.Join(dir, "package.json"), []byte(`{"type":"module"}`), 0o600))
		cmd := exec.Command("node", "follow.mjs")
		cmd.Dir = dir
		cmd.Stderr = os.Stderr
		stdout, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		defer func() { cmd.Process.Kill(); cmd.Wait() }()
		clientsOf(t, s.p, "news", 1)
		must(t, s.p.Publish("news", "message", "hello"))
		lines := bufio.NewScanner(stdout)
		if !lines.Scan() || lines.Text() != "hello" {
			t.Errorf("it prints %q", lines.Text())
		}
	})
}

// TestReadmePages runs what README.md has for pages. (Its twin has the same code; TestReadmeTwins.)
func TestReadmePages(t *testing.T) {
	t.Parallel()
	blocks := snippets(t, "../README.md")
	for _, heading := range []string{"First example", "pushlet.js"} {
		t.Run(heading, func(t *testing.T) {
			t.Parallel()
			s := serveNews(t, "")
			s.mux.HandleFunc("/page", servePage(blocks[heading+", html"]))
			tab := openTab(t, s.URL+"/page")
			clientsOf(t, s.p, "news", 1)
			must(t, s.p.Publish("news", "message", "hello <b>"))
			tab.waitFor(textIs("#messages", "hello <b>"))
		})
	}
	const yours = `
		const shown = window.shown = [];
		const show = text => shown.push(text), load = (...args) => shown.push("loaded");
	`
	for name, c := range map[string]struct{ before, topic string }{
		"pushlet.js, js":    {`import { Pushlet } from "/pushlet.js"; const push = new Pushlet();`, "sports"},
		"EventSource, js":   {"", "news"},
		"EventSource, js 2": {"", "news"},
		"WebSocket, js":     {"", "weather"},
		"WebSocket, js 2":   {"", "news"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if blocks[name] == "" {
				t.Fatal("there is no such block")
			}
			s := serveNews(t, "")
			tab := openTab(t, s.URL)
			runModule(tab, c.before+yours+strings.ReplaceAll(blocks[name], "localhost:8080", s.Listener.Addr().String()))
			clientsOf(t, s.p, c.topic, 1)
			must(t, s.p.Publish(c.topic, "message", "hello"))
			tab.waitFor(`shown.at(-1)?.endsWith("hello")`)
			got := eval[[]string](tab, `shown`)
			loads := count(got, "loaded")
			if loads != len(got)-1 || (loads > 0) != strings.Contains(blocks[name], "load(") {
				t.Errorf("it shows %q", got)
			}
			noComplaints(tab)
		})
	}
}

// testApp runs one of the applications that show the news, in React or Vue.
func testApp(t *testing.T, script string) {
	t.Helper()
	s := serveNews(t, script)
	tab := openTab(t, s.URL)
	tab.waitFor(textIs("p", "open") + ` && ` + textIs("ul", "old"))
	clientsOf(t, s.p, "news", 1)
	s.publish(newsItem{1, 2, "new"})
	s.publish(newsItem{2, 1, "<b>more"})
	tab.waitFor(textIs("ul", "new\n<b>more"))
	if n := s.loads.Load(); n != 1 {
		t.Errorf("it loaded %d times, so that many subscriptions went live", n)
	}
	if st := s.p.Stats(); st.Clients != 1 {
		t.Errorf("there are %d connections", st.Clients)
	}

	// What is unmounted follows nothing, and the connection ends with the last.
	tab.do(click("button"))
	tab.waitFor(textIs("button", "Show") + ` && ` + textIs("p", "idle") + ` && !document.querySelector("ul")`)
	clientsOf(t, s.p, "news", 0)
	clientsOf(t, s.p, "*", 0)
	s.publish(newsItem{2, 2, "unseen"})
	tab.do(click("button"))
	tab.waitFor(textIs("ul", "new\nunseen"))
	clientsOf(t, s.p, "news", 1)
	s.publish(newsItem{3, 1, "last"})
	tab.waitFor(textIs("ul", "new\nunseen\nlast"))
	if n := s.loads.Load(); n != 2 {
		t.Errorf("it loaded %d times, want 2", n)
	}
	noComplaints(tab)
}

// runModule runs a script with imports in the page.
func runModule(p *tab, script string) {
	p.t.Helper()
	runJS(p, fmt.Sprintf(`{
		const script = document.createElement("script");
		script.type = "module";
		script.textContent = %s;
		document.head.append(script);
	}`, inJS(script)))
}

// frameworks has what the snippets are bundled with.
var frameworks = filepath.Join("testdata", "frameworks")

var errNoNPM = errors.New("no npm in PATH; on Debian: apt-get install nodejs npm")

// installFrameworks has npm fetch what the lock file says, unless that is there.
var installFrameworks = sync.OnceValue(func() error {
	if _, err := exec.LookPath("npm"); err != nil {
		return errNoNPM
	}
	want, err := os.Stat(filepath.Join(frameworks, "package-lock.json"))
	if err != nil {
		return err
	}
	have, err := os.Stat(filepath.Join(frameworks, "node_modules", ".package-lock.json")) // npm writes it last
	if err == nil && have.ModTime().After(want.ModTime()) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	npm := exec.Command("npm", "ci", "--no-audit", "--no-fund")
	npm.Dir = frameworks
	if out, err := npm.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci: %w\n%s", err, out)
	}
	return nil
})

// sources writes files into a folder, and pushlet.js with its types beside them.
func sources(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	if err := installFrameworks(); err != nil {
		if os.Getenv("PUSHLET_REQUIRE_BROWSER") != "1" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	dir = t.TempDir()
	for _, name := range []string{"pushlet.js", "pushlet.d.ts"} {
		text, err := os.ReadFile(filepath.Join("..", "js", name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	for name, text := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

// bundle returns what these files are as one script.
func bundle(t *testing.T, entry string, files map[string]string) (script string) {
	t.Helper()
	dir := sources(t, files)
	out := filepath.Join(dir, "bundle.js")
	if text, err := exec.Command("node", filepath.Join(frameworks, "build.mjs"), filepath.Join(dir, entry), out).CombinedOutput(); err != nil {
		t.Fatalf("build.mjs: %v\n%s", err, text)
	}
	text, err := os.ReadFile(out)
	must(t, err)
	return string(text)
}

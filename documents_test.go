package pushlet_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usual2970/pushlet/internal/redistest"
)

// The programs in testdata/documents are those of the documents that came before the
// library: the API that people know. Each must compile as it is, but for the client,
// which forgot to import "time".

var documentPrograms = []string{"sse", "sse_distributed", "dual", "dual_distributed", "client"}

// A documentModule is a module, outside this one, that holds the programs.
type documentModule struct {
	dir string
	env []string
}

func newDocumentModule(t *testing.T) *documentModule {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the go command is not here: ", err)
	}
	root, err := filepath.Abs(".")
	check(t, err)
	m := &documentModule{dir: t.TempDir(), env: append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off")}
	m.write(t, "go.mod", fmt.Sprintf(`module documents

go 1.25.0

require (
	github.com/gorilla/websocket v1.5.3
	github.com/usual2970/pushlet v0.0.0
)

replace github.com/usual2970/pushlet => %s
`, root))
	sums, err := os.ReadFile("go.sum")
	check(t, err)
	m.write(t, "go.sum", string(sums))
	return m
}

func (m *documentModule) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(m.dir, name)
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, []byte(text), 0o644))
}

// program returns the text of a program as it was published, with the import that the
// client lacks.
func (m *documentModule) program(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "documents", name, "main.go.txt"))
	check(t, err)
	if name == "client" {
		return strings.Replace(string(text), `"net/url"`, "\"net/url\"\n    \"time\"", 1)
	}
	return string(text)
}

func (m *documentModule) goCommand(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = m.dir, m.env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestDocumentsCompile builds and vets every program.
func TestDocumentsCompile(t *testing.T) {
	m := newDocumentModule(t)
	for _, name := range documentPrograms {
		m.write(t, filepath.Join(name, "main.go"), m.program(t, name))
	}
	m.goCommand(t, "vet", "./...")
	m.goCommand(t, "build", "./...")
}

// TestDocumentsRun runs the server of both protocols and the Go client as they were
// published, but on another port.
func TestDocumentsRun(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs two programs")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	address := listener.Addr().String()
	check(t, listener.Close())

	m := newDocumentModule(t)
	for name, published := range map[string]string{"dual": `":8080"`, "client": `"localhost:8080"`} {
		text := m.program(t, name)
		if strings.Count(text, published) != 1 {
			t.Fatalf("%s: no %s", name, published)
		}
		m.write(t, filepath.Join(name, "main.go"), strings.Replace(text, published, `"`+address+`"`, 1))
	}
	m.goCommand(t, "build", "-o", "bin/", "./dual", "./client")
	server := m.start(t, "dual")
	eventually(t, "the server listens", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	for _, want := range []string{
		"Server started at http://localhost:8080",
		"SSE endpoint: http://localhost:8080/events",
		"WebSocket endpoint: ws://localhost:8080/ws",
	} {
		eventually(t, "the server says "+want, func() bool { return strings.Contains(server.String(), want) })
	}

	client := m.start(t, "client")
	eventually(t, "the client has subscribed", func() bool { return strings.Contains(client.String(), "[pushlet.subscribed] ") })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, _ := get(t, ctx, "http://"+address+"/events?topic=my-topic")
	st := &stream{t: t, body: events, limit: limitBy(cancel), close: func() { events.Close() }}
	defer st.close()
	st.expectHello()
	_, body := get(t, ctx, "http://"+address+"/send?topic=my-topic&message="+url.QueryEscape("你好, World!"))
	if body != "Message sent" {
		t.Errorf("/send answers %q", body)
	}
	st.expectMessages("你好, World!")
	eventually(t, "the client has the message", func() bool { return strings.Contains(client.String(), "[message] 你好, World!\n") })

	// Without a topic both sides mean "default".
	events, _ = get(t, ctx, "http://"+address+"/events")
	st2 := &stream{t: t, body: events, limit: limitBy(cancel), close: func() { events.Close() }}
	defer st2.close()
	st2.expectHello()
	get(t, ctx, "http://"+address+"/send?message=hello")
	st2.expectMessages("hello")
}

// TestDocumentsDistributed runs the two programs that share a Redis as they were published,
// but on other ports: a publish on either reaches the clients of both.
func TestDocumentsDistributed(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs two programs")
	}
	server := redistest.Start(t)
	m := newDocumentModule(t)
	var addresses []string
	names := []string{"sse_distributed", "dual_distributed"}
	for _, name := range names {
		address := fmt.Sprintf("127.0.0.1:%d", redistest.FreePort(t))
		addresses = append(addresses, address)
		text := m.program(t, name)
		for published, here := range map[string]string{`":8080"`: address, `"localhost:6379"`: server.Addr()} {
			if strings.Count(text, published) != 1 {
				t.Fatalf("%s: no %s", name, published)
			}
			text = strings.Replace(text, published, `"`+here+`"`, 1)
		}
		m.write(t, filepath.Join(name, "main.go"), text)
	}
	m.goCommand(t, "build", "-o", "bin/", "./...")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var streams []*stream
	for i, name := range names {
		m.start(t, name)
		eventually(t, "the server listens", func() bool {
			conn, err := net.Dial("tcp", addresses[i])
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
		body, _ := get(t, ctx, "http://"+addresses[i]+"/events?topic=my-topic")
		st := &stream{t: t, body: body, limit: limitBy(cancel), close: func() { body.Close() }}
		defer st.close()
		st.expectHello()
		streams = append(streams, st)
	}
	for i := range 6 {
		_, body := get(t, ctx, "http://"+addresses[i%2]+"/send?topic=my-topic&message="+fmt.Sprint(i))
		if body != "Message sent to all instances" {
			t.Errorf("/send answers %q", body)
		}
	}
	for _, st := range streams {
		st.expectMessages(numbered(0, 5)...)
	}
}

// start runs a program until the test is over, and returns what it writes.
func (m *documentModule) start(t *testing.T, name string) *lockedBuffer {
	t.Helper()
	out := new(lockedBuffer)
	ctx, kill := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, filepath.Join(m.dir, "bin", name))
	cmd.Stdout, cmd.Stderr = out, out
	check(t, cmd.Start())
	t.Cleanup(func() { kill(); cmd.Wait() })
	return out
}

// get returns the body of an answer, and its text unless it is a stream.
func get(t *testing.T, ctx context.Context, url string) (body io.ReadCloser, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	check(t, err)
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	if resp.Header.Get("Content-Type") == "text/event-stream" {
		return resp.Body, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(t, err)
	return nil, string(b)
}

// TestDocumentsInProcess is the first program of the documents, served by a test.
func TestDocumentsInProcess(t *testing.T) {
	s := newSite(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/events", s.p.HandleSSE)
	mux.HandleFunc("/ws", s.p.HandleWebSocket)
	mux.HandleFunc("/send", func(w http.ResponseWriter, r *http.Request) {
		topic := r.URL.Query().Get("topic")
		if topic == "" {
			topic = "default"
		}
		if err := s.p.Publish(topic, "message", r.URL.Query().Get("message")); err != nil {
			t.Error(err)
		}
		w.Write([]byte("Message sent"))
	})
	s.srv.Config.Handler = mux
	send := func(query string) {
		t.Helper()
		_, body := get(t, t.Context(), s.srv.URL+"/send?"+query)
		if body != "Message sent" {
			t.Errorf("/send?%s answers %q", query, body)
		}
	}
	plain, _, _ := s.connect(t, "", "")
	named, _, _ := s.connect(t, "topic=my-topic", "")
	login, _, _ := s.connect(t, "topic=user-notifications", "")
	path, _, _ := s.connect(t, "topic=users/123/notifications", "")

	send("message=hello")
	plain.expectMessages("hello")
	send("topic=my-topic&message=Hello%2C+World%21")
	named.expectMessages("Hello, World!")
	check(t, s.p.Publish("user-notifications", "user-login", "User John has logged in"))
	login.expect("user-login", "User John has logged in")
	check(t, s.p.Publish("users/123/notifications", "new-message", "你有一条新消息"))
	path.expect("new-message", "你有一条新消息")
	check(t, s.p.PublishToAll("message", "for all"))
	for _, st := range []*stream{plain, named, login, path} {
		st.expectMessages("for all")
	}
}

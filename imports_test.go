package pushlet

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestImports keeps the parts apart: see "Invariants" in ARCHITECTURE.md.
func TestImports(t *testing.T) {
	const gorilla, redis = "github.com/gorilla/websocket", "github.com/redis/go-redis/v9"
	forbidden := map[string][]string{
		"message.go":  {"net", "net/http", gorilla, redis, "sync", "time"},
		"frame.go":    {"net", "net/http", gorilla, redis, "encoding/json"},
		"segment.go":  {"net", "net/http", gorilla, redis, "sync"},
		"cursor.go":   {"net", "net/http", gorilla, redis, "sync", "time"},
		"history.go":  {"net", "net/http", gorilla, redis, "sync", "os"},
		"broker.go":   {"net", "net/http", gorilla, redis, "sync", "os", "log", "encoding/json"},
		"topic.go":    {"net", "net/http", gorilla, redis, "sync", "os", "log", "encoding/json"},
		"replay.go":   {"net", "net/http", gorilla, redis, "sync", "os", "log", "encoding/json"},
		"client.go":   {"net", "net/http", gorilla, redis, "log", "os"},
		"flusher.go":  {"net", "net/http", gorilla, "log"},
		"remote.go":   {"net", "net/http", gorilla, redis, "sync", "os", "log", "encoding/json"},
		"store.go":    {"net", "net/http", gorilla, redis, "os", "log", "encoding/json"},
		"outgoing.go": {"net", "net/http", gorilla, redis, "os", "log", "encoding/json"},

		"redis_connector.go": {"net/http", gorilla},
		"redis_publish.go":   {"net/http", gorilla},
		"redis_subscribe.go": {"net/http", gorilla},
		"redis_presence.go":  {"net/http", gorilla},
		"presence.go":        {"net", "net/http", gorilla, redis},
	}
	for name, bad := range forbidden {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			if path := strings.Trim(imp.Path.Value, `"`); slices.Contains(bad, path) {
				t.Errorf("%s imports %s", name, path)
			}
		}
	}
}

// TestClientImports keeps the Go client, and the command that is built on it, apart from the
// server, so that a program that only listens does not have Redis linked in: the standard library,
// gorilla/websocket and, for the command, the client.
func TestClientImports(t *testing.T) {
	const gorilla, client = "github.com/gorilla/websocket", "github.com/usual2970/pushlet/consumer"
	for dir, allowed := range map[string][]string{
		"consumer":    {gorilla},
		"cmd/pushlet": {gorilla, client},
	} {
		names, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(names) == 0 {
			t.Fatalf("found %d files in %s, %v", len(names), dir, err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, imp := range f.Imports {
				path := strings.Trim(imp.Path.Value, `"`)
				if strings.Contains(path, ".") && !slices.Contains(allowed, path) {
					t.Errorf("%s imports %s", name, path)
				}
			}
		}
	}
}

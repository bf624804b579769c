package pushlet

import (
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// TestImports keeps the parts apart: see "Invariants" in ARCHITECTURE.md.
func TestImports(t *testing.T) {
	const gorilla = "github.com/gorilla/websocket"
	forbidden := map[string][]string{
		"message.go": {"net", "net/http", gorilla, "sync", "time"},
		"frame.go":   {"net", "net/http", gorilla, "encoding/json"},
		"segment.go": {"net", "net/http", gorilla, "sync"},
		"cursor.go":  {"net", "net/http", gorilla, "sync", "time"},
		"history.go": {"net", "net/http", gorilla, "sync", "os"},
		"broker.go":  {"net", "net/http", gorilla, "sync", "os", "log", "encoding/json"},
		"topic.go":   {"net", "net/http", gorilla, "sync", "os", "log", "encoding/json"},
		"replay.go":  {"net", "net/http", gorilla, "sync", "os", "log", "encoding/json"},
		"client.go":  {"net", "net/http", gorilla, "log", "os"},
		"flusher.go": {"net", "net/http", gorilla, "log"},
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

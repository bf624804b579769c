package pushlet_test

import (
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var readmes = []string{"README.md", "README.zh-CN.md"}

// A codeBlock is a fenced block of a README.
type codeBlock struct {
	file, lang, text string
	line             int // of its first line
}

func codeBlocks(t *testing.T, file string) (blocks []codeBlock) {
	t.Helper()
	text, err := os.ReadFile(file)
	check(t, err)
	var block *codeBlock
	for i, line := range strings.SplitAfter(string(text), "\n") {
		switch fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```"); {
		case isFence && block == nil:
			block = &codeBlock{file: file, lang: fence, line: i + 2}
		case isFence:
			blocks = append(blocks, *block)
			block = nil
		case block != nil:
			block.text += line
		}
	}
	if block != nil {
		t.Fatalf("%s:%d: the block has no end", file, block.line)
	}
	return blocks
}

// program makes a whole program of a Go block. A fragment becomes a function's body, with
// the imports that it uses and the names that the text around it speaks of.
func (b codeBlock) program() string {
	line := fmt.Sprintf("//line %s:%d\n", b.file, b.line)
	if strings.HasPrefix(b.text, "package ") {
		return line + b.text
	}
	var imports strings.Builder
	for _, p := range []string{"crypto/subtle", "errors", "log", "strings", "time"} {
		if strings.Contains(b.text, path.Base(p)+".") {
			fmt.Fprintf(&imports, "import %q\n", p)
		}
	}
	if strings.Contains(b.text, "consumer.") {
		imports.WriteString("import \"github.com/usual2970/pushlet/consumer\"\n")
	}
	if strings.Contains(b.text, "redis.") {
		imports.WriteString("import \"github.com/redis/go-redis/v9\"\n")
	}
	return "package main\n" + imports.String() + `
import "net/http"
import "github.com/usual2970/pushlet"

var p *pushlet.Pushlet

var token string

func userOf(*http.Request) (string, error) { return "", nil }

func main() {
` + line + b.text + `
	_ = p
}
`
}

// TestReadmeCode has the compiler's front end and vet look at every Go block of the READMEs.
func TestReadmeCode(t *testing.T) {
	t.Parallel()
	here, err := os.Getwd()
	check(t, err)
	dir := t.TempDir()

	// The module of a reader who has just run "go get".
	mod, err := os.ReadFile("go.mod")
	check(t, err)
	ours := strings.Replace(string(mod), "module github.com/usual2970/pushlet", "module reader", 1)
	ours += "\nrequire github.com/usual2970/pushlet v0.0.0\n" +
		"replace github.com/usual2970/pushlet => " + fmt.Sprintf("%q", here) + "\n"
	check(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte(ours), 0o600))
	sum, err := os.ReadFile("go.sum")
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "go.sum"), sum, 0o600))

	programs, whole := 0, 0
	for _, file := range append(slices.Clone(readmes), "docs/redis.md", "docs/migrating.md", "docs/browser.md") {
		for _, b := range codeBlocks(t, file) {
			if b.lang != "go" {
				continue
			}
			programs++
			if strings.HasPrefix(b.text, "package main\n") {
				whole++
			}
			if formatted, err := format.Source([]byte(b.text)); err != nil || string(formatted) != b.text {
				t.Errorf("%s:%d: not as gofmt has it (%v)", b.file, b.line, err)
			}
			sub := filepath.Join(dir, fmt.Sprintf("block%d", programs))
			check(t, os.Mkdir(sub, 0o700))
			check(t, os.WriteFile(filepath.Join(sub, "main.go"), []byte(b.program()), 0o600))
		}
	}
	if whole == 0 || whole == programs {
		t.Errorf("found %d Go blocks, of which %d are whole programs", programs, whole)
	}

	// Vet type-checks all of a program, and what it finds is worth knowing; go build would
	// only add the time to link each.
	cmd := exec.CommandContext(t.Context(), "go", "vet", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod", "GOPROXY=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("go vet: %v\n%s", err, out)
	}
}

// TestReadmeTwins compares the READMEs without their language: headings, tables and code,
// with the names that stand in them.
func TestReadmeTwins(t *testing.T) {
	t.Parallel()
	english, chinese := readmeShape(t, readmes[0]), readmeShape(t, readmes[1])
	for i := range min(len(english), len(chinese)) {
		if english[i] != chinese[i] {
			t.Fatalf("they differ from here on:\n%s: %s\n%s: %s", readmes[0], english[i], readmes[1], chinese[i])
		}
	}
	if len(english) != len(chinese) {
		t.Errorf("%s has %d headings, rows and blocks, %s has %d", readmes[0], len(english), readmes[1], len(chinese))
	}
}

var (
	goComment  = regexp.MustCompile(`(?m)[ \t]+(//|#).*$|^(//|#).*$|/\*.*?\*/`)
	goString   = regexp.MustCompile("\"[^\"\n]*\"|`[^`\n]*`")
	inlineCode = regexp.MustCompile("`[^`\n]+`")
)

// readmeShape lists headings by level, table rows with the names in them, and code without
// comments, text and spaces.
func readmeShape(t *testing.T, file string) (shape []string) {
	t.Helper()
	blocks := codeBlocks(t, file)
	text, err := os.ReadFile(file)
	check(t, err)
	inBlock := false
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(line, "```"):
			if inBlock = !inBlock; inBlock {
				b := blocks[0]
				blocks = blocks[1:]
				code := goString.ReplaceAllString(goComment.ReplaceAllString(b.text, ""), `""`)
				shape = append(shape, "block of "+b.lang+": "+strings.Join(strings.Fields(code), " "))
			}
		case inBlock:
		case strings.HasPrefix(line, "#"):
			shape = append(shape, "heading "+line[:strings.IndexByte(line, ' ')])
		case strings.HasPrefix(line, "|"):
			names := inlineCode.FindAllString(line, -1)
			slices.Sort(names)
			shape = append(shape, fmt.Sprintf("row of %d cells: %s", strings.Count(line, "|")-1, strings.Join(names, " ")))
		case strings.HasPrefix(line, "<!--"):
			shape = append(shape, strings.TrimSpace(line))
		}
	}
	return shape
}

// TestReadmeOptions finds every option and every reason in both READMEs.
func TestReadmeOptions(t *testing.T) {
	t.Parallel()
	var names []string
	paths, err := fs.Glob(os.DirFS("."), "*.go")
	check(t, err)
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		check(t, err)
		for name := range f.Scope.Objects {
			if ast.IsExported(name) && (strings.HasPrefix(name, "With") || strings.HasPrefix(name, "Reason") || strings.HasPrefix(name, "Err")) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	if len(names) < 30 {
		t.Errorf("found only %d names: %v", len(names), names)
	}
	for _, file := range readmes {
		text, err := os.ReadFile(file)
		check(t, err)
		for _, name := range names {
			if name != "Reason" && !strings.Contains(string(text), "`"+name) && !strings.Contains(string(text), "."+name) {
				t.Errorf("%s does not mention %s", file, name)
			}
		}
	}
}

package main

import (
	"flag"
	"slices"
	"strings"
	"testing"
)

// TestSplit: flags stand anywhere, with their values, up to "--".
func TestSplit(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"":                                 " | ",
		"URL":                              " | URL",
		"-topic a URL":                     "-topic a | URL",
		"URL -topic a":                     "-topic a | URL",
		"-topic a URL -topic b":            "-topic a -topic b | URL",
		"URL -topic=a x --topic b y":       "-topic=a --topic b | URL x y",
		"-json URL":                        "-json | URL",
		"URL -json x":                      "-json | URL x",
		"-topic -json URL":                 "-topic -json | URL", // the value looks like a flag
		"-topic -- URL":                    "-topic -- | URL",
		"URL -- -topic a":                  " | URL -topic a",
		"URL - -topic":                     "-topic | URL -",
		"-nothing URL":                     "-nothing | URL",
		"-json=false -topic a -- -- -json": "-json=false -topic a | -- -json",
	} {
		fs := flag.NewFlagSet("", flag.ContinueOnError)
		fs.Bool("json", false, "")
		fs.String("topic", "", "")
		flags, rest := split(fs, strings.Fields(args))
		if got := strings.Join(flags, " ") + " | " + strings.Join(rest, " "); got != want {
			t.Errorf("%q: got %q, want %q", args, got, want)
		}
	}
}

func TestTarget(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ raw, stream, push string }{
		{"example.com", "http://example.com/events", "http://example.com/push"},
		{"example.com:8080", "http://example.com:8080/events", "http://example.com:8080/push"},
		{":8080", "http://localhost:8080/events", "http://localhost:8080/push"},
		{"[::1]:8080/x?topic=a", "http://[::1]:8080/x?topic=a", "http://[::1]:8080/x?topic=a"},
		{"https://example.com/", "https://example.com/", "https://example.com/"},
		{"https://example.com#x", "https://example.com/events", "https://example.com/push"},
		{"https://ann:secret@example.com", "https://example.com/events", "https://example.com/push"},
		{"ws://example.com?topic=a", "ws://example.com/ws?topic=a", ""},
		{"wss://example.com/live", "wss://example.com/live", ""},
		{"ftp://example.com", "", ""},
		{"http://", "", ""},
		{"http://a b", "", ""},
	} {
		for i, paths := range []map[string]string{streamPaths, pushPaths} {
			want := []string{c.stream, c.push}[i]
			got, err := newOptions("").target(c.raw, paths)
			if want == "" {
				if err == nil || codeOf(err) != exitUsage {
					t.Errorf("%s: got %v, %v, want an error", c.raw, got.url, err)
				}
				continue
			}
			if err != nil || got.url.String() != want {
				t.Errorf("%s: got %v, %v, want %s", c.raw, got.url, err, want)
			}
		}
	}
}

func TestEscape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain, 新闻\u3000👩‍👩‍👧 \t": "plain, 新闻\u3000👩‍👩‍👧 \t",
		"a\x1b[0mb":             `a\x1b[0mb`,
		"a\nb\rc":               `a\nb\rc`,
		"\x00\x7f\u0085":        `\x00\x7f\u0085`,
		"\xff\xe2\x80":          `\xff\xe2\x80`,
		"\uFFFD":                "\uFFFD",
		"\u202Eabc\u2069\u061c": `\u202eabc\u2069\u061c`,
		"a\u2028b":              `a\u2028b`,
	} {
		if got := escape(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
	if got, want := escapeLines("a\x1b\n\nb\r\n"), "a\\x1b\n\nb\\r\n"; got != want {
		t.Errorf("lines: got %q, want %q", got, want)
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	var got []string
	for _, n := range []int64{0, 999, 1000, 1234567, -1, -1000, -100} {
		got = append(got, thousands(n))
	}
	if want := []string{"0", "999", "1,000", "1,234,567", "-1", "-1,000", "-100"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

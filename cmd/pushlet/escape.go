package main

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// escape returns s without anything that a terminal might obey, or that would show it in another
// order than it has: control characters (escape sequences begin with one), marks of direction, line
// separators, and bytes that are not UTF-8. They are written as in Go: \x1b, \u202e. Tabs stay.
func escape(s string) string {
	clean := true
	for i, r := range s {
		if isHarmful(r) || r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD") {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case !isHarmful(r):
			b.WriteString(s[i : i+n])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r < utf8.RuneSelf:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		i += n
	}
	return b.String()
}

// escapeLines is escape that leaves line feeds.
func escapeLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = escape(line)
	}
	return strings.Join(lines, "\n")
}

func isHarmful(r rune) bool {
	switch {
	case r == '\t':
		return false
	case unicode.IsControl(r), // C0, DEL, C1
		r == '\u061C', r == '\u200E', r == '\u200F', // marks of direction
		r >= '\u202A' && r <= '\u202E', r >= '\u2066' && r <= '\u2069', // embeddings, overrides, isolates
		r == '\u2028', r == '\u2029': // line and paragraph separator
		return true
	}
	return false
}

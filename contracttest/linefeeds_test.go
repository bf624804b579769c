package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestLinefeeds(t *testing.T) {
	service := startService(t)
	for name, end := range map[string]string{"LF": "\n", "CRLF": "\r\n", "CR": "\r"} {
		for _, test := range []struct {
			name, text string
			want       []event
		}{
			{"one line", "data: a b||", []event{{Data: "a b"}}},
			{"one line, then two", "data: a||data: b|data: c||", []event{{Data: "a"}, {Data: "b\nc"}}},
			{"the first of three lines is empty", "data:|data: b|data: c||", []event{{Data: "\nb\nc"}}},
			{"the second of three lines is empty", "data: a|data:|data: c||", []event{{Data: "a\n\nc"}}},
			{"an empty line too many", "data: a|||data: b||", []event{{Data: "a"}, {Data: "b"}}},
			{"two empty lines too many", "data: a||||data: b||", []event{{Data: "a"}, {Data: "b"}}},
		} {
			text := strings.ReplaceAll(test.text, "|", end)
			for _, size := range []int{len(text), 1, 2} {
				parsing{fmt.Sprintf("%s/%s/in chunks of %d", name, test.name, size), pieces(text, size), test.want}.run(t, service)
			}
		}
	}
	parsing{"CRLF cut in two", []string{"data: a\r", "\ndata: b\r", "\n\r\ndata: c\r", "\n", "\r", "\n"}, []event{{Data: "a\nb"}, {Data: "c"}}}.run(t, service)
}

// What the harness does with two sizes of chunks: one text, cut in two at every byte.
func TestCutEverywhere(t *testing.T) {
	service := startService(t)
	const text = "\uFEFF:c\r\nid: ä\revent: t\ndata: €\r\n\r\ndata: b\r\r"
	for at := range len(text) + 1 {
		s, c := begin(t, service, atOnce)
		c.send(t, text[:at], text[at:])
		s.expect(event{"t", "€", "ä"}, event{"", "b", "ä"})
		s.nothing()
	}
}

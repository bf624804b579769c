package main

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestBasicParsing(t *testing.T) {
	service := startService(t)
	large := func() string {
		b := make([]byte, 5<<20)
		for i := range b {
			b[i] = '+' + byte(rand.N(80)) // printable
		}
		return string(b)
	}
	one, two := large(), large()
	var manyText string
	var many []event
	for i := range 100 {
		manyText += fmt.Sprintf("data: number %d\n\n", i)
		many = append(many, event{Data: fmt.Sprintf("number %d", i)})
	}
	for _, p := range []parsing{
		{"one line, one chunk", []string{"data: a b\n\n"}, []event{{Data: "a b"}}},
		{"two messages in three chunks, of which they share one", []string{"data: ab", "cd\n\ndata:", "ef\n\n"}, []event{{Data: "abcd"}, {Data: "ef"}}},
		{"large, one chunk", []string{"data: " + one + "\n\n"}, []event{{Data: one}}},
		{"large, two chunks", []string{"data: " + one, two + "\n\n"}, []event{{Data: one + two}}},
		{"one line, two chunks", []string{"data: a", "b\n\n"}, []event{{Data: "ab"}}},
		{"two messages, one chunk", []string{"data: a\n\ndata: b\n\n"}, []event{{Data: "a"}, {Data: "b"}}},
		{"two lines, one chunk", []string{"data: a\ndata:b\n\n"}, []event{{Data: "a\nb"}}},
		{"empty data", []string{"data:\n\n"}, []event{{}}},
		{"a type", []string{"event: t\ndata: a\n\n"}, []event{{Type: "t", Data: "a"}}},
		{"the default type", []string{"data: a\n\n"}, []event{{Type: "message", Data: "a"}}},
		{"an ID", []string{"id: 1\ndata: a\n\n"}, []event{{ID: "1", Data: "a"}}},
		{"a type and an ID", []string{"event: t\nid: 1\ndata: a\n\n"}, []event{{Type: "t", ID: "1", Data: "a"}}},
		{"an ID with a NUL is none", []string{"id: 1\x002\ndata: a\n\n"}, []event{{Data: "a"}}},
		{"the ID stays", []string{"id: 1\ndata: a\n\n", "data: b\n\n"}, []event{{ID: "1", Data: "a"}, {ID: "1", Data: "b"}}},
		{"an empty ID takes it back", []string{"id: 1\ndata: a\n\n", "id: \ndata: b\n\n"}, []event{{ID: "1", Data: "a"}, {Data: "b"}}},
		{"fields the other way round", []string{"data: a\nid: 1\nevent: t\n\n"}, []event{{Type: "t", ID: "1", Data: "a"}}},
		{"an unknown field", []string{"event: t\nsize: 1\ndata: a\n\n"}, []event{{Type: "t", Data: "a"}}},
		{"no space after the colon", []string{"event:t\ndata:a\n\n"}, []event{{Type: "t", Data: "a"}}},
		{"two spaces after the colon", []string{"event:  t\ndata:  a\n\n"}, []event{{Type: " t", Data: " a"}}},
		{"no colon", []string{"data\n\ndata\ndata\n\n"}, []event{{}, {Data: "\n"}}},
		{"several bytes a character", []string{"data: ä€豆\n\n"}, []event{{Data: "ä€豆"}}},
		{"many messages at once", []string{manyText}, many},
		{"characters byte by byte", pieces("data: ä€豆🎉\n\n", 1), []event{{Data: "ä€豆🎉"}}},
	} {
		p.run(t, service)
	}
}

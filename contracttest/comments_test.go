package main

import "testing"

// The harness wants comments reported. This client does not tell of them, but passes them over.
func TestComments(t *testing.T) {
	service := startService(t)
	for _, p := range []parsing{
		{"alone", []string{":a\n"}, nil},
		{"two", []string{":a\n", ": b\n"}, nil},
		{"before an event", []string{":a\n", "data: b\n\n"}, []event{{Data: "b"}}},
		{"after an event", []string{"data: b\n\n", ":a\n"}, []event{{Data: "b"}}},
		{"within an event", []string{"data: a\n:data: b\n:\ndata: c\n\n"}, []event{{Data: "a\nc"}}},
	} {
		p.run(t, service)
	}
}

package main

import "testing"

func TestBOM(t *testing.T) {
	service := startService(t)
	const bom = "\xEF\xBB\xBF"
	for _, p := range []parsing{
		{"at the start", []string{bom + "data: a\n\n"}, []event{{Data: "a"}}},
		{"before a type and an ID", []string{bom + "event: t\nid: 1\ndata: a\n\n"}, []event{{"t", "a", "1"}}},
		{"before several messages", []string{bom + "data: a\n\ndata: b\n\n"}, []event{{Data: "a"}, {Data: "b"}}},
		{"later it is data", []string{"data: a\n\n", "data: " + bom + "b\n\n"}, []event{{Data: "a"}, {Data: bom + "b"}}},
		{"in two chunks", []string{bom[:2], bom[2:] + "data: a\n\n"}, []event{{Data: "a"}}},
		{"byte by byte", []string{bom[:1], bom[1:2], bom[2:], "data: a\n\n"}, []event{{Data: "a"}}},
		{"a second one, in the data", []string{bom + "data: " + bom + "a\n\n"}, []event{{Data: bom + "a"}}},
		{"none", []string{"data: a\n\n"}, []event{{Data: "a"}}},
		{"before several lines", []string{bom + "data: a\ndata: b\n\n"}, []event{{Data: "a\nb"}}},
		{"before a comment", []string{bom + ":c\ndata: a\n\n"}, []event{{Data: "a"}}},
		{"before empty data", []string{bom + "data:\n\n"}, []event{{}}},
	} {
		p.run(t, service)
	}
	t.Run("on the next connection too", func(t *testing.T) {
		s, c := begin(t, service, atOnce)
		for range 2 {
			c.send(t, bom+"data: a\n\n")
			s.expect(event{Data: "a"})
			c.end()
			_ = s.expectError()
			c = s.accept()
		}
	})
}

package pushlettest

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEventStream(t *testing.T) {
	message := func(data, id string) Event { return Event{Name: "message", Data: data, ID: id} }
	for _, c := range []struct {
		name, stream string
		want         []Event
	}{
		{"the standard's first example", "data: YHOO\ndata: +2\ndata: 10\n\n", []Event{message("YHOO\n+2\n10", "")}},
		{"its second", ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
			[]Event{message("first event", "1"), message("second event", "")}},
		{"its third", "data\n\ndata\ndata\n\ndata:", []Event{message("", ""), message("\n", "")}},
		{"its fourth", "data:test\n\ndata: test\n\n", []Event{message("test", ""), message("test", "")}},
		{"CR", "data: a\r\rdata: b\r\r", []Event{message("a", ""), message("b", "")}},
		{"CR LF", "data: a\r\ndata: b\r\n\r\n", []Event{message("a\nb", "")}},
		{"mixed", "data: a\rdata: b\r\ndata: c\n\r\n", []Event{message("a\nb\nc", "")}},
		{"byte order mark", "\xef\xbb\xbfdata: a\n\n", []Event{message("a", "")}},
		{"only the first", "\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", []Event{message("b", "")}},
		{"event", "event: x\ndata: a\n\ndata: b\n\nevent: y\n\ndata: c\n\n",
			[]Event{{Name: "x", Data: "a"}, message("b", ""), message("c", "")}},
		{"id stays", "id: 7\ndata: a\n\ndata: b\n\n", []Event{message("a", "7"), message("b", "7")}},
		{"id with NUL", "id: 7\ndata: a\n\nid: 8\x00\ndata: b\n\n", []Event{message("a", "7"), message("b", "7")}},
		{"unknown fields", "foo: 1\nDATA: x\ndata : y\ndata: a\n\n", []Event{message("a", "")}},
		{"not UTF-8", "data: \xff\xff\n\n", []Event{message("\uFFFD\uFFFD", "")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := new(eventStream).feed([]byte(c.stream)); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if got := feedByBytes(new(eventStream), c.stream); !slices.Equal(got, c.want) {
				t.Errorf("byte by byte: got %q, want %q", got, c.want)
			}
		})
	}
}

func feedByBytes(s *eventStream, text string) (events []Event) {
	for i := range len(text) {
		events = append(events, s.feed([]byte(text[i:i+1]))...)
	}
	return events
}

func TestEventStreamState(t *testing.T) {
	s := new(eventStream)
	s.feed([]byte(":\n: beat\nretry: 1500\nretry: 2s\nretry\nretry: -1\nid: 5\n"))
	if s.comments != 2 || s.retry != 1500*time.Millisecond || s.lastID != "" {
		t.Errorf("%d comments, retry %v, last ID %q", s.comments, s.retry, s.lastID)
	}
	if events := s.feed([]byte("\n")); len(events) > 0 || s.lastID != "5" {
		t.Errorf("events %v, last ID %q", events, s.lastID)
	}
}

// FuzzEventStream reads anything, cut anywhere, to the same events.
func FuzzEventStream(f *testing.F) {
	f.Add("\xef\xbb\xbfid: 1\r\ndata: a\rdata: b\n\n: beat\nretry: 10\nevent: x\ndata\n\n", 3)
	f.Add("data: \xff\r\n\r\n\x00", 1)
	f.Fuzz(func(t *testing.T, text string, cut int) {
		whole, cutUp := new(eventStream), new(eventStream)
		want := whole.feed([]byte(text))
		at := min(max(cut, 0), len(text))
		got := append(cutUp.feed([]byte(text[:at])), cutUp.feed([]byte(text[at:]))...)
		if !slices.Equal(got, want) || whole.lastID != cutUp.lastID || whole.retry != cutUp.retry || whole.comments != cutUp.comments {
			t.Errorf("cut at %d: %q, want %q", at, got, want)
		}
		for _, e := range want {
			if e.Name == "" || strings.ContainsAny(e.Name+e.ID, "\r\n") || strings.Contains(e.Data, "\r") || strings.Contains(e.ID, "\x00") {
				t.Errorf("event %q", e)
			}
		}
	})
}

package pushlettest

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// An eventStream reads a text/event-stream as a browser does (WHATWG HTML, section
// 9.2.6). The zero value is at the beginning of a stream.
type eventStream struct {
	lastID   string        // of the last event that was dispatched, or skipped for want of data
	retry    time.Duration // what the stream asked for last
	comments int

	line    []byte // what has come of the line so far
	begun   bool   // past the place of a byte order mark
	afterCR bool   // a LF now belongs to the CR before it

	name, id string
	data     []byte // each line with a LF
}

// feed reads what comes next, however it is cut, and returns the events that are now
// complete.
func (s *eventStream) feed(b []byte) (events []Event) {
	for _, c := range b {
		if s.afterCR && c == '\n' {
			s.afterCR = false
			continue
		}
		s.afterCR = c == '\r'
		if c != '\r' && c != '\n' {
			s.line = append(s.line, c)
			continue
		}
		line := s.line
		if !s.begun {
			s.begun = true
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
		}
		if len(line) == 0 {
			events = s.dispatch(events)
		} else {
			s.field(string([]rune(string(line)))) // bytes that are not UTF-8 become U+FFFD
		}
		s.line = s.line[:0]
	}
	return events
}

func (s *eventStream) field(line string) {
	name, value, _ := strings.Cut(line, ":")
	value = strings.TrimPrefix(value, " ")
	switch name {
	case "":
		s.comments++
	case "event":
		s.name = value
	case "data":
		s.data = append(append(s.data, value...), '\n')
	case "id":
		if !strings.Contains(value, "\x00") {
			s.id = value
		}
	case "retry":
		if strings.Trim(value, "0123456789") != "" {
			return
		}
		if ms, err := strconv.ParseInt(value, 10, 32); err == nil {
			s.retry = time.Duration(ms) * time.Millisecond
		}
	}
}

// dispatch ends an event; without data it is none.
func (s *eventStream) dispatch(events []Event) []Event {
	s.lastID = s.id
	name, data := s.name, s.data
	s.name, s.data = "", s.data[:0]
	if len(data) == 0 {
		return events
	}
	if name == "" {
		name = "message"
	}
	return append(events, Event{Name: name, Data: string(data[:len(data)-1]), ID: s.lastID})
}

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/usual2970/pushlet/consumer"
)

const (
	clockLayout = "15:04:05.000"
	lineIndent  = "             " // below the clock, so that no data looks like another message
)

// print writes a message to the standard output, in one write.
func (s *sub) print(m consumer.Message) error {
	out := s.c.stdout
	switch {
	case s.json:
		return s.c.printJSON(jsonMessage{m.Topic, m.Event, m.Data, m.ID, jsonTime(m.Time)})
	case s.raw:
		data := m.Data
		if out.terminal {
			data = escapeLines(data)
		}
		_, err := fmt.Fprintln(out, data)
		return err
	}
	data := strings.ReplaceAll(escapeLines(m.Data), "\n", "\n"+lineIndent)
	line := out.paint(dim, clock(m.Time)) + " "
	if m.Topic != "" {
		line += out.paint(cyan, escape(m.Topic)) + " "
	}
	line += out.paint(green, escape(m.Event)) + " " + data
	_, err := fmt.Fprintln(out, line)
	return err
}

// printGap says that messages are gone. It must not be overlooked.
func (s *sub) printGap(m consumer.Message) error {
	switch {
	case s.json:
		var g jsonGap
		g.Gap.Topics, g.Gap.Reason = m.Gap.Topics, m.Gap.Reason
		return s.c.printJSON(g)
	case s.raw:
		s.c.complain("pushlet sub: %s", gapText(m.Gap))
		return nil
	}
	out := s.c.stdout
	_, err := fmt.Fprintln(out, out.paint(dim, clock(m.Time)), out.paint(alarm, escape(gapText(m.Gap))))
	return err
}

func gapText(g *consumer.Gap) string {
	if len(g.Topics) == 0 {
		return "gap: " + g.Reason
	}
	return "gap " + strings.Join(g.Topics, ", ") + ": " + g.Reason
}

// clock is when a message was published or, if that is not known, has come.
func clock(t time.Time) string {
	if t.IsZero() {
		t = time.Now()
	}
	return t.Local().Format(clockLayout)
}

type jsonMessage struct {
	Topic string     `json:"topic,omitempty"`
	Event string     `json:"event"`
	Data  string     `json:"data"`
	ID    string     `json:"id,omitempty"`
	Time  *time.Time `json:"time,omitempty"`
}

type jsonGap struct {
	Gap struct {
		Topics []string `json:"topics,omitempty"`
		Reason string   `json:"reason"`
	} `json:"gap"`
}

func jsonTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

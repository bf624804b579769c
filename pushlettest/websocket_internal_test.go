package pushlettest

import (
	"slices"
	"testing"
)

func TestPositions(t *testing.T) {
	var p positions
	for _, step := range []struct {
		event Event
		want  []position
	}{
		{Event{Name: "pushlet.pong"}, nil},
		{Event{Topic: "a", Name: "pushlet.error", Data: "no"}, nil},
		{Event{Topic: "a", Name: "pushlet.subscribed", ID: "1-0"}, []position{{"a", "1-0", true}}},
		{Event{Topic: "a", Name: "message", ID: "2-0"}, []position{{"a", "2-0", true}}},
		{Event{Topic: "a", Name: "pushlet.gap", ID: "3-0"}, []position{{"a", "3-0", true}}},
		{Event{Topic: "b", Name: "pushlet.subscribed", ID: "4-0"}, []position{{"a", "3-0", true}, {"b", "4-0", true}}},
		{Event{Topic: "a", Name: "pushlet.unsubscribed"}, []position{{"b", "4-0", true}}},
		{Event{Topic: "a", Name: "message", ID: "5-0"}, []position{{"b", "4-0", true}}},
		// The broadcast log comes first, as the contract says.
		{Event{Topic: "*", Name: "message", ID: "6-0"}, []position{{"*", "6-0", false}, {"b", "4-0", true}}},
		{Event{Topic: "*", Name: "pushlet.subscribed", ID: "7-0"}, []position{{"*", "7-0", true}, {"b", "4-0", true}}},
		{Event{Topic: "*", Name: "pushlet.error", ID: "8-0"}, []position{{"*", "7-0", true}, {"b", "4-0", true}}},
	} {
		p.note(step.event)
		if !slices.Equal(p.list, step.want) {
			t.Errorf("after %v: %v, want %v", step.event, p.list, step.want)
		}
	}
}

func TestWithoutTopics(t *testing.T) {
	for path, want := range map[string]string{
		"/ws":                       "/ws",
		"/ws?topic=a&since=1-0":     "/ws",
		"/ws?topic=a&x=1&topic=b":   "/ws?x=1",
		"/ws?token=a%2Fb&topic=%2A": "/ws?token=a%2Fb",
	} {
		if got := (webSocket{path}).withoutTopics(); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

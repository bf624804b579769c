package chaostest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestChecker shows the checker histories with and without violations: what it does not
// see no other test here would.
func TestChecker(t *testing.T) {
	for name, c := range map[string]struct {
		clients   []string // see told
		refused   []int
		uncertain []int
		whole     bool
		want      string // part of each violation; "" if there must be none
	}{
		"all is well":                    {clients: []string{"f 1 2 3", "f 1 2 3"}},
		"nothing":                        {clients: []string{"", "f 1"}},
		"follows late":                   {clients: []string{"f 1 2 3", "f@2.5 3"}},
		"twice":                          {clients: []string{"f 1 2 1 3"}, uncertain: []int{1}, want: "twice"},
		"twice in a row":                 {clients: []string{"f 1 1"}, want: "twice"},
		"twice, with a gap between":      {clients: []string{"f 1 2 ! 1 2 3"}},
		"twice, with a gap later":        {clients: []string{"f 1 2 2 ! 3"}, want: "twice"},
		"refused":                        {clients: []string{"f 1 2"}, refused: []int{2}, want: "surely not published"},
		"refused, and did not come":      {clients: []string{"f 1 3"}, refused: []int{2}},
		"too early":                      {clients: []string{"1 f@1.5 2"}, want: "before it followed"},
		"opposite orders":                {clients: []string{"f 1 2 3", "f 1 3 2"}, uncertain: []int{1, 2, 3}, want: "the other way round"},
		"opposite orders, with a gap":    {clients: []string{"f 1 2 3", "f 1 3 ! 2"}},
		"after one that began later":     {clients: []string{"f 2 1 3"}, want: "acknowledged before another began"},
		"not in the order of their IDs":  {clients: []string{"ws f 1 2=3 3=2"}, uncertain: []int{2, 3}, want: "order than that of their IDs"},
		"lacks one":                      {clients: []string{"f 1 2 3", "f 1 3"}, want: "lacks message 2"},
		"lacks the first":                {clients: []string{"f 1 2 3", "f 2 3"}, want: "lacks message 1"},
		"lacks the last":                 {clients: []string{"f 1 2 3", "f 1 2"}, want: "lacks message 3"},
		"lacks an uncertain one":         {clients: []string{"f 1 2 3", "f 1 3"}, uncertain: []int{2}},
		"nothing is lost, but lacks one": {clients: []string{"f 1 2 3", "f 1 3"}, uncertain: []int{2}, whole: true, want: "lacks message 2"},
		"nothing is lost, but a gap":     {clients: []string{"f 1 ! 2"}, whole: true, want: "told of a gap"},
		"wrong reason":                   {clients: []string{"f 1 !trimmed 2"}, want: "because of"},
		"gap where it belongs":           {clients: []string{"f 1 2 3", "f 1 ! 3"}},
		"gap at the beginning":           {clients: []string{"f 1 2 3", "f ! 3"}},
		"gap at the end":                 {clients: []string{"f 1 2 3", "f 1 !@9"}},
		"gap before it was published":    {clients: []string{"f 1 2 3", "f 1 !@1.5"}, want: "lacks message"},
		"gap in its place, then back":    {clients: []string{"ws f 1 2 3 5 !@6 7", "ws f 1 4 ! 5 ! 1 4 !@6 7", "ws f 1 4 !@6 7"}},
		"gap too late":                   {clients: []string{"f 1 2 3", "f 1 3 !"}, want: "lacks message 2"},
		"gap too early":                  {clients: []string{"f 1 2 3 4", "f 1 ! 2 4"}, want: "lacks message 3"},
		"gap, but from before it":        {clients: []string{"f 1 2 3 4", "f 1 2 ! 1 2 4"}, want: "lacks message 3"},
		"two gaps, one in its place":     {clients: []string{"f 1 2 3 4", "f ! 1 2 ! 4"}},
		"nobody has it":                  {clients: []string{"f 1 3", "f 1 3"}, want: "which nobody got"},
		"nobody has it, gap since":       {clients: []string{"f 1 3 !@5", "f 1 !@2.5 3"}},
		"nobody has it, gap before":      {clients: []string{"f 1 !@1.5 3", "f !@1.5 1 3"}, want: "which nobody got"},
		"a neighbour is in two places":   {clients: []string{"ws f 1 3 ! 4=10", "ws f 1 2 3=9 4=10"}},
		"lacks one of two places":        {clients: []string{"ws f 1 2 !@6 4=10", "ws f 1 3 !@6 3=9 4=10", "ws f 1 3 ! 2 4=10"}},
		"lacks it in its second place":   {clients: []string{"ws f 1 2=4 3=9 4=10", "ws f 1 ! 2 !@6 2=4 4=10"}, want: "lacks message 3"},
		"published twice":                {clients: []string{"ws f 1 2", "ws f@1.5 2=3"}, whole: true, want: "published more than once"},
		"two logs":                       {clients: []string{"f 1 2 4 !@6 7", "f 1 3 5 !@6 7"}},
		"two logs, and one is not told":  {clients: []string{"f 1 2 4 !@6 7", "f 1 3 5 7"}, want: "lacks message"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &history{whole: c.whole, reasons: []string{"lost"}}
			newest := 0
			for i, text := range c.clients {
				v := told(text)
				v.name = fmt.Sprint(i)
				h.clients = append(h.clients, v)
				for _, r := range v.log {
					newest = max(newest, r.n)
				}
			}
			h.messages = make([]message, 1+newest)
			for n := 1; n <= newest; n++ {
				m := message{n: n, topic: "a", begun: time.Duration(n) * time.Second, outcome: acked}
				m.ended = m.begun + time.Second/10
				switch {
				case slices.Contains(c.refused, n):
					m.outcome = refused
				case slices.Contains(c.uncertain, n):
					m.outcome = uncertain
				}
				h.messages[n] = m
			}
			found := h.check()
			if len(found) == 0 && c.want != "" {
				t.Errorf("no violation, want %q", c.want)
			}
			for _, v := range found {
				if c.want == "" || !strings.Contains(v.text, c.want) {
					t.Errorf("violation, want %q:\n%s", c.want, v.text)
				}
			}
		})
	}
}

// told makes a view of a text: f is when the client follows topic a, a number a message, !
// a gap, with its reason if that is not "lost". A message comes soon after it was published,
// a gap just before the message after it; or else @ and seconds are the time. The IDs are
// the numbers, or stand after =, if the text begins with ws.
func told(text string) view {
	v := view{topics: []string{"a"}}
	at := 0.0
	withIDs := false
	words := strings.Fields(text)
	for i, word := range words {
		if word == "ws" {
			withIDs = true
			continue
		}
		word, when, ok := strings.Cut(word, "@")
		r := record{topic: "a"}
		switch word[0] {
		case 'f':
			r.kind = joined
		case '!':
			r.kind, r.note = gap, "lost"
			for _, next := range words[i:] {
				if n, err := strconv.Atoi(next[:1]); err == nil {
					at = max(at, float64(n)-0.05)
					break
				}
			}
			if word != "!" {
				r.note = word[1:]
			}
		default:
			number, id, hasID := strings.Cut(word, "=")
			r.kind = got
			r.n, _ = strconv.Atoi(number)
			at = max(at, float64(r.n))
			if withIDs {
				r.id = number + "-0"
				if hasID {
					r.id = id + "-0"
				}
			}
		}
		at += 0.2
		if ok {
			at, _ = strconv.ParseFloat(when, 64)
		}
		r.at = time.Duration(at * float64(time.Second))
		v.log = append(v.log, r)
	}
	return v
}

// TestCheckerLast: every client must have the last messages of a run, whatever it was told.
func TestCheckerLast(t *testing.T) {
	m := message{n: 2, topic: "a"}
	h := &history{clients: []view{told("f 1 2"), told("f 1 !"), {topics: []string{"b"}}}}
	if found := h.lacking(m); len(found) != 1 {
		t.Errorf("%d violations, want 1: %v", len(found), found)
	}
}

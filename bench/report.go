package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// A row is one line of the table: one quantity, in all rounds, of Pushlet and of
// the baseline if there is one to compare with.
type row struct {
	Scenario string
	Protocol string
	What     string
	Unit     string
	Baseline []float64 `json:",omitempty"` // by round
	Pushlet  []float64 // by round
	Limit    limit     `json:",omitzero"`
}

// A limit is what a row must reach. The zero limit asks for nothing.
type limit struct {
	Of    quantity
	Least bool // the value must be reached; else it must not be exceeded
	Value float64
}

// A quantity is what of a row a limit is about.
type quantity string

const (
	ofRatio quantity = "ratio"
	ofValue quantity = "value"
)

func atMost(of quantity, v float64) limit  { return limit{Of: of, Value: v} }
func atLeast(of quantity, v float64) limit { return limit{Of: of, Value: v, Least: true} }

func (l limit) String() string {
	sign, unit := "≤", ""
	if l.Least {
		sign = "≥"
	}
	if l.Of == ofRatio {
		unit = "×"
	}
	return sign + " " + number(l.Value) + unit
}

// note adds a value of side s, in the present round.
func (r *row) note(s *side, v float64) {
	if s.kind == kindPushlet {
		r.Pushlet = append(r.Pushlet, v)
	} else {
		r.Baseline = append(r.Baseline, v)
	}
}

// ratio is the median of the rounds' ratios. In a round both sides are measured
// one right after the other, so what else the machine does falls on both.
func (r row) ratio() (ratio float64, ok bool) {
	var ratios []float64
	for i := range min(len(r.Baseline), len(r.Pushlet)) {
		if r.Baseline[i] != 0 {
			ratios = append(ratios, r.Pushlet[i]/r.Baseline[i])
		}
	}
	if len(ratios) == 0 {
		return 0, false
	}
	return median(ratios), true
}

// verdict says whether the row reaches its limit.
func (r row) verdict() string {
	value, ok := median(r.Pushlet), true
	switch r.Limit.Of {
	case ofRatio:
		value, ok = r.ratio()
	case ofValue:
	default:
		return ""
	}
	reached := value <= r.Limit.Value
	if r.Limit.Least {
		reached = value >= r.Limit.Value
	}
	if !ok || !reached {
		return "MISSED"
	}
	return "ok"
}

// A results collects what was measured, and where.
type results struct {
	Machine string
	Command string
	Rows    []row
	Failed  []string `json:",omitempty"` // scenarios that did not come to an end, and why
}

func (r *results) add(rows ...row) { r.Rows = append(r.Rows, rows...) }

var header = []string{"scenario", "", "what", "unit", "baseline", "Pushlet", "ratio", "target", ""}

// table returns the header and a line for each row.
func (r *results) table() [][]string {
	lines := [][]string{header}
	for _, row := range r.Rows {
		line := []string{row.Scenario, row.Protocol, row.What, row.Unit, "", number(median(row.Pushlet)), "", "", row.verdict()}
		if len(row.Baseline) > 0 {
			line[4] = number(median(row.Baseline))
		}
		if ratio, ok := row.ratio(); ok {
			line[6] = number(ratio) + "×"
		}
		if row.Limit.Of != "" {
			line[7] = row.Limit.String()
		}
		lines = append(lines, line)
	}
	return lines
}

// writeMarkdown writes the table as markdown that is aligned, so that it can be
// read in a terminal as well.
func (r *results) writeMarkdown(w io.Writer) error {
	lines := r.table()
	widths := make([]int, len(header))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n`%s`\n\n", r.Machine, r.Command)
	for n, line := range lines {
		for i, cell := range line {
			fmt.Fprintf(&b, "| %-*s ", widths[i], cell) // %-*s counts runes
		}
		b.WriteString("|\n")
		if n == 0 {
			for _, width := range widths {
				b.WriteString("|" + strings.Repeat("-", width+2))
			}
			b.WriteString("|\n")
		}
	}
	for _, failure := range r.Failed {
		fmt.Fprintf(&b, "\nFAILED: %s\n", failure)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// save writes the table to path, and everything that was measured as JSON beside it.
func (r *results) save(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := r.writeMarkdown(f); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(strings.TrimSuffix(path, ".md")+".json", append(raw, '\n'), 0o644)
}

// number formats v with three digits or more, none of them after the point if
// there are three before it.
func number(v float64) string {
	switch abs := max(v, -v); {
	case abs >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case abs >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case abs >= 0.01 || v == 0:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

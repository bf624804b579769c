package main

import "testing"

func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		name string
		row  row
		want string
	}{
		{"ratio of the rounds", row{Baseline: []float64{1, 10, 2}, Pushlet: []float64{1.1, 30, 2.2}, Limit: atMost(ofRatio, 1.15)}, "ok"},
		{"ratio too high", row{Baseline: []float64{1}, Pushlet: []float64{1.2}, Limit: atMost(ofRatio, 1.15)}, "MISSED"},
		{"ratio high enough", row{Baseline: []float64{1}, Pushlet: []float64{12}, Limit: atLeast(ofRatio, 10)}, "ok"},
		{"no baseline", row{Pushlet: []float64{1}, Limit: atMost(ofRatio, 1)}, "MISSED"},
		{"value", row{Baseline: []float64{9}, Pushlet: []float64{5}, Limit: atMost(ofValue, 5)}, "ok"},
		{"nothing measured", row{Limit: atMost(ofValue, 5)}, "MISSED"},
		{"no limit", row{Pushlet: []float64{5}}, ""},
	} {
		if got := tt.row.verdict(); got != tt.want {
			t.Errorf("%s: verdict = %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 0.003: "0.003", 0.05: "0.05", 1.234: "1.23", 12.34: "12.3", 1234: "1234", -3.4: "-3.40"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %q, want %q", v, got, want)
		}
	}
}

package main

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestHistogramBuckets: they follow one another without a hole, and none is wider than 1/32.
func TestHistogramBuckets(t *testing.T) {
	t.Parallel()
	next := uint64(0)
	for bucket := range histogramSize {
		top := topOf(bucket)
		if bucketOf(next) != bucket || bucketOf(top) != bucket {
			t.Fatalf("bucket %d should be from %d to %d, but these are in %d and %d", bucket, next, top, bucketOf(next), bucketOf(top))
		}
		if width := top - next; width > next/32 {
			t.Fatalf("bucket %d is from %d to %d", bucket, next, top)
		}
		next = top + 1
	}
	if next != 1<<63 {
		t.Errorf("the last bucket ends before %d", next)
	}
}

// TestHistogramQuantiles compares with what is exact.
func TestHistogramQuantiles(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 10, 100, 12345} {
		var h histogram
		all := make([]time.Duration, n)
		for i := range all {
			all[i] = time.Duration(rand.ExpFloat64() * float64(20*time.Millisecond)).Truncate(time.Microsecond)
			h.add(all[i])
		}
		slices.Sort(all)
		s := h.summary()
		for q, got := range map[float64]time.Duration{0.5: s.p50, 0.9: s.p90, 0.99: s.p99, 1: s.max} {
			want := all[max(0, int(float64(n)*q+0.999999)-1)]
			if got < want || got > want+want/32 || q == 1 && got != want {
				t.Errorf("of %d: quantile %v is %v, want %v", n, q, got, want)
			}
		}
		if s.count != uint64(n) {
			t.Errorf("counted %d of %d", s.count, n)
		}
	}
	var h histogram
	if s := h.summary(); s != (summary{}) {
		t.Errorf("of nothing: %v", s)
	}
	h.add(-time.Second)
	h.add(1<<63 - 1)
	if s := h.summary(); s.p50 != 0 || s.max != (1<<63-1)/1000*1000 || s.count != 2 {
		t.Errorf("of extremes: %v", s)
	}
}

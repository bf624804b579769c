package main

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// A histogram counts durations in buckets whose width grows with what is in them: a value read from
// it is at most 1/32 too high, and never more than the largest there was. It has one size, however
// much is counted, and is safe for concurrent use.
type histogram struct {
	counts [histogramSize]atomic.Uint64
	most   atomic.Int64 // microseconds
}

const (
	histogramBits = 5 // 32 buckets for each doubling
	histogramSize = (63-histogramBits)<<histogramBits + 1<<histogramBits
)

// bucketOf is where a number of microseconds belongs. Below 64 each has a bucket of its own.
func bucketOf(micros uint64) int {
	shift := max(0, bits.Len64(micros)-histogramBits-1)
	return shift<<histogramBits + int(micros>>shift)
}

// topOf is the largest number in a bucket.
func topOf(bucket int) uint64 {
	shift := max(0, bucket>>histogramBits-1)
	return uint64(bucket-shift<<histogramBits+1)<<shift - 1
}

// add counts a duration. One below zero, by a clock that was set, counts as zero.
func (h *histogram) add(d time.Duration) {
	micros := max(0, d.Microseconds())
	h.counts[bucketOf(uint64(micros))].Add(1)
	for {
		old := h.most.Load()
		if micros <= old || h.most.CompareAndSwap(old, micros) {
			return
		}
	}
}

// A summary is what is said of many durations. All are zero if there were none.
type summary struct {
	count              uint64
	p50, p90, p99, max time.Duration
}

// summary reads the histogram, to which nobody should add meanwhile.
func (h *histogram) summary() (s summary) {
	for i := range h.counts {
		s.count += h.counts[i].Load()
	}
	s.max = time.Duration(h.most.Load()) * time.Microsecond
	s.p50, s.p90, s.p99 = h.quantile(s, 0.5), h.quantile(s, 0.9), h.quantile(s, 0.99)
	return s
}

func (h *histogram) quantile(s summary, q float64) time.Duration {
	rank := uint64(math.Ceil(q * float64(s.count)))
	seen := uint64(0)
	for i := range h.counts {
		if seen += h.counts[i].Load(); seen > 0 && seen >= rank {
			return min(s.max, time.Duration(topOf(i))*time.Microsecond)
		}
	}
	return 0
}

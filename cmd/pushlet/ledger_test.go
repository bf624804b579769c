package main

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestLedger compares with a map, over what a bad network might do to numbers.
func TestLedger(t *testing.T) {
	t.Parallel()
	for range 2000 {
		var l ledger
		seen := map[uint64]bool{}
		highest, doubled, disordered := -1, uint64(0), uint64(0)
		for range rand.IntN(60) {
			n := uint64(rand.IntN(25))
			if rand.IntN(3) > 0 {
				n = uint64(highest + 1)
			}
			switch {
			case seen[n]:
				doubled++
			case int(n) < highest:
				disordered++
			}
			if first := l.note(n); first == seen[n] {
				t.Fatalf("%d: first time %v", n, first)
			}
			seen[n] = true
			highest = max(highest, int(n))
		}
		for _, end := range []uint64{0, 1, 10, 25, 80} {
			lost := uint64(0)
			for n := range end {
				if !seen[n] {
					lost++
				}
			}
			if l.lost(end) != lost || l.doubled != doubled || l.disordered != disordered {
				t.Fatalf("got lost %d, doubled %d, out of order %d, want %d, %d, %d",
					l.lost(end), l.doubled, l.disordered, lost, doubled, disordered)
			}
		}
		for i, s := range l.missing {
			if s.from >= s.to || i > 0 && l.missing[i-1].to >= s.from {
				t.Fatalf("missing %v", l.missing)
			}
		}
	}
}

// TestDue: all topics together get the rate, each message at its time.
func TestDue(t *testing.T) {
	t.Parallel()
	for range 1000 {
		b := &bench{rate: 0.1 + rand.Float64()*1000, limit: time.Duration(1 + rand.Int64N(int64(3*time.Second)))}
		b.topics = make([]*benchTopic, 1+rand.IntN(20))
		elapsed := time.Duration(rand.Int64N(int64(4 * time.Second)))
		due, exact := int64(0), int64(0)
		for i := range b.topics {
			n := b.due(i, elapsed)
			due += int64(n)
			if at := b.dueAt(i, n); at <= elapsed && at < b.limit {
				t.Fatalf("message %d of topic %d is due at %v, but not at %v", n, i, at, elapsed)
			}
			if n > 0 && b.dueAt(i, n-1) > min(elapsed, b.limit) {
				t.Fatalf("message %d of topic %d is not due at %v", n-1, i, elapsed)
			}
		}
		for k := 0; ; k++ {
			at := time.Duration(float64(k) / b.rate * float64(time.Second))
			if at > elapsed || at >= b.limit {
				break
			}
			exact++
		}
		if due < exact-1 || due > exact+1 {
			t.Fatalf("%d are due, want %d", due, exact)
		}
	}
}

package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// reasons counts texts. It is safe for concurrent use.
type reasons struct {
	mu     sync.Mutex
	counts map[string]int
}

// A reason is a text, and how often it was.
type reason struct {
	Reason string `json:"reason"`
	Count  int    `json:"count"`
}

// manyReasons is how many are kept apart: a server could think of a new one each time.
const manyReasons = 100

func (r *reasons) add(text string) {
	text = fmt.Sprintf("%.300s", text)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = map[string]int{}
	}
	if _, known := r.counts[text]; !known && len(r.counts) >= manyReasons {
		text = "other reasons"
	}
	r.counts[text]++
}

// top returns the most frequent.
func (r *reasons) top(n int) []reason {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := []reason{}
	for _, text := range slices.Sorted(maps.Keys(r.counts)) {
		list = append(list, reason{text, r.counts[text]})
	}
	slices.SortStableFunc(list, func(a, b reason) int { return cmp.Compare(b.Count, a.Count) })
	return list[:min(n, len(list))]
}

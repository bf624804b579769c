package main

import "slices"

// A ledger checks the numbers that one connection gets: each once and in order, from 0 on. It
// grows only with what is missing.
type ledger struct {
	next       uint64 // after the highest that has come
	missing    []span // below next, in order
	doubled    uint64
	disordered uint64 // came after a higher one
}

// A span is the numbers from, and up to but not including, to.
type span struct{ from, to uint64 }

// note enters a number and reports whether it came for the first time.
func (l *ledger) note(n uint64) bool {
	switch {
	case n == l.next:
		l.next++
	case n > l.next:
		l.missing = append(l.missing, span{l.next, n})
		l.next = n + 1
	case l.fill(n):
		l.disordered++
	default:
		l.doubled++
		return false
	}
	return true
}

// fill removes a number from those that are missing, and reports whether it was.
func (l *ledger) fill(n uint64) bool {
	i := slices.IndexFunc(l.missing, func(s span) bool { return s.from <= n && n < s.to })
	if i < 0 {
		return false
	}
	s := l.missing[i]
	var rest []span
	if s.from < n {
		rest = append(rest, span{s.from, n})
	}
	if n+1 < s.to {
		rest = append(rest, span{n + 1, s.to})
	}
	l.missing = slices.Replace(l.missing, i, i+1, rest...)
	return true
}

// lost returns how many of the numbers below end have not come.
func (l *ledger) lost(end uint64) (n uint64) {
	for _, s := range l.missing {
		if s.from < end {
			n += min(s.to, end) - s.from
		}
	}
	if l.next < end {
		n += end - l.next
	}
	return n
}

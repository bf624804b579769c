package pushlet

import (
	"slices"
	"sort"
	"strings"
	"time"
)

// historyLimits bounds what one topic keeps: whichever comes first.
type historyLimits struct {
	messages int
	bytes    int // of events and data; the wire forms in use come on top
	age      time.Duration
}

func (l historyLimits) off() bool { return l.messages <= 0 || l.bytes <= 0 || l.age <= 0 }

// A topicLog is the history of one topic, in memory: its newest messages, in order,
// each linked to the one before by its prev ID. It belongs to the broker.
type topicLog struct {
	limits historyLimits
	frames []*frame // the oldest is frames[head]
	head   int
	bytes  int
	cause  Reason // why the last message left: gapTrimmed or gapExpired
}

func (l *topicLog) len() int { return len(l.frames) - l.head }

// from returns the messages after x, oldest first, as a view that the next append or
// expire ends.
func (l *topicLog) from(x msgID) []*frame {
	kept := l.frames[l.head:]
	i := sort.Search(len(kept), func(i int) bool { return x.before(kept[i].id) })
	return kept[i:]
}

// append adds f and drops what is over the limits, but never f itself.
func (l *topicLog) append(f *frame) {
	if len(l.frames) == cap(l.frames) && l.head > len(l.frames)/2 {
		n := copy(l.frames, l.frames[l.head:])
		clear(l.frames[n:])
		l.frames, l.head = l.frames[:n], 0
	}
	l.frames = append(l.frames, f)
	l.bytes += f.size()
	for l.len() > 1 && (l.len() > l.limits.messages || l.bytes > l.limits.bytes) {
		l.drop(gapTrimmed)
	}
}

// prepend puts older messages before the others, as many as the limits allow.
func (l *topicLog) prepend(older []*frame) {
	kept := l.frames[l.head:]
	all := make([]*frame, 0, len(older)+len(kept))
	l.frames, l.head = append(append(all, older...), kept...), 0
	for _, f := range older {
		l.bytes += f.size()
	}
	for l.len() > 1 && (l.len() > l.limits.messages || l.bytes > l.limits.bytes) {
		l.drop(gapTrimmed)
	}
}

// expire drops what is older than the limit, but never the newest message: with it, a
// client of an idle topic finds the position that it left.
func (l *topicLog) expire(now time.Time) {
	for l.len() > 1 && now.Sub(l.frames[l.head].at) > l.limits.age {
		l.drop(gapExpired)
	}
	if l.len() == 1 && cap(l.frames) > 16 {
		l.frames, l.head = []*frame{l.frames[l.head]}, 0
	}
}

func (l *topicLog) drop(cause Reason) {
	f := l.frames[l.head]
	l.frames[l.head] = nil
	l.head++
	l.bytes -= f.size()
	l.cause = cause
	if l.head == len(l.frames) {
		l.frames, l.head = l.frames[:0], 0
	}
}

// newestByEvent keeps, of messages in order, the last of each event name.
func newestByEvent(frames []*frame) []*frame {
	last := make(map[string]*frame)
	for _, f := range frames {
		last[f.event] = f
	}
	kept := make([]*frame, 0, len(last))
	for _, f := range frames {
		if last[f.event] == f {
			kept = append(kept, f)
		}
	}
	return kept
}

// byPrefix finds the setting for a topic: that of the longest prefix of it that has
// one, else the default.
type byPrefix[T any] struct {
	fallback T
	rules    []prefixRule[T] // longest prefix first
}

type prefixRule[T any] struct {
	prefix string
	value  T
}

// set adds a rule, or replaces the one for the same prefix.
func (s *byPrefix[T]) set(prefix string, value T) {
	s.rules = slices.DeleteFunc(s.rules, func(r prefixRule[T]) bool { return r.prefix == prefix })
	s.rules = append(s.rules, prefixRule[T]{prefix, value})
	slices.SortStableFunc(s.rules, func(a, b prefixRule[T]) int { return len(b.prefix) - len(a.prefix) })
}

func (s *byPrefix[T]) of(topic string) T {
	for _, r := range s.rules {
		if strings.HasPrefix(topic, r.prefix) {
			return r.value
		}
	}
	return s.fallback
}

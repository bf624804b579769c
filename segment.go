package pushlet

// A segment is a block of wire bytes that many clients share. The one who owns its
// lane appends; bytes that a span covers never change again, so that flushers read
// them without a lock.
type segment struct {
	buf []byte // its length is its capacity, and never changes
}

// A span is a range of a segment: n messages that are ready to be written.
type span struct {
	seg      *segment
	from, to uint32
	n        uint32 // 0: bytes that are no message
	part     uint32 // how many bytes of the first message, before from, are written
}

func (s span) bytes() []byte { return s.seg.buf[s.from:s.to] }

// len has a pointer because a copy of a span, which has too many fields for registers, costs
// more than all the rest of what push and take do.
func (s *span) len() int { return int(s.to - s.from) }

// cut takes n bytes, which are not all, off the front of s, and returns how many messages
// of form m end in them.
func (s *span) cut(n int, m form) (messages int) {
	begin, at := s.from-s.part, s.from+uint32(n)
	for s.n > 1 {
		end := begin + uint32(m.endOf(s.seg.buf[begin:s.to]))
		if end > at {
			break
		}
		begin = end
		messages++
		s.n--
	}
	s.from, s.part = at, at-begin
	return messages
}

// staticSpan makes a span of its own of b.
func staticSpan(b []byte) span {
	return span{seg: &segment{b}, to: uint32(len(b))}
}

// A lane is where segments are filled, one after the other. Spans put one after the
// other lie side by side as long as the segment has room. It has one owner.
type lane struct {
	seg  *segment
	used uint32
}

const (
	minSegment = 256
	maxSegment = 64 << 10 // but a longer message gets a segment that fits
)

// put appends the parts, side by side, and returns the span that covers them.
func (l *lane) put(n uint32, parts ...[]byte) span {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	l.reserve(size)
	s := span{seg: l.seg, from: l.used, n: n}
	for _, p := range parts {
		l.used += uint32(copy(l.seg.buf[l.used:], p))
	}
	s.to = l.used
	return s
}

// reserve sees to it that size bytes fit into the segment. Segments double, so that
// a busy lane has few and a lane of one short message costs little.
func (l *lane) reserve(size int) {
	next := minSegment
	if l.seg != nil {
		if len(l.seg.buf)-int(l.used) >= size {
			return
		}
		next = min(2*len(l.seg.buf), maxSegment)
	}
	*l = lane{seg: &segment{make([]byte, max(next, size))}}
}

package consumer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// DefaultMaxSize is how large an event may be: see [WithMaxSize] and [Decoder.SetMaxSize].
const DefaultMaxSize = 8 << 20

// DefaultEventType is the name of an event that was sent without one.
const DefaultEventType = "message"

// ErrTooLarge is the error for an event, or a line of a stream, that is larger than the limit.
// It is final: the server would send the same again.
var ErrTooLarge = errors.New("consumer: larger than the limit")

// A Decoder reads a text/event-stream, byte for byte as WHATWG HTML says in section 9.2.6,
// however the bytes arrive. It returns an event as soon as its last byte is read. It is not
// safe for concurrent use.
type Decoder struct {
	r       io.Reader
	maxSize int
	err     error // sticky

	buf        []byte
	start, end int  // what is read but not yet taken is buf[start:end]
	seen       int  // no line ends before buf[seen]
	begun      bool // past the place of a byte order mark
	afterCR    bool // a LF now belongs to the CR before it

	data     []byte // each line with a LF
	name, id string

	lastID string
	retry  time.Duration
	asked  bool // retry was set
}

// NewDecoder returns a Decoder at the beginning of a stream.
func NewDecoder(r io.Reader) *Decoder { return &Decoder{r: r, maxSize: DefaultMaxSize} }

// SetMaxSize limits the data of an event, and a line of the stream of whatever kind, to that
// many bytes. n < 1 selects DefaultMaxSize.
func (d *Decoder) SetMaxSize(n int) {
	if n < 1 {
		n = DefaultMaxSize
	}
	d.maxSize = n
}

// LastEventID is what a client that comes back sends as Last-Event-ID: the ID that was in
// force at the end of the last event, also if that had no data and was not returned.
func (d *Decoder) LastEventID() string { return d.lastID }

// Retry returns how long the stream has asked a client to wait before it comes back, and
// false if it has not.
func (d *Decoder) Retry() (wait time.Duration, ok bool) { return d.retry, d.asked }

// Next returns the next event, with Event, Data and ID set. An event without a name is
// [DefaultEventType]; bytes that are not UTF-8 become U+FFFD. At the end of the stream it returns
// io.EOF, and what was not complete is dropped; any other error is the reader's, or
// [ErrTooLarge]. After an error it returns that again.
func (d *Decoder) Next() (Message, error) {
	for {
		line, ok := d.takeLine()
		switch {
		case d.err != nil && !ok:
			return Message{}, d.err
		case !ok:
			d.err = d.fill()
		case len(line) == 0:
			if m, complete := d.dispatch(); complete {
				return m, nil
			}
		default:
			d.field(line)
		}
	}
}

// takeLine returns the next line if all of it is there. It is valid until fill.
func (d *Decoder) takeLine() (line []byte, ok bool) {
	if errors.Is(d.err, ErrTooLarge) {
		return nil, false
	}
	if d.afterCR && d.start < d.end {
		d.afterCR = false
		if d.buf[d.start] == '\n' {
			d.start++
		}
	}
	d.seen = max(d.seen, d.start)
	n := lineEnd(d.buf[d.seen:d.end])
	if n < 0 {
		d.seen = d.end
		if d.end-d.start > d.maxSize {
			d.err = fmt.Errorf("%w: a line of more than %d bytes", ErrTooLarge, d.maxSize)
		}
		return nil, false
	}
	end := d.seen + n
	line = d.buf[d.start:end]
	d.afterCR = d.buf[end] == '\r'
	d.start, d.seen = end+1, end+1
	if len(line) > d.maxSize {
		d.err = fmt.Errorf("%w: a line of more than %d bytes", ErrTooLarge, d.maxSize)
		return nil, false
	}
	if !d.begun {
		d.begun = true
		line = bytes.TrimPrefix(line, []byte("\xEF\xBB\xBF"))
	}
	return line, true
}

// lineEnd returns where the first CR or LF is, or -1.
func lineEnd(b []byte) int {
	lf := bytes.IndexByte(b, '\n')
	if lf >= 0 {
		b = b[:lf]
	}
	if cr := bytes.IndexByte(b, '\r'); cr >= 0 {
		return cr
	}
	return lf
}

const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10 // a larger one is not kept
)

// fill reads more.
func (d *Decoder) fill() error {
	if d.start == d.end {
		d.start, d.end = 0, 0
		if len(d.buf) > largeBuffer {
			d.buf = nil
		}
	}
	switch {
	case d.start > 0:
		d.end = copy(d.buf, d.buf[d.start:d.end])
		d.start = 0
	case d.end == len(d.buf):
		larger := make([]byte, max(smallBuffer, 2*len(d.buf)))
		copy(larger, d.buf)
		d.buf = larger
	}
	d.seen = d.end // takeLine has looked at all of it
	const patience = 100
	for range patience {
		n, err := d.r.Read(d.buf[d.end:])
		d.end += n
		if n > 0 || err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// field takes a line that is not empty.
func (d *Decoder) field(line []byte) {
	if line[0] == ':' {
		return // a comment
	}
	name, value, _ := strings.Cut(decodeUTF8(line), ":")
	value = strings.TrimPrefix(value, " ")
	switch name {
	case "event":
		d.name = value
	case "data":
		if len(d.data)+len(value) > d.maxSize {
			d.err = fmt.Errorf("%w: an event of more than %d bytes", ErrTooLarge, d.maxSize)
			return
		}
		d.data = append(append(d.data, value...), '\n')
	case "id":
		if strings.IndexByte(value, 0) < 0 {
			d.id = value
		}
	case "retry":
		d.setRetry(value)
	}
}

// setRetry takes digits and nothing else. What does not fit becomes the longest time there is.
func (d *Decoder) setRetry(digits string) {
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return
	}
	const most = uint64(math.MaxInt64 / int64(time.Millisecond))
	ms, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || ms > most {
		ms = most
	}
	d.retry, d.asked = time.Duration(ms)*time.Millisecond, true
}

// dispatch ends an event. Without data it is none.
func (d *Decoder) dispatch() (Message, bool) {
	d.lastID = d.id
	name, data := d.name, d.data
	d.name, d.data = "", d.data[:0]
	if len(data) == 0 {
		return Message{}, false
	}
	if cap(d.data) > largeBuffer {
		d.data = nil
	}
	if name == "" {
		name = DefaultEventType
	}
	return Message{Event: name, Data: string(data[:len(data)-1]), ID: d.lastID}, true
}

// decodeUTF8 decodes as the Encoding Standard says: each longest part that could have begun a
// character becomes one U+FFFD. (Conversions of Go make one of each byte.)
func decodeUTF8(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	out := make([]byte, 0, len(b)+16)
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			n = begunBytes(b)
		}
		out = utf8.AppendRune(out, r)
		b = b[n:]
	}
	return string(out)
}

// begunBytes returns how many bytes of b, which does not begin with a character, could be the
// beginning of one; at least 1.
func begunBytes(b []byte) int {
	low, high := byte(0x80), byte(0xBF) // for the second byte
	more := 0
	switch c := b[0]; {
	case c >= 0xC2 && c <= 0xDF:
		more = 1
	case c >= 0xE0 && c <= 0xEF:
		more = 2
		if c == 0xE0 {
			low = 0xA0
		} else if c == 0xED {
			high = 0x9F
		}
	case c >= 0xF0 && c <= 0xF4:
		more = 3
		if c == 0xF0 {
			low = 0x90
		} else if c == 0xF4 {
			high = 0x8F
		}
	}
	n := 1
	for n <= more && n < len(b) && b[n] >= low && b[n] <= high {
		low, high = 0x80, 0xBF
		n++
	}
	return n
}

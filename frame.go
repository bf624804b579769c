package pushlet

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// A form is one of the ways a message looks on the wire. A client has one form for
// as long as it lives.
type form uint8

const (
	formSSE           form = iota
	formSSEJSON            // an event stream of the WebSocket's JSON, ?format=json
	formBinary             // WebSocket, JSON in a binary frame
	formText               // the same in a text frame, subprotocol pushlet.text
	formBinaryDeflate      // compressed, permessage-deflate without context takeover
	formTextDeflate
	numForms
)

func (m form) isDeflate() bool { return m >= formBinaryDeflate }

// isStream reports whether a client of form m reads an event stream.
func (m form) isStream() bool { return m <= formSSEJSON }

// A wantedForms says in which forms at least one client gets its messages.
type wantedForms [numForms]bool

// A frame is one message and its wire forms, each of which is built at most once
// and then shared by all clients.
type frame struct {
	// Immutable after newFrame.
	topic       string
	event, data string
	at          time.Time

	// Set by newFrame's caller and taken by the broker, which returns it to the pool.
	enc *encoded

	// Set by the broker when it orders the message, immutable afterwards.
	id   msgID
	prev msgID // ID before this one in its topic
	all  msgID // last ID of the broadcast log at that moment; zero if not known

	// In distributed mode, set by the connector: this is no message, but says that
	// messages before it are gone, and why.
	mark Reason

	// Owned by the broker.
	forms   [numForms]rangeOf
	sseBody uint32 // where in forms[formSSE] the part after the "id:" line begins
}

// rangeOf is a span of one message, without the count.
type rangeOf struct {
	seg      *segment
	from, to uint32
}

func (r rangeOf) span() span { return span{seg: r.seg, from: r.from, to: r.to, n: 1} }

// newFrame returns a frame for a message that has been checked. The strings are
// copied: what the caller passed may be a small part of a large buffer.
func newFrame(topic, event, data string, at time.Time) *frame {
	if event == "" {
		event = defaultEvent
	}
	event, data = validUTF8(event), validUTF8(data)
	both := event + data
	return &frame{topic: topic, event: both[:len(event)], data: both[len(event):], at: at}
}

// validUTF8 replaces what is not UTF-8. The check is several times faster than
// strings.ToValidUTF8, which nearly always has nothing to do.
func validUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// size is what a message counts against the byte limit of its history.
func (f *frame) size() int { return len(f.event) + len(f.data) }

// encoded holds what can be encoded before the broker has given the message its ID,
// so that this work is done by the publishers, side by side.
type encoded struct {
	sse  []byte // the frame after its "id:" line
	json []byte // the object up to its "id"
	zip  []byte // json compressed, flushed to a byte boundary; empty if not worth it
}

var encodedPool = sync.Pool{New: func() any { return new(encoded) }}

// newEncoded returns one with nothing in it; release gives it back.
func newEncoded() *encoded {
	e := encodedPool.Get().(*encoded)
	e.sse, e.json, e.zip = e.sse[:0], e.json[:0], e.zip[:0]
	return e
}

// maxPooled keeps the buffers of rare large messages out of the pools.
const maxPooled = 64 << 10

// encode builds the wanted parts.
func (f *frame) encode(want wantedForms) {
	if want == (wantedForms{}) {
		return
	}
	f.enc = newEncoded()
	for m := range numForms {
		if want[m] {
			f.enc.need(f, m)
		}
	}
}

// release gives the buffers back once the broker has taken what it needs.
func (f *frame) release() {
	e := f.enc
	f.enc = nil
	if e != nil && cap(e.sse)+cap(e.json)+cap(e.zip) <= maxPooled {
		encodedPool.Put(e)
	}
}

// need sees to it that the parts for form m are there.
func (e *encoded) need(f *frame, m form) {
	if m == formSSE {
		if len(e.sse) == 0 {
			e.sse = appendSSEBody(e.sse, f.event, f.data)
		}
		return
	}
	if len(e.json) == 0 {
		e.json = appendJSONHead(e.json, wireTopic(f.topic), f.event, f.data, f.at)
	}
	if m.isDeflate() && len(e.zip) == 0 && len(e.json) >= minDeflate {
		e.zip = appendDeflated(e.zip, e.json)
	}
}

// appendSSEBody appends a message in the text/event-stream format (WHATWG HTML,
// "Server-sent events") without its "id:" line. LF, CR and CRLF each end a line of
// data; the event name has none of them.
func appendSSEBody(b []byte, event, data string) []byte {
	b = append(b, "event: "...)
	b = append(b, event...)
	b = append(b, "\ndata: "...)
	ends := "\n"
	if strings.IndexByte(data, '\r') >= 0 {
		ends = "\r\n"
	}
	for {
		i := strings.IndexAny(data, ends)
		if i < 0 {
			b = append(b, data...)
			return append(b, "\n\n"...)
		}
		b = append(b, data[:i]...)
		b = append(b, "\ndata: "...)
		if data[i] == '\r' && i+1 < len(data) && data[i+1] == '\n' {
			i++
		}
		data = data[i+1:]
	}
}

// timestampFormat is RFC 3339 with milliseconds.
const timestampFormat = "2006-01-02T15:04:05.000Z07:00"

// appendJSONHead appends the object of a message in JSON up to where its "id"
// follows; see appendJSONTail.
func appendJSONHead(b []byte, topic, event, data string, at time.Time) []byte {
	b = append(b, '{')
	if topic != "" {
		b = append(b, `"topic":`...)
		b = appendJSONString(b, topic)
		b = append(b, ',')
	}
	b = append(b, `"event":`...)
	b = appendJSONString(b, event)
	b = append(b, `,"data":`...)
	b = appendJSONString(b, data)
	b = append(b, `,"timestamp":"`...)
	b = at.UTC().AppendFormat(b, timestampFormat)
	return append(b, '"')
}

// appendJSONTail ends the object that appendJSONHead began.
func appendJSONTail(b []byte, id msgID) []byte {
	b = append(b, `,"id":"`...)
	b = id.append(b)
	return append(b, `"}`...)
}

// appendJSONString appends s, which is valid UTF-8, as a JSON string (RFC 8259).
// encoding/json would do, but allocates and reflects on the path of every message.
func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default:
			b = append(b, `\u00`...)
			b = append(b, hex[c>>4], hex[c&0xf])
		}
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

// Opcodes and bits of RFC 6455, section 5.2, and RFC 7692, section 6.
const (
	wsFin        = 0x80
	wsCompressed = 0x40
	wsMasked     = 0x80 // in the second byte
	wsText       = 0x1
	wsBinary     = 0x2
	wsClose      = 0x8
	wsPing       = 0x9
	wsPong       = 0xa
)

// appendWSHeader appends the header of an unmasked frame with size bytes of payload.
func appendWSHeader(b []byte, first byte, size int) []byte {
	b = append(b, first)
	switch {
	case size < 126:
		return append(b, byte(size))
	case size < 1<<16:
		b = append(b, 126)
		return binary.BigEndian.AppendUint16(b, uint16(size))
	default:
		b = append(b, 127)
		return binary.BigEndian.AppendUint64(b, uint64(size))
	}
}

// opcode is the first byte of an uncompressed message of form m.
func (m form) opcode() byte {
	if m == formText || m == formTextDeflate {
		return wsFin | wsText
	}
	return wsFin | wsBinary
}

// appendHead appends what stands before an uncompressed object of size bytes.
func (m form) appendHead(b []byte, size int) []byte {
	if m == formSSEJSON {
		return append(b, "data: "...) // it has no line breaks
	}
	return appendWSHeader(b, m.opcode(), size)
}

// end is what stands after the object.
func (m form) end() []byte {
	if m == formSSEJSON {
		return messageEnd
	}
	return nil
}

// endOf returns where the first message of b ends, which begins with a whole one.
func (m form) endOf(b []byte) int {
	if m.isStream() {
		return bytes.Index(b, messageEnd) + len(messageEnd)
	}
	size := uint64(b[1])
	switch head := 2; size {
	case 126:
		return head + 2 + int(binary.BigEndian.Uint16(b[head:]))
	case 127:
		return head + 8 + int(binary.BigEndian.Uint64(b[head:]))
	default:
		return head + int(size)
	}
}

// messageEnd is the empty line that ends an event, and is nowhere within one.
var messageEnd = []byte("\n\n")

// jsonReply builds what answers one client and is no message of a topic. A zero id leaves
// "id" out.
func jsonReply(m form, topic, event, data string, id msgID, at time.Time) []byte {
	head := appendJSONHead(nil, topic, event, validUTF8(data), at)
	if id.isZero() {
		head = append(head, '}')
	} else {
		head = appendJSONTail(head, id)
	}
	b := append(m.appendHead(nil, len(head)), head...)
	return append(b, m.end()...)
}

// minDeflate is the size in bytes below which compressing a message saves too little for
// the time it takes.
const minDeflate = 256

// deflateLevel: the time is spent once a message, not once a client.
const deflateLevel = 6

type deflater struct {
	buf bytes.Buffer
	w   *flate.Writer
}

var deflaterPool = sync.Pool{New: func() any {
	d := new(deflater)
	d.w, _ = flate.NewWriter(&d.buf, deflateLevel) // the level is valid
	return d
}}

// appendDeflated compresses p up to a byte boundary, where stored blocks can follow.
func appendDeflated(b, p []byte) []byte {
	d := deflaterPool.Get().(*deflater)
	d.buf.Reset()
	d.w.Reset(&d.buf)
	_, _ = d.w.Write(p) // into memory: cannot fail
	_ = d.w.Flush()
	b = append(b, d.buf.Bytes()...)
	if d.buf.Cap() <= maxPooled {
		deflaterPool.Put(d)
	}
	return b
}

// appendStored appends p as a stored block of DEFLATE (RFC 1951, section 3.2.4),
// then the first byte of an empty one, whose rest RFC 7692 has the receiver add.
func appendStored(b, p []byte) []byte {
	b = append(b, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(p)))
	b = binary.LittleEndian.AppendUint16(b, ^uint16(len(p)))
	b = append(b, p...)
	return append(b, 0)
}

// cutUTF8 returns the longest prefix of s of at most n bytes that ends at a rune.
func cutUTF8(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

package pushlet

import (
	"encoding/base64"
	"encoding/binary"
)

// A cursor is what a client has been given: for each topic it follows, and for the
// broadcast log, the last ID. Its token is the "id:" of an SSE message. Topics are
// in it by hash, so that their order in the URL does not matter and their names
// take no room.
//
// The token is the unpadded base64url form (RFC 4648) of
//
//	version           1 byte
//	number of topics  uvarint, so that a token that was cut short is known
//	newest ID         uvarint ms, uvarint seq
//	broadcast log     uvarint ms before the newest, uvarint seq XOR the newest's
//	each topic        5 bytes of hash, then the same two
//
// A browser sends a Last-Event-ID across origins without a preflight only up to 128
// bytes, which is enough for six topics, and has no trouble with these characters.
type cursor struct {
	all    msgID
	topics []position
}

// A position is how far a client has got in the topic with that hash.
type position struct {
	hash topicHash
	id   msgID
}

const cursorVersion = 1

// maxToken is how long the token of a client of so many topics can be.
func maxToken(topics int) int {
	const position = hashBytes + 2*binary.MaxVarintLen64
	return base64.RawURLEncoding.EncodedLen(1 + binary.MaxVarintLen64 + (topics+2)*position)
}

// A topicHash stands for a topic in a cursor: 40 bits, the same in every process.
type topicHash uint64

const hashBytes = 5

// hashTopic is FNV-1a, folded to 40 bits.
func hashTopic(topic string) topicHash {
	h := uint64(14695981039346656037)
	for i := range len(topic) {
		h = (h ^ uint64(topic[i])) * 1099511628211
	}
	const bits = 8 * hashBytes
	return topicHash((h ^ h>>bits) & (1<<bits - 1))
}

// appendToken appends the cursor's token to b, using scratch for the bytes behind
// it; it returns both so that the caller can use their memory again.
func (c *cursor) appendToken(b, scratch []byte) (token, grown []byte) {
	newest := c.all
	for _, p := range c.topics {
		if newest.before(p.id) {
			newest = p.id
		}
	}
	raw := append(scratch[:0], cursorVersion)
	raw = binary.AppendUvarint(raw, uint64(len(c.topics)))
	raw = binary.AppendUvarint(raw, newest.ms)
	raw = binary.AppendUvarint(raw, newest.seq)
	raw = appendDistance(raw, newest, c.all)
	for _, p := range c.topics {
		var h [8]byte
		binary.BigEndian.PutUint64(h[:], uint64(p.hash))
		raw = append(raw, h[8-hashBytes:]...)
		raw = appendDistance(raw, newest, p.id)
	}
	return base64.RawURLEncoding.AppendEncode(b, raw), raw
}

func appendDistance(b []byte, newest, id msgID) []byte {
	b = binary.AppendUvarint(b, newest.ms-id.ms)
	return binary.AppendUvarint(b, newest.seq^id.seq)
}

// parseCursor reads a token that appendToken wrote, from whatever a client sent.
func parseCursor(token string) (cursor, bool) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(raw) == 0 || raw[0] != cursorVersion {
		return cursor{}, false
	}
	d := cursorDecoder{raw: raw[1:]}
	topics := d.uvarint()
	newest := msgID{d.uvarint(), d.uvarint()}
	c := cursor{all: d.distance(newest)}
	for len(d.raw) > 0 && !d.failed {
		c.topics = append(c.topics, position{d.hash(), d.distance(newest)})
	}
	if d.failed || uint64(len(c.topics)) != topics {
		return cursor{}, false
	}
	return c, true
}

// cursorDecoder takes values off the front of raw; after a failure all are zero.
type cursorDecoder struct {
	raw    []byte
	failed bool
}

func (d *cursorDecoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.raw)
	if n <= 0 {
		d.failed = true
		d.raw = nil
		return 0
	}
	d.raw = d.raw[n:]
	return v
}

func (d *cursorDecoder) distance(newest msgID) msgID {
	ms, seq := d.uvarint(), d.uvarint()
	if ms > newest.ms {
		d.failed = true
	}
	return msgID{newest.ms - ms, newest.seq ^ seq}
}

func (d *cursorDecoder) hash() topicHash {
	if len(d.raw) < hashBytes {
		d.failed = true
		d.raw = nil
		return 0
	}
	var h [8]byte
	copy(h[8-hashBytes:], d.raw)
	d.raw = d.raw[hashBytes:]
	return topicHash(binary.BigEndian.Uint64(h[:]))
}

// position returns where the cursor is in the topic with that hash.
func (c *cursor) position(h topicHash) (msgID, bool) {
	for _, p := range c.topics {
		if p.hash == h {
			return p.id, true
		}
	}
	return msgID{}, false
}

package pushlet

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxTopicLen  = 255 // bytes
	maxEventLen  = 255 // bytes
	defaultEvent = "message"
	defaultTopic = "default"

	// broadcastTopic is the reserved name of the log that PublishToAll appends to.
	broadcastTopic = "*"

	// userPrefix begins the names of the logs of messages for users.
	userPrefix = "@user/"

	// reservedPrefix begins the event names that only the library may send.
	reservedPrefix = "pushlet."
)

// A msgID is the position of a message: milliseconds since 1970 and a sequence
// number, written "ms-seq" as in a Redis stream. IDs increase within a topic; those
// of one process increase over all its topics, so that they also order messages of
// different topics. The zero ID belongs to no message.
type msgID struct {
	ms, seq uint64
}

// A process marks the IDs that it mints: the sequence number is its random lineage
// followed by a counter within the millisecond. A cursor from an earlier process is
// recognised by it even where the clock was set back.
const (
	lineageBits = 20
	counterBits = 21
	// In Redis the low bits of the counter are random for each batch, so that no ID is
	// given twice, not even by a Redis that has lost messages and whose clock is behind.
	nonceBits = 11
)

func (x msgID) lineage() uint64 { return x.seq >> counterBits }

// floorAt is a position that no message has: that of a topic in Redis which had none at
// that time. The counters of messages in Redis begin at 1<<nonceBits.
func floorAt(ms, lineage uint64) msgID { return msgID{ms, lineage << counterBits} }

func (x msgID) isFloor() bool { return x.seq&(1<<counterBits-1) == 0 }

// next returns the smallest ID after x that is not before the time ms.
func (x msgID) next(ms, lineage uint64) msgID {
	first := lineage << counterBits
	if ms > x.ms {
		return msgID{ms, first}
	}
	if x.seq+1 < first+1<<counterBits {
		return msgID{x.ms, x.seq + 1}
	}
	return msgID{x.ms + 1, first}
}

func (x msgID) isZero() bool { return x == msgID{} }

func (x msgID) before(y msgID) bool {
	return x.ms < y.ms || x.ms == y.ms && x.seq < y.seq
}

func (x msgID) append(b []byte) []byte {
	b = strconv.AppendUint(b, x.ms, 10)
	b = append(b, '-')
	return strconv.AppendUint(b, x.seq, 10)
}

func (x msgID) String() string { return string(x.append(nil)) }

// parseID reads the form that String writes, and nothing else.
func parseID(s string) (msgID, bool) {
	ms, seq, ok := strings.Cut(s, "-")
	if !ok {
		return msgID{}, false
	}
	var x msgID
	var err1, err2 error
	x.ms, err1 = strconv.ParseUint(ms, 10, 64)
	x.seq, err2 = strconv.ParseUint(seq, 10, 64)
	if err1 != nil || err2 != nil || x.String() != s {
		return msgID{}, false
	}
	return x, true
}

// checkTopic reports what is wrong with a topic, as an error that wraps
// ErrInvalidTopic or ErrReserved.
func checkTopic(topic string) error {
	switch {
	case topic == broadcastTopic:
		return fmt.Errorf("%w: topic %q", ErrReserved, topic)
	case topic == "":
		return fmt.Errorf("%w: empty", ErrInvalidTopic)
	case len(topic) > maxTopicLen:
		return fmt.Errorf("%w: %d bytes, at most %d", ErrInvalidTopic, len(topic), maxTopicLen)
	case !utf8.ValidString(topic):
		return fmt.Errorf("%w: not UTF-8", ErrInvalidTopic)
	}
	for i := range len(topic) {
		// C0 and DEL; C1 is U+0080 to U+009F, which UTF-8 writes as C2 80 to C2 9F.
		if c := topic[i]; c < ' ' || c == 0x7f || c == 0xc2 && topic[i+1] < 0xa0 {
			return fmt.Errorf("%w: control character in %q", ErrInvalidTopic, topic)
		}
	}
	return nil
}

// checkEvent reports what is wrong with an event name, as an error that wraps
// ErrInvalidEvent or ErrReserved.
func checkEvent(event string) error {
	switch {
	case len(event) > maxEventLen:
		return fmt.Errorf("%w: %d bytes, at most %d", ErrInvalidEvent, len(event), maxEventLen)
	case strings.ContainsAny(event, "\r\n\x00"):
		return fmt.Errorf("%w: CR, LF or NUL in %q", ErrInvalidEvent, event)
	case strings.HasPrefix(event, reservedPrefix):
		return fmt.Errorf("%w: event %q", ErrReserved, event)
	}
	return nil
}

// checkData reports data that is over the limit, as an error that wraps ErrTooLarge.
func checkData(data string, limit int) error {
	if len(data) > limit {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(data), limit)
	}
	return nil
}

package consumer

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// A Message is what was published. If Gap is not nil it says instead that messages are gone.
type Message struct {
	Topic string    // "*" is a broadcast, "@user" what is for this user; empty over SSE, which does not say
	Event string    // [DefaultEventType] if it was published without a name
	Data  string    // as it was published; over SSE with LF for CR and CRLF
	ID    string    // from where a client goes on after this message: [WithLastEventID], [WithSince]
	Time  time.Time // when it was published; zero over SSE, which does not say
	Gap   *Gap
}

// GapEvent is the name of the event that says that messages are gone.
const GapEvent = reserved + "gap"

// NotResumable is the reason of a gap that this package has noticed by itself: it had to come
// back, but not to where it was.
const NotResumable = "not_resumable"

// A Gap says that messages are gone for good. An application loads its state again, and goes
// on with what comes after it.
type Gap struct {
	Topics []string // where messages are missing; "*" is the broadcast log; nil is not known
	Reason string   // "trimmed", "expired", "restarted", "rolled_back", "unknown_cursor" or [NotResumable]
}

// Error says what is missing.
func (g *Gap) Error() string {
	if len(g.Topics) == 0 {
		return "consumer: messages are missing: " + g.Reason
	}
	return fmt.Sprintf("consumer: messages of %q are missing: %s", g.Topics, g.Reason)
}

// Events that a Pushlet server sends itself begin with reserved.
const (
	reserved          = "pushlet."
	eventConnected    = reserved + "connected"
	eventDisconnected = reserved + "disconnected"
	eventSubscribed   = reserved + "subscribed"
	eventUnsubscribed = reserved + "unsubscribed"
	eventError        = reserved + "error"
)

const (
	allTopic  = "*"     // the broadcast log
	userTopic = "@user" // what is for the user of the connection
)

func isReserved(event string) bool { return strings.HasPrefix(event, reserved) }

// sseGap reads the data of a gap event of a stream.
func sseGap(data string) *Gap {
	var g struct {
		Topics []string `json:"topics"`
		Reason string   `json:"reason"`
	}
	if json.Unmarshal([]byte(data), &g) != nil || g.Reason == "" {
		return &Gap{Reason: data} // not as we know it, but a gap
	}
	return &Gap{Topics: g.Topics, Reason: g.Reason}
}

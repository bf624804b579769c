package consumer

import "time"

// A Message is what was published.
type Message struct {
	Topic string // empty over SSE, which does not say
	Event string // [DefaultEvent] if it was published without a name
	Data  string // as it was published; over SSE with LF for CR and CRLF
	ID    string // from where a client goes on after this message
	Time  time.Time
	Gap   *Gap
}

// A Gap says that messages are gone for good.
type Gap struct {
	Topics []string // where messages are missing
	Reason string
}

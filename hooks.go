package pushlet

// Hooks are called when something happens that an application may want to know. Any
// may be nil. One that panics is logged, and nothing more.
type Hooks struct {
	// OnConnect is called when a client has been accepted, before it gets anything.
	// It is called in the connection's own goroutine: while it runs, only that client
	// waits.
	OnConnect func(Client)

	// OnDisconnect is called once for every OnConnect, when the connection has ended,
	// also in a goroutine of that connection. Shutdown waits for it.
	OnDisconnect func(Client, Reason)

	// OnJoin and OnLeave are called when a user begins to follow a topic, and when the
	// last of their connections that did has left for the time of grace; see
	// WithPresence. The topic "*" is for who comes online, and goes. Of all instances one calls them, that which noticed. Calls come one
	// at a time, for a change that Redis saw twice or not at all when it lost data.
	OnJoin  func(topic, user string)
	OnLeave func(topic, user string)

	// OnSlow is called when a slow client has lost messages because history no longer
	// holds them, and its policy is applied. Calls of OnSlow and OnUndelivered come one
	// at a time from a goroutine of their own; if the hooks do not keep up some are left
	// out and counted in [Stats].ReportsDropped. Shutdown waits for those that are not.
	OnSlow func(SlowConsumer)

	// OnUndelivered is called for each message that was queued for a client and not
	// written, or not to its end, when its connection ended, in the order in which they
	// were queued. A client that comes back and resumes gets them from history.
	//
	// It is told of at most the newest 1,000 messages of a connection that are still in
	// history and of a topic that the client still follows. They are looked for from the
	// newest message of each topic backwards; after 16,384 that were not queued for this
	// client, because they were published after it had ended or were written before, the
	// search is over. What a client was still to get when it subscribed to the topic again
	// may not be found either, and what was queued twice for that is told once. All that is
	// not told is counted in [Stats].ReportsDropped, so that the calls and these together
	// are [Stats].Undelivered.
	//
	// It is not told of what the system has taken and the peer has never read; of what a
	// client that was behind had still to get from history; or of what history no longer
	// had for it, which OnSlow is. Where net/http writes the stream (HTTP/2, [WithHijack])
	// nobody knows what of the last write was sent: it may be told of up to 16 KiB that were.
	OnUndelivered func(Undelivered)
}

// A Client describes one connection.
type Client struct {
	ID       string // random, as in pushlet.connected
	Protocol string // "sse" or "websocket"
	Remote   string // the request's RemoteAddr
	User     string // as WithIdentity says; empty without
}

// A SlowConsumer says which client has lost messages of which topic.
type SlowConsumer struct {
	Client string // its ID
	Topic  string // "*" is the broadcast log
	Policy SlowPolicy
}

// An Undelivered is a message that was queued for a client when its connection ended.
type Undelivered struct {
	Client Client
	Topic  string // "*" is the broadcast log
	ID     string // as in "id" over WebSocket
	Event  string
	Data   string
	Why    Reason // the connection ended
}

// A SlowPolicy says what happens to a client that has fallen so far behind that the
// history no longer holds what it needs.
type SlowPolicy uint8

const (
	// Skip sends a gap event and goes on with what history holds. It is the default.
	Skip SlowPolicy = iota
	// Disconnect ends the connection; a client that comes back resumes, with a gap.
	Disconnect
	// KeepLatest sends a gap event and then, until the client has caught up, only the
	// newest message of each topic and event.
	KeepLatest
)

func (s SlowPolicy) String() string {
	switch s {
	case Skip:
		return "skip"
	case Disconnect:
		return "disconnect"
	case KeepLatest:
		return "keep latest"
	}
	return "unknown"
}

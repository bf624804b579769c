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
	// holds them, and its policy is applied. Calls come one at a time from a goroutine
	// of their own; if the hook does not keep up some are left out and counted in
	// [Stats].ReportsDropped.
	OnSlow func(SlowConsumer)
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

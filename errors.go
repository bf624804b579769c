package pushlet

import "errors"

// Errors a caller may want to tell apart with [errors.Is].
var (
	// ErrNotStarted is returned by methods that need a running Pushlet, before Start.
	ErrNotStarted = errors.New("pushlet: not started")

	// ErrClosed is returned by Start, Publish and PublishToAll once Stop or Shutdown has
	// begun.
	ErrClosed = errors.New("pushlet: closed")

	// ErrInvalidTopic is wrapped by errors about a topic that is empty, longer than
	// 255 bytes, not UTF-8, or holds a control character.
	ErrInvalidTopic = errors.New("pushlet: invalid topic")

	// ErrInvalidUser is wrapped by errors about the ID of a user that is empty, longer
	// than 255 bytes, not UTF-8, or holds a control character.
	ErrInvalidUser = errors.New("pushlet: invalid user")

	// ErrInvalidEvent is wrapped by errors about an event name that holds CR, LF or
	// NUL, or is longer than 255 bytes.
	ErrInvalidEvent = errors.New("pushlet: invalid event name")

	// ErrReserved is wrapped by errors about a name that belongs to the library: the
	// topics "*", "@user" and those that begin with "@user/", and event names that begin
	// with "pushlet.".
	ErrReserved = errors.New("pushlet: reserved name")

	// ErrTooLarge is wrapped by errors about data over the limit of WithMaxMessageSize.
	ErrTooLarge = errors.New("pushlet: message too large")

	// ErrNoPresence is returned by Presence without WithPresence.
	ErrNoPresence = errors.New("pushlet: presence is off")

	// ErrInvalidPush is wrapped by errors about a Push that is to nobody, without events, or
	// with a key that is too long.
	ErrInvalidPush = errors.New("pushlet: invalid push")

	// ErrUnauthenticated is for the function of WithPushAuthorize to return, or to wrap, when
	// the request does not say who it is from: it gets status 401 instead of 403.
	ErrUnauthenticated = errors.New("pushlet: unauthenticated")

	// ErrUnavailable is wrapped by errors about Redis, or the store of WithHistoryStore, that
	// does not answer, or does not take the message. The message was surely not published.
	ErrUnavailable = errors.New("pushlet: unavailable")

	// ErrUncertain is wrapped by errors of Publish when the message was given to Redis, or
	// to the store of WithHistoryStore, but it is not known whether it was taken, or whether
	// as many replicas have it as WithReplicaAcks asks for. It may have been, or may yet be,
	// published, once. Look for it first: the error may wrap others as well.
	ErrUncertain = errors.New("pushlet: perhaps published")

	// ErrOverloaded is wrapped by errors of Publish when more messages wait for Redis, or
	// for the store of WithHistoryStore, than are allowed. The message was surely not published.
	ErrOverloaded = errors.New("pushlet: too many messages wait to be published")
)

// A Reason says why a connection ended or a client was told of a gap.
type Reason string

// Why a connection ended.
const (
	ReasonClientClosed Reason = "client closed"      // the peer closed the connection
	ReasonConnection   Reason = "connection error"   // writing failed
	ReasonWriteTimeout Reason = "write timeout"      // the socket took nothing for WithWriteTimeout
	ReasonHeartbeat    Reason = "heartbeat missed"   // the peer has vanished: a ping unanswered, nothing acknowledged
	ReasonSlow         Reason = "slow consumer"      // fell out of history under policy Disconnect, or never reads answers
	ReasonProtocol     Reason = "protocol violation" // broke the protocol or a limit of it
	ReasonMaxAge       Reason = "maximum age"        // WithMaxConnectionAge
	ReasonIdle         Reason = "idle"               // WithIdleTimeout
	ReasonShutdown     Reason = "shutdown"           // Stop or Shutdown
	ReasonUnavailable  Reason = "unavailable"        // Redis, or the store, was down when the client came
	ReasonDisconnected Reason = "disconnected"       // Disconnect or DisconnectClient, without a reason of the application's
	ReasonUnauthorized Reason = "unauthorized"       // refused when it was asked again, WithReauthorize
)

// Why a client was told that messages are missing. The names are those of the wire.
const (
	gapTrimmed       Reason = "trimmed"        // pushed out of history by number or bytes
	gapExpired       Reason = "expired"        // left history by age
	gapRestarted     Reason = "restarted"      // the log began anew: this process, or Redis without its data
	gapRolledBack    Reason = "rolled_back"    // Redis has lost messages that it had taken
	gapUnknownCursor Reason = "unknown_cursor" // the cursor cannot be read or was never given out
)

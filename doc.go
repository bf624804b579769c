// Package pushlet pushes messages from a Go server to browsers, over Server-Sent Events
// and WebSocket, on net/http. Clients need no library: a plain EventSource or WebSocket
// does. There is one all the same: for pages that follow many topics [Pushlet.HandleClientJS]
// serves js/pushlet.js; for programs in Go there is the package consumer.
//
//	p := pushlet.New()
//	p.Start()
//	defer p.Stop()
//	http.HandleFunc("/events", p.HandleSSE)   // new EventSource("/events?topic=news")
//	http.HandleFunc("/ws", p.HandleWebSocket) // {"action":"subscribe","topic":"news"}
//	p.Publish("news", "message", "hello")     // reaches both
//
// This page is the contract. Tests check what it says.
//
// # Topics, events, data
//
// A message has a topic, an event name and data. A topic is UTF-8, 1 to 255 bytes without
// control characters; paths such as users/123/notifications are a convention. An event
// name has no CR, LF or NUL and at most 255 bytes; the empty one is "message". Data is
// text, up to [WithMaxMessageSize]; bytes that are not UTF-8 become U+FFFD. The topics
// "*", "@user" and those that begin with "@user/", and event names that begin with "pushlet."
// are reserved.
//
// [Pushlet.PublishToAll] appends to one broadcast log, "*", which every client follows
// that follows at least one topic; a client gets a broadcast once.
//
// # Users
//
// [WithIdentity] gives a connection a user. It then follows, besides its topics, what
// [Pushlet.PublishToUsers] sends to that user, which nobody else can: a log like that of a topic,
// with the same promises, under the name "@user" for everyone. It counts against no limit, and
// WithAuthorize is not asked about it. ?topic=@user follows it alone. [WithTopicHistory] with
// the prefix "@user/" sets its limits. [Pushlet.Connections], [Pushlet.Disconnect] and
// [WithReauthorize] are about who may stay.
//
// [Pushlet.HandlePush] lets other programs push, to users, topics or everyone.
//
// # Order
//
// Messages of one process, without Redis, have one order, that in which the broker took them; a Publish
// that has returned is before one that begins afterwards. A client gets the messages of
// each topic, and broadcasts, in that order. What it gets of several topics is in that
// order too, except that a WebSocket client that resumes one topic while it follows
// others gets what it missed in between the others' new messages.
//
// # Nothing is lost silently
//
// Every message has an ID, and is linked to the one before it in its topic. An SSE client
// gets, as "id:" of every event, a cursor: for each of its topics and the broadcast log,
// the last ID it has been given. A browser sends it back by itself when it reconnects,
// as Last-Event-ID; others may use ?lastEventId=. A WebSocket client finds the message's
// own ID in "id" and sends it back as "since". Then it gets what it missed first, exactly
// once and in order, and goes on live with nothing between lost or repeated.
//
// What it missed must still be in history: by default 1,000 messages, 1 MiB and 5 minutes
// a topic ([WithHistory], [WithTopicHistory]). If not all of it is, the client is told
// in-band with a pushlet.gap event before it gets what there is, so that the application
// can refetch its state. The reasons are:
//
//	trimmed         pushed out of history by newer messages, or history is off
//	expired         left history by age
//	restarted       the log began anew: this process has started since, or Redis or the store without its data
//	rolled_back     Redis has lost messages that it had taken
//	unknown_cursor  the position cannot be read, or was never given out
//
// A client that never had a position starts with what is published after it came. So does
// an SSE client with a topic that it did not follow when it got its cursor.
//
// # Several instances
//
// With [Pushlet.EnableDistributedMode] or [WithRedis] the logs of all topics are in Redis, and
// instances deliver only what comes from there, their own messages too. So all see the
// messages of a topic in one order, and a position is good on every instance. (Messages of
// several topics have an order of their own on each instance, which with one partition, the
// default outside a Cluster, is nearly that of their IDs.) What reaches an
// instance is checked by the links between messages; what lacks is read from the log, and
// positions are compared with Redis about once a second, so that nothing depends on the
// connection: it may break, fall silent or be cut off.
//
// [Pushlet.Publish] returns nil when Redis has the message. Redis can lose what it had taken: a
// failover to a replica that did not have it yet ([WithReplicaAcks] makes that unlikely), a
// crash before it was written to disk. The instances that know of it note the loss in the
// log, and every client that follows that topic, or comes back to it, is told: rolled_back. A
// message that only an instance knew of that died together with Redis cannot be told of.
//
// Errors tell what became of the message: [ErrUnavailable] and [ErrOverloaded], it was surely not
// published; [ErrUncertain], it may have been. A message is never published twice by itself.
// While Redis does not answer clients stay connected, and get their heartbeats; those that
// come after three seconds of it are asked to come back; [Pushlet.Ready] says so.
//
// # Your own store
//
// [WithHistoryStore] keeps the logs in a store of the application's own, a [History]: four
// methods on a database. Then clients resume after this process was stopped, or killed, and
// another has begun, without Redis. Only one process may use a store at a time.
//
// [Pushlet.Publish] returns nil when the store has the message, and clients get it only
// then. Messages that wait for the store are given to it together. If the store fails, errors
// tell what became of the message, as with Redis; one that the store turns out to have is delivered.
// While it fails clients stay connected, and those that come later are asked to come back.
//
// A client resumes as far back as [WithHistory] allows and the store has messages. What the
// store has removed is signalled as a gap. With an empty store the log begins anew: a position
// from before the first message is good only as long as the process lives. What the store
// gives back is checked; a message for another audience, or one that does not follow the one
// before it, reaches nobody.
//
// [WithIngest] publishes what programs in any language append to a stream in Redis, exactly once;
// [WithBridge] what they send on a channel, at most once.
//
// # Who is online
//
// [WithPresence] keeps track of users ([WithIdentity]) and connections of each topic on all
// instances, for [Pushlet.Presence] and the hooks OnJoin and OnLeave.
//
// # Slow clients
//
// Publish never waits for a client. What a client does not read yet waits in its queue
// ([WithQueue]); several messages leave in one write. When the queue is full the client
// is no longer fed by publishes: once it has read what is queued it is fed from history
// until it has caught up. If history does not reach back to where it is, the policy
// decides ([WithSlowPolicy]): tell it of the gap and go on (Skip, the default),
// end the connection (Disconnect), or tell it and send only the newest message of each
// event until it has caught up (KeepLatest). A connection whose peer takes nothing for
// [WithWriteTimeout] is closed; if it comes back it resumes.
//
// # The wire, SSE
//
// The stream begins with pushlet.connected, whose data is
// {"client":"…","topics":["a"],"resumed":false}; resumed is true if a cursor was given and
// nothing is missing. The data of pushlet.gap is {"topics":["a"],"reason":"trimmed"}, with
// "*" for the broadcast log. Heartbeats are comment lines. In data LF, CR and CRLF all
// arrive as LF, everything else as it was published. A status other than 200 makes a
// browser's EventSource give up for good, so where it should come back it gets an empty
// stream with a random "retry:". Before the end of a stream that the application has ended
// comes pushlet.disconnected, whose data is {"reason":"…"}.
//
// # The wire, JSON in an event stream
//
// An EventSource does not learn the topic of a message, and hears only events whose names it
// knows. With "?format=json" a stream has, as the data of unnamed events, the objects that the
// WebSocket sends:
//
//	data: {"topic":"a","event":"message","data":"hello","timestamp":"…","id":"1704110400000-0"}
//
// The URL says what is followed, as for a WebSocket, also "*" and "@user": topics, and a since for
// each, which is empty for those that are followed from now on. A topic that is refused is answered with pushlet.error, and
// the others go on. There are no "id:" lines and no pushlet.connected: the client keeps the
// position of each topic, and comes back with another URL. Heartbeats are events
// pushlet.heartbeat; the first comes at once, and its data is the interval in milliseconds. This
// is what js/pushlet.js uses where it has no WebSocket.
//
// # The wire, WebSocket
//
// One JSON object a frame: commands in text or binary frames, messages in binary frames,
// or in text frames if the client asks for the subprotocol pushlet.text.
//
//	→ {"action":"subscribe","topic":"a"}      or "topics":["a","b"]; "since":"<id>" resumes, or "since":{"a":"<id>"}
//	→ {"action":"unsubscribe","topic":"a"}    or "topics"
//	→ {"action":"ping"}
//	← {"topic":"a","event":"message","data":"hello","timestamp":"2024-01-01T12:00:00.000Z","id":"1704110400000-0"}
//	← {"topic":"a","event":"pushlet.subscribed","data":"",…,"id":"<position to resume from>"}
//	← {"topic":"a","event":"pushlet.unsubscribed",…}
//	← {"topic":"a","event":"pushlet.gap","data":"trimmed",…,"id":"<position behind the gap>"}
//	← {"event":"pushlet.error","data":"<why>",…}
//	← {"event":"pushlet.pong",…}
//
// Every frame has event, data (a string) and timestamp (RFC 3339, UTC). To resume the
// broadcast log as well, subscribe to "*" with the "id" of the last broadcast before
// subscribing to topics. ?topic= subscribes at once, with &since= from a position: one for all
// topics, or one for each in the same order, also for "*" and "@user". A client with a user, which
// follows "@user" and the broadcast log from the start, can resume these two only so.
//
// The connection is closed with 1000 (maximum age, idle, or as the client asks), 1001
// (shutdown), 1002 (protocol error), 1007 (text that is not UTF-8, corrupt compression),
// 1008 (too many commands, Disconnect, refused by WithReauthorize), 1009 (command too large), 1013 (slow consumer, if it reads
// again in time; else it is cut off).
// Commands that make no sense are answered with pushlet.error, and so is a subscribe for which
// Redis has not answered for 10 seconds; what was subscribed after it goes on, so a client
// that resumes should rather come back with a new connection.
//
// # Life
//
// [Pushlet.Start], [Pushlet.Stop], [Pushlet.Shutdown], [Pushlet.Publish] and the handlers
// may be called in any order, concurrently, and more than once: what cannot be done now
// gives [ErrNotStarted] or [ErrClosed]. Shutdown delivers what is queued and waits for every
// goroutine. http.Server's Shutdown neither ends nor waits for connections that were taken
// over, and waits for ever for streams that were not, so call Pushlet's first.
//
// A peer that vanishes without a word is noticed within about two heartbeats
// ([Pushlet.SetHeartbeatInterval]): over WebSocket by an unanswered ping; over SSE on
// HTTP/1.1, on Linux, by what the peer's TCP does not acknowledge, elsewhere by the write
// timeout or TCP's own. HTTP/2 connections belong to net/http: set WriteByteTimeout, and SendPingTimeout
// with PingTimeout, of http.Server's HTTP2, or one that takes nothing at all keeps its
// streams, and Shutdown waiting.
//
// # Security
//
// By default a page of another origin can neither open a WebSocket nor read an event stream
// ([WithAllowedOrigins]). Everybody may follow every topic unless [WithAuthorize] says
// otherwise; whoever follows one gets the broadcasts, and a WebSocket client that resumes
// them asks for the topic "*". What one client can use is limited: see WithMaxTopics, WithMaxClients,
// WithMaxCommandSize and WithCommandRate. Client IDs are random. Message contents are not logged.
package pushlet

// Package consumer receives what servers push, over Server-Sent Events and WebSocket, from one
// API. It reconnects by itself, and loses nothing silently.
//
//	for msg, err := range consumer.Subscribe(ctx, "https://example.com/events?topic=news") {
//		if err != nil {
//			return err // final: it does not reconnect any more
//		}
//		if msg.Gap != nil {
//			reload() // messages are gone for good
//			continue
//		}
//		fmt.Println(msg.Event, msg.Data)
//	}
//
// The scheme of the URL decides: http and https are an event stream, from any server that
// speaks SSE; ws and wss a WebSocket, from Pushlet. A program that prefers callbacks uses
// [NewClient] with [Client.OnEvent], [Client.Start] and [Client.Stop]. This page is the contract.
//
// # What comes
//
// Messages of a topic come in the order in which they were published, each once. A message counts
// as received when the body of the loop, or the callback, gets it. From then on the client's
// position is after it: no connection brings it again. What was received by the connection, but
// not yet by the body, comes again with the next one.
//
// A message with [Message.Gap] says that others are gone for good, and of which topics: the
// server's history does not reach back far enough, or was lost. The application loads its state again
// and goes on. A server that gives its events no IDs cannot resume, and cannot tell: there
// [Client.OnConnection], when it is called again, is the place to load the state again.
//
// Other events whose names begin with "pushlet." are the library's own, and are not yielded.
//
// # Errors
//
// Errors are of two kinds. Those that end nothing go to [Client.OnError]: a [RetryError], when the
// connection is lost, or there was none, and another attempt follows; a [TopicError], when
// the server refuses a topic. A final error is the last element of the loop, and is in
// [Client.Err]: the cause of the context, [ErrStopped], [ErrNoContent], [ErrTooLarge], [ErrNotPushlet], or a
// [ResponseError]. Tried again are: what fails in the network; the end of a stream, or of a
// WebSocket, whatever its close code; silence ([ErrIdle]); and the statuses 408, 425, 429, 500, and
// above, but not 501 and 505. All other answers are final: statuses such as 401, 403 and 404, and an
// answer that is no event stream.
//
// Redirects of an event stream are followed as the http.Client does; each attempt begins
// with the URL that was given. A WebSocket's are not.
//
// # Reconnecting
//
// Before each attempt the client waits at random between 2 and 4 seconds, then 4 and 8, up to
// between 15 and 30 ([WithReconnectInterval]). It begins anew after a connection that brought an event,
// or lasted long. "retry:" of an event stream takes the place of the 2 seconds; a Retry-After is
// kept.
//
// An event stream is resumed with Last-Event-ID. A WebSocket is resumed in every topic and in
// the broadcast log, each from its own position, with "since". If the server refuses to resume the
// broadcast log, because its WithAuthorize does not allow the topic "*", each connection that should
// have resumed it brings a gap of "*" whose reason is [NotResumable].
//
// A connection without a sign of life for 3 minutes is given up ([WithIdleTimeout]). Heartbeats are
// signs of life.
//
// # Topics
//
// Topics are in the URL ("?topic=") or in [WithTopics]. Over WebSocket [Client.Subscribe] and
// [Client.Unsubscribe] change them while the client runs, also from the body of the loop. A topic
// begins with what is published after [Client.OnSubscribed] was called for it, or after the
// position of [WithSince], or, for an event stream, [WithLastEventID].
//
// A connection with a user gets what is for the user, topic "@user", without asking.
//
// # Slow programs
//
// While the body runs, an event stream is not read. A WebSocket is read up to 64 messages ahead, so
// that the server's pings are answered. Beyond that the server's policy for slow clients
// decides: see the package pushlet.
//
// # Concurrency
//
// The body of the loop runs in the caller's goroutine, callbacks in one of the Client, and hooks in the
// same as these, one after the other. When a loop is left no goroutine of it remains, and the
// connection is closed. (Those of an http.Client of the application's own end when it closes
// its idle connections.)
//
// # Security
//
// No path, query or header, and no message, is logged, or is in an error; what a server answers is
// in [ResponseError.Body], and the first line of a plain text, quoted, in its Error. The size of messages is
// limited ([WithMaxSize]), also after decompression.
package consumer

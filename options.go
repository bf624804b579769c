package pushlet

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// An Option changes a setting of New. Where two contradict, the last one wins.
type Option func(*config)

// config holds the settings; it does not change after New.
type config struct {
	newLogger NewLogger
	hooks     Hooks
	authorize func(*http.Request, string) error
	origins   []string // allowed; nil: same origin

	redis   redisSettings
	store   History  // nil: memory
	ingest  []string // streams
	bridges []bridge

	identity      func(*http.Request) (string, error)
	reauthorize   time.Duration // 0: never
	pushAuthorize func(*http.Request) error
	maxPushSize   int
	presence      bool
	presenceGrace time.Duration

	history        byPrefix[historyLimits]
	lastMessageAge time.Duration
	slowPolicy     byPrefix[SlowPolicy]
	queueMessages  int
	queueBytes     int

	heartbeat    time.Duration
	writeTimeout time.Duration
	maxAge       time.Duration
	idleTimeout  time.Duration
	retry        time.Duration

	maxClients     int
	maxTopics      int
	maxMessageSize int
	maxCommandSize int
	commandRate    float64
	commandBurst   int
	readBuffer     int

	compression bool
	hijack      bool
	verify      bool

	err error // what is wrong with the options; Start returns it
}

func defaultConfig() config {
	return config{
		newLogger:      newStdLogger,
		history:        byPrefix[historyLimits]{fallback: historyLimits{1000, 1 << 20, 5 * time.Minute}},
		lastMessageAge: 24 * time.Hour,
		queueMessages:  8192,
		queueBytes:     8 << 20,
		heartbeat:      30 * time.Second,
		writeTimeout:   30 * time.Second,
		retry:          3 * time.Second,
		maxClients:     250_000,
		maxTopics:      100,
		maxMessageSize: 1 << 20,
		maxCommandSize: 64 << 10,
		maxPushSize:    4 << 20,
		commandRate:    50,
		commandBurst:   200,
		readBuffer:     288,
		hijack:         true,
		verify:         os.Getenv("PUSHLET_VERIFY") == "1",
		redis: redisSettings{
			prefix:      "pushlet",
			publishWait: 5 * time.Second,
			queue:       8192,
			queueBytes:  64 << 20,
		},
	}
}

// reject remembers that an option was given a value it cannot take.
func (c *config) reject(format string, args ...any) {
	c.err = errors.Join(c.err, fmt.Errorf("pushlet: "+format, args...))
}

// WithLogger sets what makes the logger. By default the log goes to the standard
// library's default logger.
func WithLogger(newLogger NewLogger) Option {
	return func(c *config) {
		if newLogger == nil {
			c.reject("WithLogger: nil")
			return
		}
		c.newLogger = newLogger
	}
}

// WithSlog sends the log to logger, with fields as attributes, instead of to the Logger of
// WithLogger. What happens is logged with level Info; what somebody should look at, such as
// a slow consumer or a lost connection to Redis, with Warn; panics of hooks, and messages
// that Redis has lost, with Error.
func WithSlog(logger *slog.Logger) Option {
	return func(c *config) {
		if logger == nil {
			c.reject("WithSlog: nil")
			return
		}
		c.newLogger = func() Logger { return slogLogger{logger} }
	}
}

// WithHooks sets functions to be called when something happens.
func WithHooks(hooks Hooks) Option {
	return func(c *config) { c.hooks = hooks }
}

// WithAllowedOrigins sets from which origins, such as "https://example.com", pages may
// connect; "*" allows all. By default only pages of the same host may open a WebSocket,
// and SSE responses carry no CORS headers, so that browsers keep them from other pages.
func WithAllowedOrigins(origins ...string) Option {
	return func(c *config) { c.origins = origins }
}

// WithAuthorize sets a function that is asked for every topic that a client wants to
// follow, whether live or from a position in history. An error refuses: SSE and
// WebSocket requests with status 403, a WebSocket subscribe with pushlet.error. Its text is sent
// to the client; a panic is a refusal too. A WebSocket client that subscribes to the
// broadcast log by name asks for the topic "*". The function is called in the
// connection's goroutine, so it may take its time, and by several at once. The request
// is the one that opened the connection; for a later subscribe its context is never done.
func WithAuthorize(authorize func(r *http.Request, topic string) error) Option {
	return func(c *config) { c.authorize = authorize }
}

// WithIdentity sets a function that names the user of a connection, for
// [Pushlet.PublishToUsers], hooks and presence. Names are UTF-8 of 1 to 255 bytes without
// control characters; empty is a client without a user. With an error, or a panic, the request
// is refused with status 401; the error's text is sent. It is called in the connection's
// goroutine, by several at once. A connection with a user follows one topic more, that of the
// user, and the broadcast log, also without other topics.
func WithIdentity(identity func(r *http.Request) (user string, err error)) Option {
	return func(c *config) { c.identity = identity }
}

// WithPresence keeps track of who follows which topic, on all instances, for
// [Pushlet.Presence] and the hooks OnJoin and OnLeave. A user who has left counts as
// present for the time of grace, which may be zero, so that one who only connects again
// has neither left nor joined. The users of an instance that is killed have left after 10
// seconds. It costs memory and writes to Redis for each user of a topic, and nothing for
// messages. By default it is off.
func WithPresence(grace time.Duration) Option {
	return notNegative("WithPresence", grace, func(c *config) { c.presence, c.presenceGrace = true, grace })
}

// WithHistory sets how much of each topic is kept for clients that come back or fall
// behind: a number of messages, their bytes (events and data; encoded forms in use come
// on top) and an age. Whichever comes first counts; one that is not positive turns
// history off, so that a client that comes back is told of a gap unless nothing was
// published since. The default is 1,000 messages, 1 MiB and 5 minutes.
func WithHistory(messages, bytes int, age time.Duration) Option {
	return func(c *config) { c.history.fallback = historyLimits{messages, bytes, age} }
}

// WithTopicHistory is WithHistory for the topics that begin with prefix. The longest
// prefix that fits a topic counts. The broadcast log is the topic "*".
func WithTopicHistory(prefix string, messages, bytes int, age time.Duration) Option {
	return func(c *config) { c.history.set(prefix, historyLimits{messages, bytes, age}) }
}

// WithLastMessageAge sets how long the newest message of a topic, and the topic's
// position with it, outlives its history and its last follower. Until then a client
// that comes back to an idle topic is not told of a gap. The default is 24 hours.
func WithLastMessageAge(age time.Duration) Option {
	return notNegative("WithLastMessageAge", age, func(c *config) { c.lastMessageAge = age })
}

// WithQueue sets how much may wait to be written to one client: messages and bytes. A
// client whose queue is full is fed from history once it has read it; what lies in
// several queues is in memory once. Answers to a WebSocket client's commands do not count:
// they have a limit of their own. The default is 8,192 messages and 8 MiB.
func WithQueue(messages, bytes int) Option {
	return func(c *config) {
		if messages < 1 || bytes < 1 {
			c.reject("WithQueue: %d messages, %d bytes: both must be positive", messages, bytes)
			return
		}
		c.queueMessages, c.queueBytes = messages, bytes
	}
}

// WithSlowPolicy sets what happens to clients that have fallen out of history. The
// default is Skip.
func WithSlowPolicy(policy SlowPolicy) Option {
	return func(c *config) { c.slowPolicy.fallback = policy }
}

// WithTopicSlowPolicy is WithSlowPolicy for the topics that begin with prefix.
func WithTopicSlowPolicy(prefix string, policy SlowPolicy) Option {
	return func(c *config) { c.slowPolicy.set(prefix, policy) }
}

// positive makes an option of a setting that must be more than zero.
func positive[T int | time.Duration](name string, value T, set func(*config)) Option {
	return func(c *config) {
		if value <= 0 {
			c.reject("%s: %v is not positive", name, value)
			return
		}
		set(c)
	}
}

// notNegative makes an option of a time that may be zero.
func notNegative(name string, d time.Duration, set func(*config)) Option {
	return func(c *config) {
		if d < 0 {
			c.reject("%s: %v is negative", name, d)
			return
		}
		set(c)
	}
}

// WithWriteTimeout sets after how long a connection is closed whose peer takes nothing
// of what is to be written. The default is 30 seconds.
func WithWriteTimeout(d time.Duration) Option {
	return positive("WithWriteTimeout", d, func(c *config) { c.writeTimeout = d })
}

// WithMaxConnectionAge sets after how long a connection is ended, to the precision of a
// heartbeat, so that clients spread anew over instances. EventSource comes back by
// itself and resumes. By default, and with zero, there is no limit.
func WithMaxConnectionAge(d time.Duration) Option {
	return notNegative("WithMaxConnectionAge", d, func(c *config) { c.maxAge = d })
}

// WithIdleTimeout sets after how long without a message to it, or a command from it, a
// connection is ended, to the precision of a heartbeat. By default, and with zero, there
// is no limit.
func WithIdleTimeout(d time.Duration) Option {
	return notNegative("WithIdleTimeout", d, func(c *config) { c.idleTimeout = d })
}

// WithRetry sets how long a browser's EventSource waits before it connects again. When
// Pushlet ends a connection itself it sends a random time of one to three times that.
// The default is 3 seconds.
func WithRetry(d time.Duration) Option {
	return positive("WithRetry", d, func(c *config) { c.retry = d })
}

// WithMaxClients sets how many connections are accepted. More get status 503 with
// Retry-After, an EventSource a stream that ends at once so that it tries again. The
// default is 250,000.
func WithMaxClients(n int) Option {
	return positive("WithMaxClients", n, func(c *config) { c.maxClients = n })
}

// WithMaxTopics sets how many topics one connection may follow. More are refused with
// status 400 or pushlet.error. A WebSocket client may leave 1 KiB of answers unread for
// each, but at least 64 KiB and no more than 8 MiB. The default is 100.
func WithMaxTopics(n int) Option {
	return positive("WithMaxTopics", n, func(c *config) { c.maxTopics = n })
}

// WithMaxMessageSize sets how many bytes of data a message may have; Publish returns
// ErrTooLarge for more. The default is 1 MiB, the most 512 MiB.
func WithMaxMessageSize(bytes int) Option {
	return positive("WithMaxMessageSize", bytes, func(c *config) {
		if bytes > 512<<20 { // encoded it may be seven times as long, and must be below 4 GiB
			c.reject("WithMaxMessageSize: %d is more than 512 MiB", bytes)
			return
		}
		c.maxMessageSize = bytes
	})
}

// WithMaxCommandSize sets how many bytes a WebSocket message from a client may have,
// also after decompression. A larger one closes the connection with code 1009. The
// default is 64 KiB.
func WithMaxCommandSize(bytes int) Option {
	return positive("WithMaxCommandSize", bytes, func(c *config) { c.maxCommandSize = bytes })
}

// WithCommandRate sets how many messages and pings a second a WebSocket client may send
// in the long run, and how many at once. More close the connection with code 1008. The
// default is 50 a second and 200 at once.
func WithCommandRate(perSecond float64, burst int) Option {
	return func(c *config) {
		if perSecond <= 0 || burst < 1 {
			c.reject("WithCommandRate: %v a second, %d at once: both must be positive", perSecond, burst)
			return
		}
		c.commandRate, c.commandBurst = perSecond, burst
	}
}

// WithReadBufferSize sets the bytes of the buffer that each WebSocket connection reads
// into, at least 257; longer messages are read in steps. The default is 288, more than most commands need.
func WithReadBufferSize(bytes int) Option {
	return positive("WithReadBufferSize", bytes, func(c *config) { c.readBuffer = max(bytes, minReadBuffer) })
}

// WithCompression offers permessage-deflate to WebSocket clients. A message is
// compressed once for all of them; short ones are not. By default it is off.
func WithCompression() Option {
	return func(c *config) { c.compression = true }
}

// WithHijack sets whether SSE takes over HTTP/1.1 connections from net/http, which is
// the default and costs far less memory. Without it the handler stays until the
// connection ends, and writes through the ResponseWriter as with HTTP/2.
func WithHijack(hijack bool) Option {
	return func(c *config) { c.hijack = hijack }
}

// WithRedis shares topics with other instances through Redis 7.0 or later: distributed
// mode. The client is a *redis.Client, also one for Sentinel (redis.NewFailoverClient), or
// a *redis.ClusterClient; whoever made it closes it, after Stop. Its retries are not used.
// All instances must have the same options for Redis and for history.
func WithRedis(client redis.UniversalClient) Option {
	return func(c *config) {
		switch client.(type) {
		case *redis.Client, *redis.ClusterClient:
			c.redis.client = client
		default:
			c.reject("WithRedis: a %T is neither a *redis.Client nor a *redis.ClusterClient", client)
		}
	}
}

// WithHistoryStore keeps the logs of all topics in a store of the application's own, so that
// clients resume after this process has ended and another has begun. Publish then
// returns nil when the store has the message; [WithPublishTimeout] and [WithPublishQueue]
// apply as with Redis. How far back a client may come is limited by the store and by
// [WithHistory], which is also how much of each topic in use is in memory: by default that is
// 5 minutes, so set it too. All messages are stored, also those of topics whose history is
// off. Only one process may use a store at a time; several share a Redis instead: with both Start returns an error.
func WithHistoryStore(h History) Option {
	return func(c *config) {
		if h == nil {
			c.reject("WithHistoryStore: nil")
			return
		}
		c.store = h
	}
}

// WithRedisPrefix sets what the names of all keys and channels in Redis begin with, so
// that applications can share one. The default is "pushlet".
func WithRedisPrefix(prefix string) Option {
	return func(c *config) {
		if prefix == "" || strings.ContainsAny(prefix, "{} \r\n") {
			c.reject("WithRedisPrefix: %q must not be empty or contain braces, spaces or line ends", prefix)
			return
		}
		c.redis.prefix = prefix
	}
}

// WithRedisPartitions sets over how many hash slots topics are spread. Each has a
// connection of its own for what arrives. The default is 1, and 16 with a ClusterClient;
// it must be the same on all instances, and for as long as there are messages in Redis.
func WithRedisPartitions(n int) Option {
	return positive("WithRedisPartitions", n, func(c *config) {
		if n > maxPartitions {
			c.reject("WithRedisPartitions: %d is more than %d", n, maxPartitions)
			return
		}
		c.redis.partitions = n
	})
}

// WithReplicaAcks makes Publish wait, with the Redis command WAIT, until n replicas have
// the message, for at most timeout. If they do not, the message is published nevertheless,
// and the error wraps ErrUncertain. By default no replica is waited for, so that a
// failover can lose what was published just before; clients are told then.
func WithReplicaAcks(n int, timeout time.Duration) Option {
	return func(c *config) {
		if n < 1 || timeout < time.Millisecond {
			c.reject("WithReplicaAcks: %d replicas, %v: at least 1 and 1ms", n, timeout)
			return
		}
		c.redis.acks, c.redis.acksTimeout = n, timeout
	}
}

// WithPublishTimeout sets how long Publish waits for Redis in distributed mode, or for the
// store of WithHistoryStore. The default is 5 seconds.
func WithPublishTimeout(d time.Duration) Option {
	return positive("WithPublishTimeout", d, func(c *config) { c.redis.publishWait = d })
}

// WithPublishQueue sets how many messages, and how many bytes of them, may wait for Redis
// in each partition, or for the store of WithHistoryStore. When there are more messages Publish waits for room; when there are
// more bytes it returns ErrOverloaded. The default is 8,192 messages and 64 MiB.
func WithPublishQueue(messages, bytes int) Option {
	return func(c *config) {
		if messages < 1 || bytes < 1 {
			c.reject("WithPublishQueue: %d messages, %d bytes: both must be positive", messages, bytes)
			return
		}
		c.redis.queue, c.redis.queueBytes = messages, bytes
	}
}

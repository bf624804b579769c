// Command notifications sends notifications to users' browsers. Programs in any language
// publish them with Redis's own PUBLISH, and need to know nothing else.
//
//	go run ./example/notifications
//
// It needs a Redis 7.0 or later. Open http://localhost:8085, connect as user 1, and send:
//
//	redis-cli PUBLISH notifications '{"user_id":1,"message":"first test message"}'
//	redis-cli PUBLISH notifications '{"user_id":1,"message":"second test message"}'
//	redis-cli PUBLISH notifications '{"user_id":2,"message":"for user 2"}'
//
// The first two arrive, the third does not. The page shows what a program of yours does:
//
//	const events = new EventSource("http://localhost:8085/sse?user_id=1");
//	events.onmessage = e => console.log(JSON.parse(e.data).message);
//
// Without a browser: curl -N 'http://localhost:8085/sse?user_id=1'. To see what happens in Redis:
//
//	redis-cli PUBSUB CHANNELS
//	redis-cli MONITOR
//
// # What is sent
//
// A notification is a JSON object:
//
//	{"user_id":1,"message":"text","created_at":"2024-01-01T12:00:00Z"}
//
// user_id is a positive integer. created_at is a time as in RFC 3339; if it is missing, the time
// of arrival is put in. Every connection of that user, and no other, gets the object as the data
// of an event "message". What is anything else is logged, without its contents, and left out.
//
// # What is received
//
// GET /sse?user_id=1 is the event stream of a user, of user 1 if the parameter is missing. It
// begins with an event pushlet.connected. Every 30 seconds there is a comment, which keeps the
// connection open and which no page sees: onmessage gets notifications and nothing else. A
// browser that was cut off comes back by itself, to whichever instance, and gets what it missed; if
// that is not there any more an event pushlet.gap says so.
//
// Anybody can ask for any user_id here. An application would look at its session in WithIdentity.
//
// GET /ready answers 200 once notifications that are published arrive, else 503.
//
// # Several instances
//
// Start as many as you like with the same settings. A user may be connected to any of them, and
// each notification arrives once at each connection.
//
// # When nothing may be lost
//
// PUBLISH reaches who listens at that moment: it answers with the number of instances that do, and
// what is sent while there is none, or while another takes over from one that has stopped or
// died, is lost. A sender for whom that is not good enough appends to a stream instead, whose name
// is that of the channel and ":ingest", in the database REDIS_MAIN_DB:
//
//	redis-cli -n 1 XADD notifications:ingest '*' user 1 data '{"user_id":1,"message":"sure to arrive","created_at":"2024-01-01T12:00:00Z"}'
//
// It waits there until it is published, once. The data is not looked at: it arrives as it is.
//
// # Settings
//
// These are environment variables; an empty one counts as missing.
//
//	SSE_HOST             0.0.0.0        address to listen at
//	SSE_PORT             8085           its port; 0 takes a free one
//	SSE_REDIS_CHANNEL    notifications  channel of Redis that notifications come from
//	SSE_ALLOWED_ORIGINS                 whose pages may connect besides its own, with commas between:
//	                                    https://app.example.com,https://www.example.com; * is all
//	REDIS_HOST           127.0.0.1
//	REDIS_PORT           6379
//	REDIS_USERNAME
//	REDIS_PASSWORD
//	REDIS_MAIN_DB        1              number of the database; channels are the same in all of them
//
// SIGINT and SIGTERM end it: streams get what is queued for them, and the exit status is 0. If it cannot
// start, because the port is in use or Redis does not answer, it says so and exits with 1.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet"
)

//go:embed index.html
var page []byte

// startTimeout is how long Redis may take at the start.
const startTimeout = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once

	s, err := readSettings(os.Getenv)
	if err == nil {
		err = run(ctx, s)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends, and returns nil if that is why it ended.
func run(ctx context.Context, s settings) error {
	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("SSE_HOST, SSE_PORT: %w", err) // most likely the port is in use
	}
	defer listener.Close()

	client := redis.NewClient(&redis.Options{
		Addr: s.redisAddr, Username: s.redisUser, Password: s.redisPassword, DB: s.redisDB,
		MaxRetries: -1, DialerRetries: 1,
	})
	defer client.Close()
	p, err := start(ctx, s, client)
	if err != nil {
		if ctx.Err() != nil {
			return nil // it was told to end
		}
		return fmt.Errorf("redis at %s: %w", s.redisAddr, err)
	}
	defer p.Stop() // where run returns early; after Shutdown it does nothing

	server := &http.Server{Handler: routes(p), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	log.Printf("Listening at http://%s, to channel %q", browserHost(listener.Addr()), s.channel)

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	log.Println("Stopping")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = p.Shutdown(ctx) // first, since the server does not end streams
	if server.Shutdown(ctx) != nil {
		server.Close() // a request that does not end
	}
	return err
}

// start returns a Pushlet that takes what is published, or says why there is none.
func start(ctx context.Context, s settings, client *redis.Client) (*pushlet.Pushlet, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("does not answer"))
	defer cancel()
	if err := ping(ctx, s.redisAddr, client); err != nil {
		return nil, err
	}
	p := pushlet.New(
		pushlet.WithRedis(client),
		pushlet.WithRedisPrefix(url.QueryEscape(s.channel)+":pushlet"), // other channels are of other services
		pushlet.WithBridge(s.channel, convert),
		pushlet.WithIngest(s.channel+":ingest"),
		pushlet.WithIdentity(func(r *http.Request) (string, error) { return r.URL.Query().Get(userParam), nil }), // see serveSSE
		pushlet.WithAllowedOrigins(s.origins...),
	)
	if err := p.Start(); err != nil {
		return nil, err
	}
	for err := p.Ready(); err != nil; err = p.Ready() {
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, p.Stop())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return p, nil
}

// ping returns an error unless Redis answers and lets us in.
func ping(ctx context.Context, addr string, client *redis.Client) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr) // go-redis would try again, and log
	if err != nil {
		return err
	}
	conn.Close()
	return client.Ping(ctx).Err()
}

func routes(p *pushlet.Pushlet) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/sse", serveSSE(p))
	mux.HandleFunc("/ready", p.HandleReady)
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(page)
	})
	return mux
}

// userParam is the parameter that names the user.
const userParam = "user_id"

// serveSSE serves the stream of the user whom the request names. That, and where it resumes, is
// all that it takes from the URL: the client follows its user, and no topic of its choice.
func serveSSE(p *pushlet.Pushlet) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		user, err := userOf(query)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r = r.Clone(r.Context())
		r.URL.RawQuery = url.Values{
			"topic":       {"@user"},
			userParam:     {user},
			"lastEventId": query["lastEventId"],
		}.Encode()
		p.HandleSSE(w, r)
	}
}

// userOf returns the user whom a request names.
func userOf(query url.Values) (string, error) {
	ids := query[userParam]
	if len(ids) == 0 {
		return "1", nil
	}
	if id, err := strconv.ParseUint(ids[0], 10, 63); err == nil && id > 0 && len(ids) == 1 { // without a sign
		return userName(int64(id)), nil
	}
	return "", fmt.Errorf("%s must be one positive integer, as in /sse?%s=1", userParam, userParam)
}

// userName is what a user is called in Pushlet.
func userName(id int64) string { return strconv.FormatInt(id, 10) }

// browserHost is addr as one types it into a browser on this machine.
func browserHost(addr net.Addr) string {
	if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return fmt.Sprintf("localhost:%d", tcp.Port)
	}
	return addr.String()
}

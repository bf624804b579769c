package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/usual2970/pushlet/consumer"
)

var subCommand = command{
	name:      "sub",
	arguments: "URL [-topic T]…",
	summary:   "show what a server pushes, for ever",
	run:       runSub,
	notes: `
Each message is a line: local time, topic (over SSE the server does not say
which), event, data. Further lines of the data are indented. A gap says that
messages are gone for good, and of which topics. When the connection is lost,
sub connects again and goes on after the last message: each comes once.

With -json a message is {"topic":…,"event":…,"data":…,"id":…,"time":…}, and a
gap is {"gap":{"topics":[…],"reason":…}}; what is not known is left out: over
SSE topic and time, for a gap perhaps topics.

Exit codes: 0 after -count or -for, or when it is interrupted; 1 for a final
error, such as a refusal, or if -for ends before there was a connection or
before -count messages have come; 3 for a gap with -fail-on-gap.

  pushlet sub localhost:8080 -topic news
  pushlet sub wss://example.com -topic room/7 -token "$TOKEN" -json | jq -r .data
  pushlet sub localhost:8080 -topic health -count 1 -for 10s -quiet
`,
}

// A sub is the command sub.
type sub struct {
	c *console
	t target

	topics, events list
	since          list
	lastID         string
	count          int
	limit          time.Duration
	first          time.Duration // how long to wait before another attempt, at least
	failOnGap      bool
	json, raw      bool
	quiet          bool

	// Owned by the goroutine that runs it.
	shown     int
	connected bool // there was a connection
	up        bool // there is one
	wanted    map[string]bool
	cancel    context.CancelCauseFunc
}

// errTime is the end by -for.
var errTime = errors.New("the time is over")

func runSub(ctx context.Context, c *console, o *options, args []string) error {
	s := &sub{c: c, wanted: map[string]bool{}}
	f := o.flags
	f.Var(&s.topics, "topic", "follow topic `T`; may be repeated (default the server's, \"default\")")
	f.Var(&s.events, "event", "show only events with that `name`; may be repeated")
	f.Var(&s.since, "since", "WebSocket: resume, `TOPIC=ID`; may be repeated")
	f.StringVar(&s.lastID, "last-event-id", "", "SSE: resume after the message with that `ID`")
	f.IntVar(&s.count, "count", 0, "end after `N` messages")
	f.DurationVar(&s.limit, "for", 0, "end after `D`, such as 10s")
	f.DurationVar(&s.first, "reconnect", 2*time.Second, "wait at least `D` before another attempt; it doubles with each that fails")
	f.BoolVar(&s.failOnGap, "fail-on-gap", false, "end with code 3 when messages are gone for good")
	f.BoolVar(&s.json, "json", false, "print a JSON object a line")
	f.BoolVar(&s.raw, "raw", false, "print only the data; gaps go to the standard error")
	f.BoolVar(&s.quiet, "quiet", false, "say nothing of the connection")
	url, rest, err := o.parse(args)
	if err != nil {
		return err
	}
	if s.t, err = o.target(url, streamPaths); err != nil {
		return err
	}
	more, err := s.check(o, rest)
	if err != nil {
		return err
	}
	return s.run(ctx, more)
}

// check says what is wrong, and returns the options of the client.
func (s *sub) check(o *options, rest []string) (more []consumer.Option, err error) {
	switch {
	case len(rest) > 0:
		return nil, usagef("too many arguments: %q", rest)
	case s.json && s.raw:
		return nil, usagef("-json and -raw: only one of them")
	case o.isSet("count") && s.count < 1:
		return nil, usagef("-count: at least 1")
	case o.isSet("for") && s.limit <= 0:
		return nil, usagef("-for: more than 0")
	case s.first <= 0:
		return nil, usagef("-reconnect: more than 0")
	case s.lastID != "" && s.t.webSocket():
		return nil, usagef("-last-event-id is for SSE; over WebSocket: -since TOPIC=ID")
	case len(s.since) > 0 && !s.t.webSocket():
		return nil, usagef("-since is for WebSocket; over SSE: -last-event-id ID")
	}
	for _, since := range s.since {
		i := strings.LastIndexByte(since, '=') // an ID has none
		if i < 1 || i == len(since)-1 {
			return nil, usagef("-since: want TOPIC=ID")
		}
		s.wanted[since[:i]] = true
		more = append(more, consumer.WithSince(since[:i], since[i+1:]))
	}
	for _, topic := range slices.Concat(s.topics, s.t.url.Query()["topic"]) {
		s.wanted[topic] = true
	}
	if s.t.webSocket() && len(s.wanted) == 0 {
		s.topics = list{"default"} // as over SSE: a WebSocket that follows nothing shows nothing
		s.wanted["default"] = true
	}
	return append(more, consumer.WithTopics(s.topics...), consumer.WithLastEventID(s.lastID)), nil
}

func (s *sub) run(ctx context.Context, more []consumer.Option) error {
	interrupted := ctx
	ctx, s.cancel = context.WithCancelCause(ctx)
	defer s.cancel(nil)
	if s.limit > 0 {
		timer := time.AfterFunc(s.limit, func() { s.cancel(errTime) })
		defer timer.Stop()
	}
	options := append(more,
		consumer.WithHeaderFunc(func(context.Context) (http.Header, error) { return s.t.header, nil }),
		consumer.WithReconnectInterval(s.first, max(30*time.Second, s.first)),
		consumer.WithOnConnection(s.onConnection),
		consumer.WithOnSubscribed(func(topic string) { s.say(dim, "following %s", topic) }),
		consumer.WithOnError(s.onError))
	for m, err := range consumer.Subscribe(ctx, s.t.url.String(), options...) {
		if err == nil {
			err = s.take(m)
		}
		switch {
		case errors.Is(err, errTime) && s.count > 0:
			return fmt.Errorf("%d of %d messages have come within %v", s.shown, s.count, s.limit)
		case errors.Is(err, errTime) && !s.connected:
			return fmt.Errorf("no connection within %v", s.limit)
		case errors.Is(err, errTime):
			return nil
		case err != nil && interrupted.Err() != nil:
			return nil // it has no other end
		case err != nil:
			return err
		case s.count > 0 && s.shown == s.count:
			return nil
		}
	}
	return nil
}

func (s *sub) onConnection() {
	again := ""
	if s.connected {
		again = " again"
	}
	s.connected, s.up = true, true
	s.say(green, "connected%s to %s", again, redacted(s.t.url))
}

func (s *sub) onError(err error) {
	var refused *consumer.TopicError
	var retry *consumer.RetryError
	switch {
	case errors.As(err, &refused):
		s.c.complain("pushlet sub: %s", plain(err))
		delete(s.wanted, refused.Topic)
		if len(s.wanted) == 0 {
			s.cancel(errors.New("the server lets us follow no topic"))
		}
	case errors.As(err, &retry):
		what := "no connection"
		if s.up {
			what = "connection lost"
		}
		s.up = false
		s.say(yellow, "%s: %s; next attempt in %v", what, plain(retry.Err), retry.Wait.Round(100*time.Millisecond))
	default:
		s.say(yellow, "%s", plain(err))
	}
}

func (s *sub) say(as style, format string, args ...any) {
	if !s.quiet {
		s.c.note(as, "pushlet sub: "+format, args...)
	}
}

// take shows a message.
func (s *sub) take(m consumer.Message) error {
	if m.Gap != nil {
		if err := s.printGap(m); err != nil {
			return err
		}
		if s.failOnGap {
			return lostError("messages were lost: " + gapText(m.Gap))
		}
		return nil
	}
	if len(s.events) > 0 && !slices.Contains(s.events, m.Event) {
		return nil
	}
	s.shown++
	return s.print(m)
}

package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"time"
)

var pubCommand = command{
	name:      "pub",
	arguments: "URL -topic T… [TEXT]",
	summary:   "publish by way of the server's HandlePush",
	run:       runPub,
	notes: `
To whom has to be said: with -topic, -user or, for everyone, -all. What is
published is -data, or the arguments after the URL, or else the whole standard
input without the line break at its end. With -lines each line of the standard
input is a message, as it comes; lines that are there together go in one
request.

What may help is tried again: when the connection fails, and for the statuses
408, 425, 429, 500 and above. Each request has an Idempotency-Key, so that
nothing is published twice by that. To run a command again without publishing
twice, give it a -key. With -lines each line then has a request and a key of
its own, K/1, K/2, …

Exit codes: 0 published; 1 surely not published, or with several messages not
all; 4 perhaps published: a request was sent, and no attempt was answered.

  pushlet pub localhost:8080 -topic news 'hello, world'
  pushlet pub localhost:8080 -user u001 -event invoice -data '{"no":17}' -key invoice-17
  tail -f app.log | pushlet pub https://example.com -topic log -lines -token "$TOKEN"
`,
}

// A pub is the command pub.
type pub struct {
	c *console
	p *pusher

	topics, users list
	all           bool
	event, data   string
	key           string
	lines, json   bool

	// Owned by the goroutine that runs it.
	requests   int
	published  int // duplicates included
	duplicates int
	clients    int // the most that one message had
}

func runPub(ctx context.Context, c *console, o *options, args []string) error {
	p := &pub{c: c}
	f := o.flags
	f.Var(&p.topics, "topic", "to the followers of topic `T`; may be repeated")
	f.Var(&p.users, "user", "to the user with that `ID`; may be repeated")
	f.BoolVar(&p.all, "all", false, "to everyone")
	f.StringVar(&p.event, "event", "", "the event's `name` (default \"message\")")
	f.StringVar(&p.data, "data", "", "publish `TEXT`")
	f.StringVar(&p.key, "key", "", "the Idempotency-Key `K` (default a random one for each request)")
	f.BoolVar(&p.lines, "lines", false, "each line of the standard input is a message")
	f.BoolVar(&p.json, "json", false, "print what the server answers, a line for each request")
	timeout := f.Duration("timeout", 10*time.Second, "wait `D` for an answer before trying again")
	retries := f.Int("retries", 5, "try again at most `N` times")
	url, rest, err := o.parse(args)
	if err != nil {
		return err
	}
	t, err := o.target(url, pushPaths)
	if err != nil {
		return err
	}
	switch {
	case !p.all && len(p.topics) == 0 && len(p.users) == 0:
		return usagef("to whom? -topic, -user, or -all for everyone")
	case p.all && (len(p.topics) > 0 || len(p.users) > 0):
		return usagef("-all is everyone: without -topic and -user")
	case o.isSet("data") && len(rest) > 0:
		return usagef("-data and %q: only one of them", rest[0])
	case p.lines && (o.isSet("data") || len(rest) > 0):
		return usagef("-lines is for the standard input")
	case *timeout <= 0:
		return usagef("-timeout: more than 0")
	case *retries < 0:
		return usagef("-retries: not negative")
	}
	p.p = newPusher(t, *timeout, *retries)
	p.p.retried = func(err error, wait time.Duration) {
		c.note(yellow, "pushlet pub: %v; next attempt in %v", err, wait.Round(10*time.Millisecond))
	}
	defer p.p.client.CloseIdleConnections()
	if p.lines {
		return p.follow(ctx)
	}
	text := p.data
	switch {
	case len(rest) > 0:
		text = strings.Join(rest, " ")
	case !o.isSet("data"):
		if text, err = p.read(ctx); err != nil {
			return err
		}
	}
	if err = p.publish(ctx, []string{text}, p.key); err != nil {
		return err
	}
	return p.report(fmt.Sprintf("%s of this instance", count(p.clients, "client")))
}

const maxInput = 64 << 20

// read returns the standard input.
func (p *pub) read(ctx context.Context) (string, error) {
	p.hint("the message")
	type input struct {
		b   []byte
		err error
	}
	done := make(chan input, 1)
	go func() { // ends with the input, or with the process
		b, err := io.ReadAll(io.LimitReader(p.c.stdin, maxInput+1))
		done <- input{b, err}
	}()
	select {
	case in := <-done:
		if in.err == nil && len(in.b) > maxInput {
			return "", fmt.Errorf("standard input: more than %d bytes", maxInput)
		}
		return strings.TrimSuffix(strings.TrimSuffix(string(in.b), "\n"), "\r"), in.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (p *pub) hint(what string) {
	if p.c.typed {
		p.c.note(dim, "pushlet pub: type %s, then Ctrl-D", what)
	}
}

// publish sends messages in one request.
func (p *pub) publish(ctx context.Context, texts []string, key string) error {
	body := pushBody{UIDs: p.users, Topics: p.topics}
	for _, text := range texts {
		body.Events = append(body.Events, pushEvent{p.event, text})
	}
	if key == "" {
		key = rand.Text()
	}
	p.requests++
	answer, err := p.p.push(ctx, body, key)
	for _, r := range answer.Events {
		p.published += r.Published + r.Duplicates
		p.duplicates += r.Duplicates
		p.clients = max(p.clients, r.Clients)
	}
	if p.json && answer.raw != nil {
		if err := p.c.printJSON(answer.raw); err != nil {
			return err
		}
	}
	if err != nil && p.published > 0 {
		err = fmt.Errorf("%w\n%s published", err, count(p.published, "message"))
	}
	return err
}

// report says what was published.
func (p *pub) report(to string) error {
	if p.json {
		return nil
	}
	again := ""
	if p.duplicates > 0 {
		again = fmt.Sprintf(" (%d of them before, with the same key)", p.duplicates)
	}
	_, err := fmt.Fprintf(p.c.stdout, "published %s%s, %s\n", count(p.published, "message"), again, to)
	return err
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%s %ss", thousands(int64(n)), noun)
}

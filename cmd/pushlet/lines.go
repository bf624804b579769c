package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
)

// What goes in one request, at most: well below what a server takes by default.
const (
	batchLines = 100
	batchBytes = 1 << 20
)

// A line of the input, or why there is none any more.
type line struct {
	text string
	err  error
}

// follow publishes each line as it comes. While a request is on its way lines gather, up to a
// limit, for the next: so the order is kept, and a fast input is not slowed down to one line a
// request.
func (p *pub) follow(ctx context.Context) error {
	p.hint("a message on each line")
	in := make(chan line, batchLines)
	go readLines(p.c.stdin, in) // ends with the input, or with the process
	for lines := 0; ; {
		texts, end := p.gather(ctx, in)
		if len(texts) > 0 {
			key := p.key
			if key != "" {
				key = fmt.Sprintf("%s/%d", key, lines+1)
			}
			// A request that was begun is not given up by the first interrupt.
			if err := p.publish(context.WithoutCancel(ctx), texts, key); err != nil {
				if len(texts) == 1 {
					return fmt.Errorf("line %d: %w", lines+1, err)
				}
				return fmt.Errorf("lines %d to %d: %w", lines+1, lines+len(texts), err)
			}
			lines += len(texts)
		}
		switch {
		case end == io.EOF || end != nil && ctx.Err() != nil: //nolint:errorlint // the reader's own
			return p.report(fmt.Sprintf("up to %s of this instance", count(p.clients, "client")))
		case end != nil:
			return end
		}
	}
}

// gather waits for a line and takes those that are there already, or ends.
func (p *pub) gather(ctx context.Context, in <-chan line) (texts []string, end error) {
	size := 0
	take := func(l line) bool {
		if l.err != nil {
			end = l.err
			return false
		}
		texts = append(texts, l.text)
		size += len(l.text)
		return p.key == "" && len(texts) < batchLines && size < batchBytes
	}
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case l := <-in:
		if !take(l) {
			return texts, end
		}
	}
	for {
		select {
		case l := <-in:
			if !take(l) {
				return texts, end
			}
		default:
			return texts, nil
		}
	}
}

// readLines sends lines without their ends; an empty one too. The last may lack its end.
func readLines(r io.Reader, in chan<- line) {
	b := bufio.NewReaderSize(r, 64<<10)
	for {
		text, err := b.ReadString('\n')
		if text != "" {
			in <- line{text: strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")}
		}
		if err != nil {
			in <- line{err: err}
			return
		}
	}
}

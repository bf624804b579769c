package consumer

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// An sse is the protocol SSE. It belongs to the goroutine of the run.
type sse struct {
	c      *Client
	url    string
	http   *http.Client
	lastID string // of what was handed over
	lost   bool   // that was something that cannot be sent
}

// longestRetry is what "retry:" may ask for, so that its double is still a time.
const longestRetry = time.Duration(1 << 61)

func newSSE(c *Client) (protocol, error) {
	u := *c.url
	if len(c.cfg.topics) > 0 {
		more := url.Values{"topic": c.cfg.topics}.Encode()
		u.RawQuery = strings.TrimPrefix(u.RawQuery+"&"+more, "&")
	}
	s := &sse{c: c, url: u.String(), http: c.cfg.httpClient(), lastID: c.cfg.lastID}
	if _, err := http.NewRequest(c.cfg.method, s.url, nil); err != nil { //nolint:noctx // only to see whether it can be made
		return nil, withoutURL(err)
	}
	return s, nil
}

func (s *sse) visit(ctx context.Context, hand func(Message) bool) (fruitful bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := newWatch(s.c.cfg.idle, func() { cancel(ErrIdle) })
	body, err := s.open(ctx, idle)
	if err != nil {
		return false, reasonOf(ctx, err)
	}
	defer body.Close()
	s.c.connected()
	if s.lost {
		s.lost = false
		gap := &Gap{Reason: NotResumable}
		if !hand(Message{Event: GapEvent, Data: gap.Reason, Gap: gap}) {
			return true, errBroken
		}
	}
	d := NewDecoder(watchedReader{body, idle})
	d.SetMaxSize(s.c.cfg.maxSize)
	d.id, d.lastID = s.lastID, s.lastID
	bye := ""
	for {
		m, err := d.Next()
		if wait, ok := d.Retry(); ok {
			s.c.retry = min(max(wait, time.Millisecond), longestRetry)
		}
		if err == nil && ctx.Err() != nil {
			return fruitful, context.Cause(ctx) // m is not handed over
		}
		s.lastID = d.LastEventID() // all up to there was handed over, or is m
		if err != nil {
			return fruitful, endOfStream(reasonOf(ctx, err), bye)
		}
		fruitful = true
		switch {
		case !isReserved(m.Event):
		case m.Event == GapEvent:
			m.Gap = sseGap(m.Data)
		default:
			s.heed(m, &bye)
			continue
		}
		if !hand(m) {
			return fruitful, errBroken
		}
	}
}

// heed acts on an event that is not for the application.
func (s *sse) heed(m Message, bye *string) {
	var data struct {
		Topics []string `json:"topics"`
		Reason string   `json:"reason"`
	}
	if json.Unmarshal([]byte(m.Data), &data) != nil {
		return // not as we know it
	}
	switch m.Event {
	case eventConnected:
		for _, topic := range data.Topics {
			s.c.subscribed(topic)
		}
	case eventDisconnected:
		*bye = data.Reason
	}
}

// open asks for the stream.
func (s *sse) open(ctx context.Context, idle *watch) (io.ReadCloser, error) {
	req, err := s.c.cfg.newRequest(ctx, s.url)
	if err != nil {
		return nil, err
	}
	if !sendable(s.lastID) {
		s.lastID, s.lost = "", true
	}
	if s.lastID != "" {
		req.Header.Set("Last-Event-ID", s.lastID)
	}
	idle.begin()
	resp, err := s.http.Do(req)
	idle.end()
	if err != nil {
		return nil, withoutURL(err)
	}
	body, err := streamOf(resp)
	if err != nil {
		resp.Body.Close()
	}
	return body, err
}

// streamOf returns the stream of a response, or why there is none.
func streamOf(resp *http.Response) (io.ReadCloser, error) {
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	if resp.StatusCode != http.StatusOK || !strings.EqualFold(strings.TrimSpace(kind), "text/event-stream") {
		return nil, responseError(resp)
	}
	// The http.Transport has removed gzip if it was the one that asked for it.
	switch encoding := strings.ToLower(resp.Header.Get("Content-Encoding")); encoding {
	case "", "identity":
		return resp.Body, nil
	case "gzip", "x-gzip":
		return &gunzip{ReadCloser: resp.Body}, nil
	default:
		return nil, fmt.Errorf("consumer: unknown content encoding %q", encoding)
	}
}

// A gunzip begins to read when it is read from: the header may not be there yet.
type gunzip struct {
	io.ReadCloser
	z *gzip.Reader
}

func (g *gunzip) Read(b []byte) (n int, err error) {
	if g.z == nil {
		if g.z, err = gzip.NewReader(g.ReadCloser); err != nil {
			return 0, err
		}
	}
	return g.z.Read(b)
}

// endOfStream says why a stream has ended.
func endOfStream(err error, bye string) error {
	switch {
	case bye != "":
		return fmt.Errorf("consumer: the server has ended the connection: %q: %w", bye, err)
	case err == io.EOF: //nolint:errorlint // the reader's own; a wrapped one is something else
		return fmt.Errorf("consumer: the stream has ended: %w", err)
	case errors.Is(err, ErrTooLarge), errors.Is(err, ErrIdle):
		return err
	}
	return fmt.Errorf("consumer: the stream has broken: %w", err)
}

// reasonOf is the cause of what ctx has ended.
func reasonOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// A watch calls a function when the server takes too long. It belongs to one goroutine.
type watch struct {
	limit time.Duration
	timer *time.Timer // nil: there is no limit
}

func newWatch(limit time.Duration, late func()) *watch {
	w := &watch{limit: limit}
	if limit > 0 {
		w.timer = time.AfterFunc(limit, late)
		w.timer.Stop()
	}
	return w
}

// begin is called before waiting for the server, end afterwards.
func (w *watch) begin() {
	if w.timer != nil {
		w.timer.Reset(w.limit)
	}
}

func (w *watch) end() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// A watchedReader reads from the server.
type watchedReader struct {
	r    io.Reader
	idle *watch
}

func (w watchedReader) Read(b []byte) (int, error) {
	w.idle.begin()
	defer w.idle.end()
	return w.r.Read(b)
}

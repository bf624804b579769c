package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/usual2970/pushlet/consumer"
)

// pushPaths are where HandlePush is by custom.
var pushPaths = map[string]string{"http": "/push", "https": "/push"}

// A pushBody is what HandlePush takes.
type pushBody struct {
	UIDs   []string    `json:"uids,omitempty"`
	Topics []string    `json:"topics,omitempty"`
	Events []pushEvent `json:"events"`
}

type pushEvent struct {
	Event string `json:"event,omitempty"`
	Data  string `json:"data"`
}

// A pushAnswer is what HandlePush answers.
type pushAnswer struct {
	Events []pushResult `json:"events"`
	Error  string       `json:"error"`

	raw json.RawMessage
}

type pushResult struct {
	Published  int    `json:"published"`
	Duplicates int    `json:"duplicates"`
	Clients    int    `json:"clients"`
	Error      string `json:"error"`
}

// perhapsPublished is how the server says that it does not know.
const perhapsPublished = "pushlet: perhaps published"

// A pusher sends requests to HandlePush. It is immutable, and safe for concurrent use.
type pusher struct {
	url     *url.URL
	header  http.Header
	client  *http.Client
	timeout time.Duration // of one attempt
	retries int
	retried func(err error, wait time.Duration) // is told before each but the first
}

func newPusher(t target, timeout time.Duration, retries int) *pusher {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = publishers // bench has so many requests at once
	return &pusher{
		url: t.url, header: t.header, timeout: timeout, retries: retries,
		client: &http.Client{
			Transport: transport,
			// Only 307 and 308 keep the body; after the others HandlePush would see a GET.
			CheckRedirect: func(r *http.Request, via []*http.Request) error {
				if r.Method != http.MethodPost || len(via) > 5 {
					return http.ErrUseLastResponse
				}
				return nil
			},
		},
		retried: func(error, time.Duration) {},
	}
}

// push publishes, and tries again what may help, with the same key, so that nothing is published
// twice. The answer is the last there was, also with an error. The error wraps errUncertain if an
// attempt may have published without telling.
func (p *pusher) push(ctx context.Context, body pushBody, key string) (answer pushAnswer, err error) {
	b, err := json.Marshal(body)
	if err != nil {
		return answer, err
	}
	uncertain := false
	for attempt := 0; ; attempt++ {
		var try attemptError
		answer, try = p.attempt(ctx, b, key)
		if try.err == nil {
			return answer, nil
		}
		uncertain = uncertain || try.uncertain
		if uncertain {
			err = fmt.Errorf("%w: %w", errUncertain, try.err)
		} else {
			err = try.err
		}
		if !try.temporary || attempt >= p.retries || ctx.Err() != nil {
			return answer, err
		}
		wait := max(try.after, backOff(attempt))
		p.retried(try.err, wait)
		if !sleep(ctx, wait) {
			return answer, err
		}
	}
}

// An attemptError says why an attempt has failed; err is nil if it has not.
type attemptError struct {
	err       error
	temporary bool
	uncertain bool          // it may have published
	after     time.Duration // how long the server asks to wait
}

func (p *pusher) attempt(ctx context.Context, body []byte, key string) (answer pushAnswer, e attemptError) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout, fmt.Errorf("no answer within %v", p.timeout))
	defer cancel()
	connected := false // from then on the request may have been sent
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected = true }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodPost, p.url.String(), bytes.NewReader(body))
	if err != nil {
		return answer, attemptError{err: err}
	}
	req.Header = p.header.Clone()
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	resp, err := p.client.Do(req)
	var text []byte
	if err == nil {
		defer resp.Body.Close()
		text, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err // without the URL, which may hold a secret
		}
		return answer, attemptError{err: err, temporary: true, uncertain: connected}
	}
	return readAnswer(resp, text)
}

const maxAnswer = 16 << 20

// readAnswer says what an answer means.
func readAnswer(resp *http.Response, text []byte) (answer pushAnswer, e attemptError) {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	ours := kind == "application/json" && json.Unmarshal(text, &answer) == nil
	if ours {
		answer.raw = bytes.TrimSpace(text)
	}
	switch {
	case ours && resp.StatusCode == http.StatusOK:
		return answer, e
	case resp.StatusCode == http.StatusOK:
		e.err = fmt.Errorf("the answer is not from HandlePush: content type %q", kind)
		return answer, e
	case ours && len(answer.Events) > 0:
		e.uncertain, e.err = answer.failure()
	case ours && answer.Error != "":
		e.err = fmt.Errorf("status %s: %s", resp.Status, answer.Error)
	default:
		why, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
		if where := resp.Header.Get("Location"); where != "" {
			why = "to " + where
		}
		if len(why) > 200 || kind == "text/html" {
			why = ""
		}
		e.err = fmt.Errorf("status %s", resp.Status)
		if why != "" {
			e.err = fmt.Errorf("status %s: %s", resp.Status, why)
		}
		// A proxy says so when it does not know what the server has done.
		e.uncertain = resp.StatusCode >= 500 && resp.StatusCode != http.StatusServiceUnavailable &&
			resp.StatusCode != http.StatusNotImplemented
	}
	e.temporary = (&consumer.ResponseError{Status: resp.StatusCode}).Temporary()
	if seconds, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16); err == nil {
		e.after = time.Duration(seconds) * time.Second
	}
	return answer, e
}

// failure joins what the server says of events that it could not publish.
func (a pushAnswer) failure() (uncertain bool, err error) {
	var texts []string
	for i, r := range a.Events {
		if r.Error != "" {
			texts = append(texts, fmt.Sprintf("events[%d]: %s", i, r.Error))
			uncertain = uncertain || strings.Contains(r.Error, perhapsPublished)
		}
	}
	const most = 3
	if more := len(texts) - most; more > 0 {
		texts = append(texts[:most], fmt.Sprintf("and %d more", more))
	}
	return uncertain, errors.New(strings.Join(texts, "; "))
}

// backOff is how long to wait after a failed attempt: 250 ms and what chance adds, doubled with
// each, up to 8 s.
func backOff(attempt int) time.Duration {
	wait := 250 * time.Millisecond << min(attempt, 5)
	return wait + rand.N(wait) //nolint:gosec // nobody gains by guessing it
}

// sleep reports whether the time has passed before ctx was done.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

package consumer

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Final errors, which end a subscription, besides [ErrTooLarge], a [ResponseError] that says
// so, and the cause of the context.
var (
	// ErrNoContent is what a server says with status 204: do not come back.
	ErrNoContent = errors.New("consumer: the server has ended the subscription (204 No Content)")

	// ErrStopped is the end by [Client.Stop].
	ErrStopped = errors.New("consumer: stopped")

	// ErrRunning is for who starts a Client that is running.
	ErrRunning = errors.New("consumer: already running")

	// ErrNotPushlet is the end by a WebSocket that sends what Pushlet does not. (An event
	// stream may come from any server.)
	ErrNotPushlet = errors.New("consumer: the WebSocket does not speak Pushlet's protocol")
)

// ErrIdle is in a [RetryError] when nothing came for as long as [WithIdleTimeout] says.
var ErrIdle = errors.New("consumer: the server is silent")

// A RetryError says that there is no connection, and that there will be another attempt. A
// stream that the server has ended in good order has an Err that is io.EOF.
type RetryError struct {
	Err     error
	Attempt int           // 1 is the first since something was received
	Wait    time.Duration // until then
}

func (e *RetryError) Error() string {
	return fmt.Sprintf("%v; next attempt in %v", e.Err, e.Wait.Round(time.Millisecond))
}

// Unwrap returns Err.
func (e *RetryError) Unwrap() error { return e.Err }

// A TopicError says that the server does not let this client follow a topic over WebSocket.
// The others go on.
type TopicError struct {
	Topic string // empty: the server does not say
	Text  string // the reason as the server gave it
}

func (e *TopicError) Error() string { return fmt.Sprintf("consumer: topic %q: %s", e.Topic, e.Text) }

// A ResponseError is an answer that is neither an event stream nor a WebSocket. The statuses
// 408, 425, 429 and from 500 on, without 501 and 505, are tried again; all others are final.
type ResponseError struct {
	Status      int
	ContentType string
	Body        string        // the first 1024 bytes
	RetryAfter  time.Duration // zero: the server does not say
}

func (e *ResponseError) Error() string {
	if e.Status == http.StatusOK {
		return fmt.Sprintf("consumer: the answer is no event stream: content type %q", e.ContentType)
	}
	text := fmt.Sprintf("consumer: status %d %s", e.Status, http.StatusText(e.Status))
	if why, _, _ := strings.Cut(strings.TrimSpace(e.Body), "\n"); why != "" && strings.HasPrefix(e.ContentType, "text/plain") {
		text += fmt.Sprintf(": %.200q", why)
	}
	return text
}

// Temporary reports whether the client tries again.
func (e *ResponseError) Temporary() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	}
	return e.Status >= 500
}

// responseError reads an answer that is not what we want.
func responseError(resp *http.Response) error {
	if resp.StatusCode == http.StatusNoContent {
		return ErrNoContent
	}
	e := &ResponseError{Status: resp.StatusCode, ContentType: resp.Header.Get("Content-Type")}
	if resp.StatusCode != http.StatusOK && resp.Body != nil {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1024)) // as much as there is
		e.Body = string(b)
	}
	after := resp.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(after, 10, 31); err == nil {
		e.RetryAfter = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(after); err == nil {
		e.RetryAfter = max(0, time.Until(at))
	}
	return e
}

// errBroken is the end by the body of the loop.
var errBroken = errors.New("consumer: break")

// isFinal reports whether there is no use in another attempt.
func isFinal(err error) bool {
	var answer *ResponseError
	if errors.As(err, &answer) {
		return !answer.Temporary()
	}
	for _, final := range []error{errBroken, ErrNoContent, ErrTooLarge, ErrNotPushlet} {
		if errors.Is(err, final) {
			return true
		}
	}
	return false
}

// withoutURL is the error of a request without its URL, which may hold secrets.
func withoutURL(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		err = e.Err
	}
	return fmt.Errorf("consumer: %w", err)
}

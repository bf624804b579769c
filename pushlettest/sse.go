package pushlettest

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
)

// SSE opens an event stream as an EventSource does, and waits for pushlet.connected: what
// is published from then on will arrive. The path is as in "/events?topic=news". If the
// server refuses, the test fails.
func (s *Server) SSE(path string, options ...Option) *Client {
	s.t.Helper()
	c, answer := s.TrySSE(path, options...)
	if c == nil {
		s.t.Fatalf("pushlettest: SSE %s: status %d: %s", path, answer.Status, answer.Body)
	}
	return c
}

// TrySSE is SSE for a test that looks at the answer itself. The client is nil if the server
// refuses: with a status other than 200, or a stream that ends before it has begun.
func (s *Server) TrySSE(path string, options ...Option) (*Client, Answer) {
	s.t.Helper()
	return s.connect(eventSource{path}, options)
}

// An eventSource is the protocol SSE.
type eventSource struct{ path string }

func (p eventSource) connect(ctx context.Context, c *Client, again bool) (*visit, Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, URL+p.path, nil)
	if err != nil {
		return nil, Answer{}, err
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Cache-Control", "no-cache")
	for name, values := range c.settings.header {
		req.Header[name] = values
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	lastID := ""
	if again {
		c.mu.Lock()
		lastID = c.lastID
		c.mu.Unlock()
		if lastID != "" {
			req.Header.Set("Last-Event-ID", lastID)
		}
	}
	conn, err := c.server.dial(ctx, c.settings.buffer)
	if err != nil {
		return nil, Answer{}, err
	}
	stop := context.AfterFunc(ctx, conn.drop) // until there is an answer
	answer, body, err := exchange(conn, req)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil || body == nil {
		conn.Close()
		return nil, answer, err
	}
	stream := &eventStream{id: lastID, lastID: lastID}
	buf := make([]byte, 4<<10)
	v := &visit{conn: conn}
	v.read = func() error {
		n, err := body.Read(buf)
		comments := stream.comments
		events := stream.feed(buf[:n])
		c.note(func() {
			c.received = append(c.received, events...)
			c.heartbeat += stream.comments - comments
			c.lastID = stream.lastID
		})
		return err
	}
	v.end = func(err error) End {
		clean := errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) // ours is closed by leave
		return End{Cut: !clean, Retry: stream.retry}
	}
	return v, answer, nil
}

// exchange sends a request and reads the answer. The body is nil if it is no stream; its
// end is the connection's.
func exchange(conn *conn, req *http.Request) (Answer, io.Reader, error) {
	if err := req.Write(conn); err != nil {
		return Answer{}, nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req) //nolint:bodyclose // the connection is closed
	if err != nil {
		return Answer{}, nil, err
	}
	answer := Answer{Status: resp.StatusCode, Header: resp.Header}
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	if resp.StatusCode == http.StatusOK && strings.TrimSpace(kind) == "text/event-stream" {
		return answer, resp.Body, nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	answer.Body = string(b)
	return answer, nil, err
}

func (p eventSource) settle(c *Client, n int, _ bool) error {
	_, err := c.answerTo(n, func(e Event) bool { return e.Name == "pushlet.connected" })
	if err != nil && c.count() == n {
		select {
		case <-c.current().done:
			return errSentAway
		default:
		}
	}
	return err
}

func (p eventSource) leave(v *visit) { v.conn.Close() }

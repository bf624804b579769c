package main

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// What the server sends before the first message is read with care, because that
// happens once for each connection; messages only are counted (see message.go).

// answer looks at the bytes that a connection has received so far. Once they hold
// the response's header and the event that says that the subscription stands, it
// returns the ID from which the client can resume, and the bytes that follow.
func answer(protocol string, b []byte) (id string, rest []byte, done bool, err error) {
	head, body, whole := bytes.Cut(b, []byte("\r\n\r\n"))
	if !whole {
		return "", nil, false, nil
	}
	status, first, end := "HTTP/1.1 200", "event: pushlet.connected", "\n\n"
	if protocol == protocolWebSocket {
		status, first, end = "HTTP/1.1 101", `"pushlet.subscribed"`, "}"
	}
	if !bytes.HasPrefix(head, []byte(status)) {
		return "", nil, false, fmt.Errorf("answer: %q", b)
	}
	i := bytes.Index(body, []byte(first))
	if i < 0 {
		return "", nil, false, nil
	}
	n := bytes.Index(body[i:], []byte(end))
	if n < 0 {
		return "", nil, false, nil
	}
	n += i + len(end)
	id, err = lastID(protocol, body[:n])
	return id, body[n:], true, err
}

// afterHeader returns what follows the response's header, if that is there.
func afterHeader(b []byte) (rest []byte, done bool) {
	_, rest, done = bytes.Cut(b, []byte("\r\n\r\n"))
	return rest, done
}

// lastID returns the ID in an event stream's last event, or in a frame of JSON.
func lastID(protocol string, b []byte) (string, error) {
	if protocol == protocolSSE {
		i := bytes.LastIndex(b, []byte("id:"))
		if i < 0 {
			return "", fmt.Errorf("no id in %q", b)
		}
		line, _, _ := bytes.Cut(b[i+len("id:"):], []byte("\n"))
		return string(bytes.TrimSpace(line)), nil
	}
	var event struct{ ID string }
	if err := json.Unmarshal(b[bytes.LastIndexByte(b, '{'):], &event); err != nil {
		return "", fmt.Errorf("first frame %q: %w", b, err)
	}
	return event.ID, nil
}

package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
)

// loop is the baseline: the least that a server in Go can do for a delivery. To
// publish is one plain loop that writes ready bytes, of the size that Pushlet's
// frames have, to each connection with one Write. A connection costs one goroutine,
// blocked in Read. There are no positions, no history and no slow clients: a
// connection that does not read stops everything.
type loop struct {
	protocol string
	open     atomic.Int64

	mu     sync.Mutex
	topics [][]net.Conn
	frame  []byte
}

func newLoop(protocol string) *loop { return &loop{protocol: protocol} }

func (p *loop) serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go p.handle(conn)
	}
}

func (p *loop) handle(conn net.Conn) {
	defer conn.Close()
	k, err := p.handshake(conn)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: loop:", err)
		return
	}
	defer p.remove(k, conn)
	waitForEnd(conn)
}

// waitForEnd is on its own so that an idle connection has no more on its stack than it needs.
func waitForEnd(conn net.Conn) {
	var b [64]byte
	for {
		if _, err := conn.Read(b[:]); err != nil {
			return
		}
	}
}

// handshake reads the request, answers it, sends the first event and registers
// the connection under the topic that it returns.
func (p *loop) handshake(conn net.Conn) (k int, err error) {
	req, err := http.ReadRequest(bufio.NewReaderSize(conn, 512))
	if err != nil {
		return 0, err
	}
	k, err = topicNumber(req.URL.Query().Get("topic"))
	if err != nil {
		return 0, err
	}
	var answer []byte
	if p.protocol == protocolSSE {
		answer = append(answer, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n"...)
		answer = append(answer, firstSSE...)
	} else {
		answer = append(answer, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "...)
		answer = append(answer, acceptKey(req.Header.Get("Sec-WebSocket-Key"))...)
		answer = append(answer, "\r\n\r\n"...)
		answer = appendFrame(answer, firstWebSocket)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := conn.Write(answer); err != nil {
		return 0, err
	}
	for len(p.topics) <= k {
		p.topics = append(p.topics, nil)
	}
	p.topics[k] = append(p.topics[k], conn)
	p.open.Add(1)
	return k, nil
}

func (p *loop) remove(k int, conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.topics[k], conn)
	p.topics[k] = slices.Delete(p.topics[k], i, i+1)
	p.open.Add(-1)
}

func (p *loop) publish(k int, data string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.protocol == protocolSSE {
		p.frame = append(p.frame[:0], "id: 1732112233445-0.1732112233445-0\nevent: message\ndata: "...)
		p.frame = append(p.frame, data...)
		p.frame = append(p.frame, "\n\n"...)
	} else {
		var json [256]byte
		b := append(json[:0], `{"topic":"t0","event":"message","data":"`...)
		b = append(b, data...)
		b = append(b, `","timestamp":"2024-11-20T12:00:00.000Z","id":"1732112233445-0"}`...)
		p.frame = appendFrame(p.frame[:0], b)
	}
	if k >= len(p.topics) {
		return nil
	}
	var errs error
	for _, conn := range p.topics[k] {
		if _, err := conn.Write(p.frame); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

func (p *loop) clients() int { return int(p.open.Load()) }

// The first event of a connection. It tells the load generator that the
// connection is ready, as Pushlet's does.
const firstSSE = "retry: 3000\nid: 1732112233445-0.1732112233445-0\nevent: pushlet.connected\n" +
	`data: {"client":"0123456789abcdef0123456789abcdef","topics":["t0"],"resumed":false}` + "\n\n"

var firstWebSocket = []byte(`{"topic":"t0","event":"pushlet.subscribed","data":"","timestamp":"2024-11-20T12:00:00.000Z","id":"0-0"}`)

func acceptKey(key string) string {
	h := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(h[:])
}

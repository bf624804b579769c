package main

import (
	"bytes"
	"slices"
	"testing"
	"time"
)

// A counter that miscounts makes every figure wrong, so what reads the streams is tested.

func TestMessagesInPieces(t *testing.T) {
	var stream []byte
	at := time.Unix(0, 1732112233445566778)
	for n := range 3 {
		data := appendMessage(nil, at, n)
		if len(data) != messageSize {
			t.Fatalf("message of %d bytes, want %d", len(data), messageSize)
		}
		stream = append(append(append(stream, "id: 1-1\ndata: "...), data...), "\n\n"...)
	}
	if n := countMessages(stream); n != 3 {
		t.Errorf("countMessages = %d, want 3", n)
	}
	for size := 1; size <= len(stream); size++ {
		var numbers []int
		var rest []byte
		for piece := range slices.Chunk(stream, size) {
			rest = bytes.Clone(scanMessages(append(rest, piece...), func(stamp int64, n int) {
				if stamp != at.UnixNano() {
					t.Errorf("stamp = %d, want %d", stamp, at.UnixNano())
				}
				numbers = append(numbers, n)
			}))
		}
		if !slices.Equal(numbers, []int{0, 1, 2}) {
			t.Errorf("in pieces of %d: numbers = %v, want 0 to 2", size, numbers)
		}
	}
}

func TestPingsInPieces(t *testing.T) {
	stream := appendFrame(nil, []byte("short"))
	stream = append(stream, 0x89, 0)
	stream = appendFrame(stream, bytes.Repeat([]byte("long"), 100))
	stream = append(stream, 0x89, 2, 'h', 'i')
	stream = append(stream, 0x89, 0)
	want := [][]byte{
		{0x8a, 0x80, 0, 0, 0, 0},
		{0x8a, 0x82, 0, 0, 0, 0, 'h', 'i'},
		{0x8a, 0x80, 0, 0, 0, 0},
	}
	for size := 1; size <= len(stream); size++ {
		var f frames
		var pongs [][]byte
		for piece := range slices.Chunk(stream, size) {
			f.walk(piece, func(pong []byte) { pongs = append(pongs, pong) })
		}
		if !slices.EqualFunc(pongs, want, bytes.Equal) {
			t.Errorf("in pieces of %d: pongs = %x, want %x", size, pongs, want)
		}
	}
}

func TestAnswer(t *testing.T) {
	sse := []byte("HTTP/1.1 200 OK\r\nA: b\r\n\r\n" + firstSSE + "more")
	ws := append([]byte("HTTP/1.1 101 Switching Protocols\r\n\r\n"), appendFrame(nil, firstWebSocket)...)
	ws = append(ws, "more"...)
	for _, tt := range []struct {
		protocol string
		stream   []byte
		id       string
	}{
		{protocolSSE, sse, "1732112233445-0.1732112233445-0"},
		{protocolWebSocket, ws, "0-0"},
	} {
		id, rest, done, err := answer(tt.protocol, tt.stream)
		if id != tt.id || string(rest) != "more" || !done || err != nil {
			t.Errorf("answer(%s) = %q, %q, %t, %v; want %q, %q, true, nil", tt.protocol, id, rest, done, err, tt.id, "more")
		}
		for n := range len(tt.stream) - len("more") {
			if _, _, done, err := answer(tt.protocol, tt.stream[:n]); done || err != nil {
				t.Errorf("answer(%s) of the first %d bytes is done: %t, error: %v", tt.protocol, n, done, err)
			}
		}
		if _, _, _, err := answer(tt.protocol, []byte("HTTP/1.1 503 Service Unavailable\r\n\r\n")); err == nil {
			t.Errorf("answer(%s) takes a refusal for an answer", tt.protocol)
		}
	}
}

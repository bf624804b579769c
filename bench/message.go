package main

import (
	"bytes"
	"strconv"
	"time"
)

// Every published message is messageSize bytes of data that begin with a head:
//
//	^1732112233445566778.00000042.xxxx…
//
// the marker, the time of publishing in Unix nanoseconds, and the message's
// number in its topic. The marker occurs nowhere else in a stream, so the load
// generator counts messages of either protocol by counting that one byte, which
// the standard library does with vector instructions; a whole parse of frames
// would make the load generator, which shares the machine with the server, the
// slower half.
const (
	messageSize = 100
	marker      = '^'
	stampDigits = 19
	numDigits   = 8
	headSize    = 1 + stampDigits + 1 + numDigits + 1
)

// appendMessage appends the data of message number n of its topic.
func appendMessage(b []byte, at time.Time, n int) []byte {
	start := len(b)
	b = append(b, marker)
	b = appendPadded(b, at.UnixNano(), stampDigits)
	b = append(b, '.')
	b = appendPadded(b, int64(n), numDigits)
	b = append(b, '.')
	for len(b) < start+messageSize {
		b = append(b, 'x')
	}
	return b
}

func appendPadded(b []byte, v int64, digits int) []byte {
	var buf [20]byte
	s := strconv.AppendInt(buf[:0], v, 10)
	for range digits - len(s) {
		b = append(b, '0')
	}
	return append(b, s...)
}

// countMessages returns how many messages begin in b.
func countMessages(b []byte) int { return bytes.Count(b, []byte{marker}) }

// scanMessages calls each for every complete head in b and returns what is left
// over: the beginning of a head, to be put before the stream's next bytes, or nil.
func scanMessages(b []byte, each func(stamp int64, n int)) []byte {
	for {
		i := bytes.IndexByte(b, marker)
		if i < 0 {
			return nil
		}
		b = b[i:]
		if len(b) < headSize {
			return b
		}
		each(parseDigits(b[1:1+stampDigits]), int(parseDigits(b[2+stampDigits:2+stampDigits+numDigits])))
		b = b[headSize:]
	}
}

func parseDigits(b []byte) int64 {
	var v int64
	for _, c := range b {
		v = v*10 + int64(c-'0')
	}
	return v
}

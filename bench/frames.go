package main

import "encoding/binary"

// frames finds the pings in a stream of WebSocket frames; a client that answers
// none is soon disconnected. It goes from header to header and does not look at
// what is between them. The zero value is at the beginning of a frame.
type frames struct {
	skip    int    // bytes of the present frame's payload that are still to come
	head    []byte // the beginning of a header that is not complete
	ping    bool   // the present frame is a ping
	payload []byte // of the present ping
}

const (
	opcodeMask  = 0x0f
	opcodePing  = 0x9
	finalPong   = 0x8a
	finalBinary = 0x82
	masked      = 0x80
	lengthMask  = 0x7f
	length16    = 126
	length64    = 127
)

// walk goes through the next bytes of the stream. It calls answer with each pong
// that is to be sent.
func (f *frames) walk(b []byte, answer func(pong []byte)) {
	if len(f.head) > 0 {
		b = append(f.head, b...)
		f.head = nil
	}
	for {
		n := min(f.skip, len(b))
		if f.ping {
			f.payload = append(f.payload, b[:n]...)
		}
		b = b[n:]
		f.skip -= n
		if f.skip > 0 {
			return
		}
		if f.ping {
			pong := []byte{finalPong, masked | byte(len(f.payload)), 0, 0, 0, 0} // masked with zeros
			answer(append(pong, f.payload...))
			f.ping, f.payload = false, nil
		}
		size, length := frameHeader(b)
		if size == 0 {
			f.head = append(f.head, b...)
			return
		}
		f.ping = b[0]&opcodeMask == opcodePing
		f.skip = length
		b = b[size:]
	}
}

// frameHeader returns the size of the header at the beginning of b, or 0 if it is
// not complete, and the length of the payload that follows it.
func frameHeader(b []byte) (size, length int) {
	if len(b) < 2 {
		return 0, 0
	}
	switch length := int(b[1] & lengthMask); {
	case length < length16:
		return 2, length
	case length == length16 && len(b) >= 4:
		return 4, int(binary.BigEndian.Uint16(b[2:]))
	case length == length64 && len(b) >= 10:
		return 10, int(binary.BigEndian.Uint64(b[2:]))
	}
	return 0, 0
}

// appendFrame appends an unmasked binary frame.
func appendFrame(b, payload []byte) []byte {
	if len(payload) < length16 {
		b = append(b, finalBinary, byte(len(payload)))
	} else {
		b = append(b, finalBinary, length16)
		b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	}
	return append(b, payload...)
}

package consumer_test

import (
	"math"
	"math/big"
	"slices"
	"strings"
	"time"
)

// A parsed is all that a stream says.
type parsed struct {
	events []decoded
	lastID string
	retry  time.Duration // negative: none
}

func (p parsed) equal(q parsed) bool {
	return slices.Equal(p.events, q.events) && p.lastID == q.lastID && p.retry == q.retry
}

// reference takes a stream as a whole, step by step as WHATWG HTML says in section 9.2.6, and
// shares nothing with the Decoder.
func reference(stream string) parsed {
	text := referenceUTF8(strings.TrimPrefix(stream, "\xEF\xBB\xBF"))
	text = strings.ReplaceAll(text, "\r\n", "\n")
	text = strings.ReplaceAll(text, "\r", "\n")
	lines := strings.Split(text, "\n")
	lines = lines[:len(lines)-1] // what no line end follows

	p := parsed{retry: -1}
	var data, eventType, lastEventID string
	for _, line := range lines {
		if line == "" {
			p.lastID = lastEventID
			if data != "" {
				name := "message"
				if eventType != "" {
					name = eventType
				}
				p.events = append(p.events, decoded{name, strings.TrimSuffix(data, "\n"), p.lastID})
			}
			data, eventType = "", ""
			continue
		}
		field, value := line, ""
		switch i := strings.Index(line, ":"); {
		case i == 0:
			continue
		case i > 0:
			field, value = line[:i], strings.TrimPrefix(line[i+1:], " ")
		}
		switch field {
		case "event":
			eventType = value
		case "data":
			data += value + "\n"
		case "id":
			if !strings.Contains(value, "\x00") {
				lastEventID = value
			}
		case "retry":
			if ms, ok := referenceDigits(value); ok {
				p.retry = ms
			}
		}
	}
	return p
}

// referenceDigits reads ASCII digits. Beyond what a Duration holds it is the longest one in
// milliseconds.
func referenceDigits(s string) (time.Duration, bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, ok := new(big.Int).SetString(s, 10)
	if !ok {
		return 0, false
	}
	const most = math.MaxInt64 / int64(time.Millisecond)
	if n.Cmp(big.NewInt(most)) > 0 {
		n.SetInt64(most)
	}
	return time.Duration(n.Int64()) * time.Millisecond, true
}

// referenceUTF8 is the UTF-8 decoder of the Encoding Standard, byte by byte.
func referenceUTF8(s string) string {
	var out strings.Builder
	var point rune
	needed, seen := 0, 0
	lower, upper := byte(0x80), byte(0xBF)
	for i := 0; i < len(s); i++ {
		c := s[i]
		if needed == 0 {
			switch {
			case c <= 0x7F:
				out.WriteByte(c)
			case c >= 0xC2 && c <= 0xDF:
				needed, point = 1, rune(c&0x1F)
			case c >= 0xE0 && c <= 0xEF:
				if c == 0xE0 {
					lower = 0xA0
				}
				if c == 0xED {
					upper = 0x9F
				}
				needed, point = 2, rune(c&0xF)
			case c >= 0xF0 && c <= 0xF4:
				if c == 0xF0 {
					lower = 0x90
				}
				if c == 0xF4 {
					upper = 0x8F
				}
				needed, point = 3, rune(c&0x7)
			default:
				out.WriteRune('\uFFFD')
			}
			continue
		}
		if c < lower || c > upper {
			needed, seen, lower, upper = 0, 0, 0x80, 0xBF
			out.WriteRune('\uFFFD')
			i-- // this byte may begin a character
			continue
		}
		lower, upper = 0x80, 0xBF
		point = point<<6 | rune(c&0x3F)
		if seen++; seen == needed {
			out.WriteRune(point)
			needed, seen = 0, 0
		}
	}
	if needed > 0 {
		out.WriteRune('\uFFFD')
	}
	return out.String()
}

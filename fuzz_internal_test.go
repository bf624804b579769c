package pushlet

import (
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"
)

// FuzzCursor feeds any token to parseCursor. What it accepts must come out of
// appendToken as a token that means the same.
func FuzzCursor(f *testing.F) {
	add := func(c cursor) {
		token, _ := c.appendToken(nil, nil)
		f.Add(string(token))
	}
	add(cursor{})
	add(cursor{all: msgID{1732000000000, 42 << counterBits}, topics: []position{{hashTopic("a"), msgID{1732000000001, 42<<counterBits + 1}}}})
	add(cursor{all: msgID{1<<64 - 1, 1<<64 - 1}, topics: []position{{1<<40 - 1, msgID{}}, {0, msgID{1, 1}}}})
	for _, token := range []string{"", "AQ", "AA", "AQAAAAA", "AQAAAAAA", "AQAAAAA=", "AQ\nAAAAA", "AQEAAAAAAAAAAAAAAAA", "1732000000000-0", "AQD_____________________"} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		c, ok := parseCursor(token)
		if !ok {
			if c.all != (msgID{}) || c.topics != nil {
				t.Errorf("a cursor %v that could not be read", c)
			}
			return
		}
		again, _ := c.appendToken(nil, nil)
		if _, err := base64.RawURLEncoding.DecodeString(string(again)); err != nil {
			t.Errorf("token %q: %v", again, err)
		}
		if len(c.topics) == 1 && len(again) > 128 {
			t.Errorf("token %q of one topic has %d bytes", again, len(again))
		}
		got, ok := parseCursor(string(again))
		if !ok || got.all != c.all || !slices.Equal(got.topics, c.topics) {
			t.Errorf("cursor %v became %v, %t", c, got, ok)
		}
		for _, p := range c.topics {
			if _, ok := c.position(p.hash); !ok {
				t.Errorf("no position for %v in %v", p.hash, c)
			}
		}
	})
}

// FuzzRedisMessage feeds any text to parseFrame, since others may write to a Redis too. What
// it accepts must be a message that could have been published.
func FuzzRedisMessage(f *testing.F) {
	at := time.UnixMilli(1732000000000)
	f.Add("1732000000001-1000000000001 1732000000000-1000000000001 " + payloadOf("message", "hello", at))
	f.Add("1732000000001-1000000000001 1732000000000-1000000000001 !rolled_back")
	for _, text := range []string{"", " ", "1-1 0-1 ", "1-1 0-1 1 -1 x", "1-1 0-1 1 9 x", "1-1 1-1 1 1 x", "1-1 0-1 1 0 ", "1-1 0-1 !", "1-1 0-1 1 1 \n", "1-01 0-1 1 1 x"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		frame, ok := parseFrame("a", text)
		if !ok {
			return
		}
		head := frame.id.String() + " " + frame.prev.String() + " "
		switch {
		case frame.topic != "a" || !frame.prev.before(frame.id):
			t.Errorf("frame %+v", frame)
		case frame.mark != "":
			if text != head+"!"+string(frame.mark) {
				t.Errorf("%q became mark %q", text, frame.mark)
			}
		case checkEvent(frame.event) != nil || !utf8.ValidString(frame.event) || !utf8.ValidString(frame.data):
			t.Errorf("event %q, data %q", frame.event, frame.data)
		default:
			again, ok := parseFrame("a", head+payloadOf(frame.event, frame.data, frame.at))
			if !ok || again.event != frame.event || again.data != frame.data || !again.at.Equal(frame.at) {
				t.Errorf("%q became %+v", text, again)
			}
		}
	})
}

// FuzzCursorRoundTrip takes a cursor of any positions through its token.
func FuzzCursorRoundTrip(f *testing.F) {
	f.Add(uint64(0), uint64(0), uint64(0), uint64(0), "a", uint64(0), uint64(0), "b")
	f.Add(uint64(1732000000000), uint64(1)<<31, uint64(1732000000001), uint64(1)<<31+1, "news", uint64(1731999999999), uint64(7), "users/1")
	f.Add(uint64(1)<<63, ^uint64(0), ^uint64(0), uint64(0), "", uint64(1), ^uint64(0), "\x00")
	f.Fuzz(func(t *testing.T, allMS, allSeq, ms1, seq1 uint64, topic1 string, ms2, seq2 uint64, topic2 string) {
		c := cursor{all: msgID{allMS, allSeq}, topics: []position{
			{hashTopic(topic1), msgID{ms1, seq1}},
			{hashTopic(topic2), msgID{ms2, seq2}},
		}}
		token, _ := c.appendToken([]byte("id: "), nil)
		if strings.Trim(string(token[4:]), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			t.Errorf("token %q has characters that a header may not have", token)
		}
		got, ok := parseCursor(string(token[4:]))
		if !ok || got.all != c.all || !slices.Equal(got.topics, c.topics) {
			t.Errorf("cursor %v became %v, %t", c, got, ok)
		}
	})
}

// FuzzTopic compares checkTopic with what the documentation says, and takes an ID for
// the topic, which must be the same each time and within its bits.
func FuzzTopic(f *testing.F) {
	for _, topic := range []string{
		"", "*", "**", "default", "/", "users/123/notifications", "新闻", "a b", "a\nb", "a\x00", "\x7f", "\u0085", "\u009f", "\u00a0",
		"\xc2", "a\xc2", "\xff", "\xed\xa0\x80", "\u2028", "\uFEFF", "👩‍👩‍👧‍👦", strings.Repeat("x", 255), strings.Repeat("x", 256), strings.Repeat("é", 128),
	} {
		f.Add(topic)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		want := error(nil)
		switch {
		case topic == "*":
			want = ErrReserved
		case topic == "", len(topic) > 255, !utf8.ValidString(topic), strings.ContainsFunc(topic, unicode.IsControl):
			want = ErrInvalidTopic
		}
		if got := checkTopic(topic); !errors.Is(got, want) {
			t.Errorf("checkTopic(%q) = %v, want %v", topic, got, want)
		}
		if h := hashTopic(topic); h != hashTopic(strings.Clone(topic)) || h >= 1<<40 {
			t.Errorf("hashTopic(%q) = %x", topic, h)
		}
	})
}

// FuzzIngest reads any entry of a stream: what it goes to is a topic that may be published to, the
// log of a user, or everyone.
func FuzzIngest(f *testing.F) {
	f.Add("topic", "a", "data", "hello", "event", "note")
	f.Add("user", "ann", "data", "x", "topic", "*")
	f.Add("topic", "@user/ann", "data", "x", "event", "")
	f.Add("user", "\xff", "date", "x", "event", "pushlet.x")
	f.Add("", "", "data", "", "topic", "")
	in := &ingester{stream: "events", max: 100}
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2, n3, v3 string) {
		messages, err := in.parse(redis.XMessage{ID: "1-1", Values: map[string]any{n1: v1, n2: v2, n3: v3}})
		if err == nil && len(messages) == 0 || err != nil && len(messages) > 0 {
			t.Fatalf("%v, %v", messages, err)
		}
		for _, m := range messages {
			user, isUser := strings.CutPrefix(m.topic, userPrefix)
			switch {
			case isUser && checkUser(user) != nil, !isUser && m.topic != broadcastTopic && checkTopic(m.topic) != nil,
				checkEvent(m.event) != nil, len(m.data) > 100, !strings.HasPrefix(m.key, "events 1-1 "):
				t.Errorf("%+v", m)
			}
		}
	})
}

// FuzzCall reads any call of another instance.
func FuzzCall(f *testing.F) {
	f.Add(`{"user":"ann","why":"over","reply":"pushlet{0}:r:x"}`)
	f.Add(`{"client":"x"}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, text string) {
		if what, ok := parseCall(text); ok && (what.User == "" && what.Client == "" || what.Reply == "") {
			t.Errorf("%q: %+v", text, what)
		}
	})
}

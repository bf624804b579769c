package consumer_test

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/usual2970/pushlet/consumer"
)

// A decoded is an event, in short.
type decoded struct{ name, data, id string }

// decodeAll reads a stream to its end.
func decodeAll(t testing.TB, r io.Reader, maxSize int) (events []decoded, d *consumer.Decoder, err error) {
	t.Helper()
	d = consumer.NewDecoder(r)
	d.SetMaxSize(maxSize)
	for {
		m, err := d.Next()
		if err != nil {
			if _, again := d.Next(); !errors.Is(again, err) {
				t.Errorf("after %v comes %v", err, again)
			}
			return events, d, err
		}
		if m.Topic != "" || !m.Time.IsZero() || m.Gap != nil {
			t.Errorf("message %+v", m)
		}
		events = append(events, decoded{m.Event, m.Data, m.ID})
	}
}

// chunks cuts a stream.
type chunks struct {
	text string
	size int
}

func (c *chunks) Read(b []byte) (int, error) {
	if c.text == "" {
		return 0, io.EOF
	}
	n := copy(b, c.text[:min(c.size, len(c.text))])
	c.text = c.text[n:]
	return n, nil
}

// The bytes of the format tests of web-platform-tests (eventsource/format-*), and what a
// browser makes of them; then cases of our own.
func TestDecoder(t *testing.T) {
	long := strings.Repeat("x", 2048)
	msg := func(data string) decoded { return decoded{"message", data, ""} }
	for name, test := range map[string]struct {
		stream string
		want   []decoded
	}{
		"bom":                     {"\uFEFFdata:1\n\n\uFEFFdata:2\n\ndata:3\n\n", []decoded{msg("1"), msg("3")}},
		"bom-2":                   {"\uFEFF\uFEFFdata:1\n\ndata:2\n\ndata:3\n\n", []decoded{msg("2"), msg("3")}},
		"comments":                {"data:1\r:\x00\n:\r\ndata:2\n:" + long + "\rdata:3\n:data:fail\r:" + long + "\ndata:4\n\n", []decoded{msg("1\n2\n3\n4")}},
		"data-before-final-empty": {"retry:1000\ndata:test1\n\nid:test\ndata:test2", []decoded{msg("test1")}},
		"field-data":              {"data:\n\ndata\ndata\n\ndata:test\n\n", []decoded{msg(""), msg("\n"), msg("test")}},
		"field-event":             {"event:test\ndata:x\n\ndata:x\n\n", []decoded{{"test", "x", ""}, msg("x")}},
		"field-event-empty":       {"event: \ndata:data\n\n", []decoded{msg("data")}},
		"field-id":                {"id:1\ndata:a\n\ndata:b\n\nid:2\ndata:c\n\ndata:d\n\n", []decoded{{"message", "a", "1"}, {"message", "b", "1"}, {"message", "c", "2"}, {"message", "d", "2"}}},
		"field-id-2":              {"id:…\ndata:hello\n\n", []decoded{{"message", "hello", "…"}}},
		"field-id-3 resets":       {"id:1\ndata:1\n\nid:\ndata:2\n\ndata:3\n\n", []decoded{{"message", "1", "1"}, msg("2"), msg("3")}},
		"field-id-3 no colon":     {"id:1\ndata:1\n\nid\ndata:2\n\ndata:3\n\n", []decoded{{"message", "1", "1"}, msg("2"), msg("3")}},
		"field-id-null":           {"id:\x00\x00\ndata:a\n\nid:x\x00\ndata:b\n\nid:\x00x\ndata:c\n\nid:x\x00x\ndata:d\n\nid: \x00\ndata:e\n\n", []decoded{msg("a"), msg("b"), msg("c"), msg("d"), msg("e")}},
		"field-parsing":           {"data:\x00\ndata:  2\rData:1\ndata\x00:2\ndata:1\r\x00data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n", []decoded{msg("\x00\n 2\n1\n3\n\n4")}},
		"field-retry-empty":       {"retry\ndata:test\n\n", []decoded{msg("test")}},
		"field-unknown":           {"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n", []decoded{msg("test\n\ntest")}},
		"leading-space":           {"data:\ttest\rdata: \ndata:test\n\n", []decoded{msg("\ttest\n\ntest")}},
		"newlines":                {"data:test\r\ndata\ndata:test\r\n\r", []decoded{msg("test\n\ntest")}},
		"null-character":          {"data:\x00\n\n\n\n", []decoded{msg("\x00")}},
		"utf-8":                   {"data:ok…\n\n", []decoded{msg("ok…")}},
		"event-data":              {"data:msg\ndata: msg\n\n:\nfalsefield:msg\n\nfalsefield:msg\nData:data\n\ndata\n\ndata:end\n\n", []decoded{msg("msg\nmsg"), msg(""), msg("end")}},

		"empty":                  {"", nil},
		"only a BOM":             {"\uFEFF", nil},
		"BOM, then the end":      {"\uFEFF\n\n", nil},
		"half a BOM":             {"\xEF\xBB\ndata:1\n\n", []decoded{msg("1")}},
		"no end":                 {"data: a\n", nil},
		"CR alone ends an event": {"data: a\r\r", []decoded{msg("a")}},
		"CR LF CR":               {"data: a\r\n\rdata: b\r\n\r\n", []decoded{msg("a"), msg("b")}},
		"CR LF LF":               {"data: a\r\n\ndata: b\r\n\n", []decoded{msg("a"), msg("b")}},
		"LF CR":                  {"data: a\n\rdata: b\n\n", []decoded{msg("a"), msg("b")}},
		"event without data":     {"event: a\n\ndata: b\n\n", []decoded{msg("b")}},
		"the last name counts":   {"event: a\nevent: b\ndata\n\n", []decoded{{"b", "", ""}}},
		"colons":                 {"data: a:b: c\n\n", []decoded{msg("a:b: c")}},
		"space before the colon": {"data : a\ndata: b\n\n", []decoded{msg("b")}},
		"two spaces":             {"data:  a \n\n", []decoded{msg(" a ")}},
		"trailing LF in data":    {"data: a\ndata:\n\n", []decoded{msg("a\n")}},
		"id without an event":    {"id: 7\n\ndata: a\n\n", []decoded{{"message", "a", "7"}}},
		"id is kept over NUL":    {"id: 7\nid: a\x00\ndata\n\n", []decoded{{"message", "", "7"}}},
		"other separators":       {"data: a\u2028b\u0085c\vd\fe\n\n", []decoded{msg("a\u2028b\u0085c\vd\fe")}},

		// The Encoding Standard: one U+FFFD for each longest beginning of a character.
		"not UTF-8":       {"data: a\xFFb\xC0\xAFc\n\n", []decoded{msg("a\uFFFDb\uFFFD\uFFFDc")}},
		"cut characters":  {"data: \xE2\x82|\xF0\x9F\x92|\xC3|\xE2\n\n", []decoded{msg("\uFFFD|\uFFFD|\uFFFD|\uFFFD")}},
		"cut at the edge": {"data: \xF0\x90\x80|\xF4\x8F\xBF|\xE0\xA0|\xED\x9F\n\n", []decoded{msg("\uFFFD|\uFFFD|\uFFFD|\uFFFD")}},
		"surrogates":      {"data: \xED\xA0\x80\n\n", []decoded{msg("\uFFFD\uFFFD\uFFFD")}},
		"overlong":        {"data: \xE0\x80\xAF \xF0\x80\x80\xAF\n\n", []decoded{msg("\uFFFD\uFFFD\uFFFD \uFFFD\uFFFD\uFFFD\uFFFD")}},
		"beyond Unicode":  {"data: \xF4\x90\x80\x80 \xF5\x80\n\n", []decoded{msg("\uFFFD\uFFFD\uFFFD\uFFFD \uFFFD\uFFFD")}},
		"a real U+FFFD":   {"data: \uFFFD\xFF\n\n", []decoded{msg("\uFFFD\uFFFD")}},
		"edges of ranges": {"data: \xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF\xE0\xA0\x80\xFF\n\n", []decoded{msg("\uD7FF\uE000\U0010FFFF\u0800\uFFFD")}},
	} {
		t.Run(name, func(t *testing.T) {
			for size := 1; size <= len(test.stream)+1; size += 1 + size/16 {
				got, _, err := decodeAll(t, &chunks{test.stream, size}, 0)
				if !slices.Equal(got, test.want) || !errors.Is(err, io.EOF) {
					t.Fatalf("in chunks of %d: %q, %v; want %q", size, got, err, test.want)
				}
			}
			for name, r := range map[string]io.Reader{
				"data with the error": iotest.DataErrReader(strings.NewReader(test.stream)),
				"half of what fits":   iotest.HalfReader(strings.NewReader(test.stream)),
			} {
				if got, _, _ := decodeAll(t, r, 0); !slices.Equal(got, test.want) {
					t.Errorf("%s: %q, want %q", name, got, test.want)
				}
			}
		})
	}
}

func TestDecoderRetry(t *testing.T) {
	for stream, want := range map[string]time.Duration{
		"retry: 3000\n":                          3 * time.Second,
		"retry:03000\n":                          3 * time.Second,
		"retry:3000\nretry:1000x\n":              3 * time.Second,
		"retry:3000\nretry\nretry:\n":            3 * time.Second,
		"retry: 0\n":                             0,
		"retry: 1\nretry: 2\r":                   2 * time.Millisecond,
		"retry: 99999999999999999999999999999\n": math.MaxInt64 / 1_000_000 * 1_000_000,
		"retry: 10000000000000\n":                math.MaxInt64 / 1_000_000 * 1_000_000,
		"retry: -1\n":                            -1,
		"retry: +1\n":                            -1,
		"retry: 1.5\n":                           -1,
		"retry:  1\n":                            -1,
		"retry: 1 \n":                            -1,
		"retry: 1_000\n":                         -1,
		"retry: ٣\n":                             -1,
		"Retry: 1\n":                             -1,
		"retry: 1":                               -1,
	} {
		_, d, _ := decodeAll(t, strings.NewReader(stream), 0)
		if got, ok := d.Retry(); ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %v, %v; want %v", stream, got, ok, want)
		}
	}
}

// LastEventID is what is in force at the end of the last event, not of the last line.
func TestDecoderLastEventID(t *testing.T) {
	for stream, want := range map[string]string{
		"id: 1\n":                  "",
		"id: 1\n\n":                "1",
		"id: 1\n\nid: 2\n":         "1",
		"id: 1\ndata\n\nid: 2\n\n": "2",
		"id: 1\n\nid\n\n":          "",
	} {
		if _, d, _ := decodeAll(t, strings.NewReader(stream), 0); d.LastEventID() != want {
			t.Errorf("%q: %q, want %q", stream, d.LastEventID(), want)
		}
	}
}

// An event comes with its last byte: nothing waits for what follows it.
func TestDecoderDoesNotWait(t *testing.T) {
	for _, end := range []string{"\n\n", "\r\r", "\r\n\r", "\r\n\r\n"} {
		r, w := io.Pipe()
		go func() {
			for range 2 {
				io.WriteString(w, "data: a"+end)
			}
		}()
		d := consumer.NewDecoder(r)
		for range 2 {
			if m, err := d.Next(); err != nil || m.Data != "a" {
				t.Errorf("%q: %+v, %v", end, m, err)
			}
		}
		r.Close()
	}
}

func TestDecoderLimit(t *testing.T) {
	const limit = 100
	fits := decoded{"message", strings.Repeat("x", limit-len("data:")), ""}
	for name, test := range map[string]struct {
		stream string
		want   []decoded
	}{
		"a line that fits":          {"data:" + fits.data + "\n\n", []decoded{fits}},
		"a line that does not":      {"data\n\ndata: " + fits.data + "\n\ndata\n\n", []decoded{{"message", "", ""}}},
		"a comment that does not":   {"data\n\n:" + strings.Repeat("x", limit) + "\n\ndata\n\n", []decoded{{"message", "", ""}}},
		"a line without end":        {strings.Repeat("x", 10*limit), nil},
		"an event of many lines":    {"data\n\n" + strings.Repeat("data:xxxxxxxxx\n", 11) + "\ndata\n\n", []decoded{{"message", "", ""}}},
		"an event that just fits":   {strings.Repeat("data:xxxxxxxxx\n", 10) + "\n", []decoded{{"message", strings.Repeat("xxxxxxxxx\n", 9) + "xxxxxxxxx", ""}}},
		"many events":               {strings.Repeat("data:xxxxxxxxx\n\n", 40), slices.Repeat([]decoded{{"message", "xxxxxxxxx", ""}}, 40)},
		"many empty data lines":     {strings.Repeat("data\n", 10*limit), nil},
		"the end without a newline": {strings.Repeat("x", limit+1), nil},
	} {
		_, tooLarge := map[string]bool{"a line that fits": true, "an event that just fits": true, "many events": true}[name]
		for size := 1; size < 300; size++ {
			got, _, err := decodeAll(t, &chunks{test.stream, size}, limit)
			if !slices.Equal(got, test.want) || errors.Is(err, consumer.ErrTooLarge) == tooLarge {
				t.Fatalf("%s in chunks of %d: %q, %v; want %q", name, size, got, err, test.want)
			}
		}
	}
	// A large one, by default.
	large := strings.Repeat("x", consumer.DefaultMaxSize-10)
	got, _, err := decodeAll(t, strings.NewReader("data:"+large+"\n\ndata: b\n\n"), 0)
	if !slices.Equal(got, []decoded{{"message", large, ""}, {"message", "b", ""}}) || !errors.Is(err, io.EOF) {
		t.Errorf("%d events, %v", len(got), err)
	}
}

func TestDecoderErrors(t *testing.T) {
	broken := errors.New("broken")
	got, _, err := decodeAll(t, io.MultiReader(strings.NewReader("data: a\n\ndata: b\n"), iotest.ErrReader(broken)), 0)
	if !errors.Is(err, broken) || !slices.Equal(got, []decoded{{"message", "a", ""}}) {
		t.Errorf("%q, %v", got, err)
	}
	if _, _, err := decodeAll(t, lazy{}, 0); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("%v from a reader that does nothing", err)
	}
}

type lazy struct{}

func (lazy) Read([]byte) (int, error) { return 0, nil }

// FuzzDecoder reads any bytes, as a whole and cut: the same comes out.
func FuzzDecoder(f *testing.F) {
	for _, s := range []string{
		"", "data: a\n\n", "\uFEFFdata:1\r\n\r\nid:2\rretry:3\r\r", "\xEF\xBBdata", "event: \x00\ndata: \xF0\x9F\n\n:c\n",
		"data\r\r\n\n\rdata\n\r\n", "id:\x00\nid:1\n\nid:2", strings.Repeat("data:xxxxxxxxxxxxxxx\n", 9),
	} {
		f.Add(s, uint16(0), uint8(1))
		f.Add(s, uint16(30), uint8(3))
	}
	f.Fuzz(func(t *testing.T, stream string, limit uint16, size uint8) {
		want, d, err := decodeAll(t, strings.NewReader(stream), int(limit))
		got, cut, cutErr := decodeAll(t, &chunks{stream, 1 + int(size)}, int(limit))
		retry, asked := d.Retry()
		cutRetry, cutAsked := cut.Retry()
		if !slices.Equal(got, want) || fmt.Sprint(err) != fmt.Sprint(cutErr) ||
			d.LastEventID() != cut.LastEventID() || retry != cutRetry || asked != cutAsked {
			t.Errorf("as a whole %q, %v, %q, %v; cut %q, %v, %q, %v", want, err, d.LastEventID(), retry, got, cutErr, cut.LastEventID(), cutRetry)
		}
		for _, e := range want {
			if e.name == "" || strings.ContainsAny(e.name+e.id, "\r\n") || strings.ContainsAny(e.data, "\r") || strings.Contains(e.id, "\x00") {
				t.Errorf("event %q", e)
			}
		}
	})
}

func BenchmarkDecoder(b *testing.B) {
	for _, size := range []int{100, 10_000, 1_000_000} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			stream := strings.Repeat("id: AQIDBAUGBwgJ\nevent: message\ndata: "+strings.Repeat("x", size)+"\n\n", 100)
			b.SetBytes(int64(len(stream)))
			b.ReportAllocs()
			for b.Loop() {
				d := consumer.NewDecoder(strings.NewReader(stream))
				for {
					if _, err := d.Next(); err != nil {
						break
					}
				}
			}
		})
	}
}

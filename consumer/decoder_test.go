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

// chunks cuts a stream in pieces of these sizes, over and over. A 0 is a read of nothing.
type chunks struct {
	text  string
	sizes []int
	next  int
}

func inChunks(text string, sizes ...int) *chunks { return &chunks{text: text, sizes: sizes} }

func (c *chunks) Read(b []byte) (int, error) {
	if c.text == "" {
		return 0, io.EOF
	}
	n := copy(b, c.text[:min(c.sizes[c.next%len(c.sizes)], len(c.text))])
	c.text = c.text[n:]
	c.next++
	return n, nil
}

// checkStream decodes a stream as a whole, byte by byte, and cut in two at every byte. It
// returns a Decoder that has read it.
func checkStream(t *testing.T, stream string, want []decoded) *consumer.Decoder {
	t.Helper()
	check := func(how string, r io.Reader) *consumer.Decoder {
		t.Helper()
		got, d, err := decodeAll(t, r, 0)
		if !slices.Equal(got, want) || !errors.Is(err, io.EOF) {
			t.Errorf("%s: %q, %v; want %q", how, got, err, want)
		}
		return d
	}
	check("byte by byte", inChunks(stream, 1))
	for at := range len(stream) {
		check(fmt.Sprintf("cut at %d", at), inChunks(stream, at, len(stream)))
	}
	check("data with the error", iotest.DataErrReader(strings.NewReader(stream)))
	check("half of what fits", iotest.HalfReader(strings.NewReader(stream)))
	return check("as a whole", strings.NewReader(stream))
}

// Beyond the cases of TestWPTFormat.
func TestDecoder(t *testing.T) {
	msg := func(data string) decoded { return decoded{"message", data, ""} }
	for name, test := range map[string]struct {
		stream string
		want   []decoded
	}{
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
			checkStream(t, test.stream, test.want)
		})
	}
}

func TestDecoderRetry(t *testing.T) {
	for stream, want := range map[string]time.Duration{
		"retry: 3000\n":                          3 * time.Second,
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
			got, _, err := decodeAll(t, inChunks(test.stream, size), limit)
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

// sizesOf are the sizes of chunks that fuzzing has chosen.
func sizesOf(cuts []byte) []int {
	sizes := []int{1}
	for _, n := range cuts {
		if n > 0 || sizes[len(sizes)-1] > 0 { // a reader that does nothing for long is an error
			sizes = append(sizes, int(n))
		}
	}
	return sizes
}

// outcome decodes a stream.
func outcome(t testing.TB, r io.Reader, maxSize int) (p parsed, err error) {
	t.Helper()
	events, d, err := decodeAll(t, r, maxSize)
	p = parsed{events, d.LastEventID(), -1}
	if retry, ok := d.Retry(); ok {
		p.retry = retry
	}
	return p, err
}

// FuzzDecoder reads any bytes, as a whole and cut anyhow: the same comes out, and it is what the
// reference says.
func FuzzDecoder(f *testing.F) {
	for _, s := range []string{
		"", "data: a\n\n", "\uFEFFdata:1\r\n\r\nid:2\rretry:3\r\r", "\xEF\xBBdata", "event: \x00\ndata: \xF0\x9F\n\n:c\n",
		"data\r\r\n\n\rdata\n\r\n", "id:\x00\nid:1\n\nid:2", strings.Repeat("data:xxxxxxxxxxxxxxx\n", 9),
		"event:a\n\nevent\ndata:\xED\xA0\x80\xE2\x82\n\n", "retry:5\nretry:+6\nretry:7x\nretry:\n",
		"retry: 99999999999999999999\n", "event:a\n\ndata\n\n",
	} {
		f.Add([]byte(s), uint16(0), []byte{2})
		f.Add([]byte(s), uint16(30), []byte{4, 0, 1})
	}
	f.Fuzz(func(t *testing.T, b []byte, limit uint16, cuts []byte) {
		stream := string(b)
		want, err := outcome(t, strings.NewReader(stream), int(limit))
		got, cutErr := outcome(t, inChunks(stream, sizesOf(cuts)...), int(limit))
		if !got.equal(want) || fmt.Sprint(err) != fmt.Sprint(cutErr) {
			t.Errorf("as a whole %+v, %v; cut %+v, %v", want, err, got, cutErr)
		}
		if r := reference(stream); errors.Is(err, io.EOF) && !want.equal(r) {
			t.Errorf("%+v, the reference %+v", want, r)
		}
		for _, e := range want.events {
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

package pushlet_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/usual2970/pushlet"
)

// Clients that break the protocol or its limits: each is ended with the right code, and
// nobody else notices.

// wsWitness is a client that gets a message now and then while others misbehave.
type wsWitness struct {
	c *wsClient
	n int
}

func (s *wsServer) witness() *wsWitness {
	s.t.Helper()
	w := &wsWitness{c: s.connect("?topic=witness")}
	w.c.expect("witness", "pushlet.subscribed", "")
	return w
}

// isWell publishes a message, which must be the next that the witness gets.
func (w *wsWitness) isWell() {
	w.c.s.t.Helper()
	w.n++
	w.c.s.publish("witness", fmt.Sprint(w.n))
	w.c.expect("witness", "message", fmt.Sprint(w.n))
}

const (
	wsDefaultLimit = 64 << 10 // of a command
	wsDeflateOffer = "permessage-deflate; client_max_window_bits"
)

func TestWebSocketHostile(t *testing.T) {
	s := wsServe(t, pushlet.WithCompression())
	witness := s.witness()
	frame := func(first byte, payload string) func(*wsRaw) {
		return func(r *wsRaw) { r.frame(first, []byte(payload)) }
	}
	bytesOf := func(parts ...[]byte) func(*wsRaw) {
		return func(r *wsRaw) { r.write(bytes.Join(parts, nil)) }
	}
	claims := func(first byte, size uint64) func(*wsRaw) { return bytesOf(wsMaskedHeader(first, size)) }
	ping := []byte(`{"action":"ping"}`)
	garbage := make([]byte, 1000)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(garbage)

	type hostile struct {
		name    string
		deflate bool
		write   func(*wsRaw)
		code    int
	}
	tests := []hostile{
		{"RSV1 without compression", false, frame(wsFin|wsRSV1|wsText, "x"), 1002},
		{"RSV2", false, frame(wsFin|0x20|wsText, "x"), 1002},
		{"RSV3", true, frame(wsFin|0x10|wsBinary, "x"), 1002},
		{"unmasked", false, bytesOf([]byte{wsFin | wsText, byte(len(ping))}, ping), 1002},
		{"unmasked ping", false, bytesOf([]byte{wsFin | wsPing, 0}), 1002},
		{"fragmented ping", false, frame(wsPing, "x"), 1002},
		{"fragmented pong", false, frame(wsPong, "x"), 1002},
		{"fragmented close", false, frame(wsClose, "\x03\xe8"), 1002},
		{"long ping", false, frame(wsFin|wsPing, strings.Repeat("x", 126)), 1002},
		{"long close", false, claims(wsFin|wsClose, 1<<40), 1002},
		{"continuation of nothing", false, frame(wsFin|wsCont, "x"), 1002},
		{"text within a text", false, bytesOf(wsMasked(wsText, []byte("{")), wsMasked(wsFin|wsText, ping)), 1002},
		{"all bits", false, bytesOf(bytes.Repeat([]byte{0xff}, 1000)), 1002},
		{"no bits", false, bytesOf(make([]byte, 1000)), 1002},
		{"HTTP again", false, bytesOf([]byte(wsRequest("GET", ""))), 1002},
		{"close reason not UTF-8", false, frame(wsFin|wsClose, "\x03\xe8\xff"), 1002},

		{"text not UTF-8", false, frame(wsFin|wsText, "{\"action\":\"ping\",\"topic\":\"\xff\"}"), 1007},
		{"text with a surrogate", false, frame(wsFin|wsText, "\xed\xa0\x80"), 1007},
		{"text that ends within a rune", false, bytesOf(wsMasked(wsText, []byte("\xe6")), wsMasked(wsFin|wsCont, []byte("\xb1"))), 1007},
		{"compressed text not UTF-8", true, frame(wsFin|wsRSV1|wsText, string(wsDeflate([]byte("\xff")))), 1007},
		{"compressed garbage", true, frame(wsFin|wsRSV1|wsBinary, string(garbage)), 1007},
		{"reserved block type", true, frame(wsFin|wsRSV1|wsBinary, "\x07"), 1007},
		{"compressed data with a hole", true, frame(wsFin|wsRSV1|wsBinary, string(wsDeflate(garbage)[:500])), 1007},
		{"distance before the beginning", true, frame(wsFin|wsRSV1|wsBinary, "\x4a\x04\x62\x00"), 1007},

		{"command over the limit", false, frame(wsFin|wsText, strings.Repeat("x", wsDefaultLimit+1)), 1009},
		{"fragments over the limit", false, bytesOf(wsMasked(wsText, make([]byte, wsDefaultLimit)), wsMasked(wsFin|wsCont, []byte("x"))), 1009},
		{"claims to be over the limit", false, claims(wsFin|wsText, wsDefaultLimit+1), 1009},
		{"claims 2^31", false, claims(wsFin|wsText, 1<<31), 1009},
		{"claims 2^32", true, claims(wsFin|wsRSV1|wsText, 1<<32), 1009},
		{"claims 2^62", false, claims(wsFin|wsBinary, 1<<62), 1009},
		{"claims 2^63-1", false, claims(wsFin|wsBinary, 1<<63-1), 1009},
		{"claims 2^63", false, claims(wsFin|wsBinary, 1<<63), 1009},
		{"claims 2^64-1", true, claims(wsFin|wsText, 1<<64-1), 1009},
		{"fragments claim 2^63 together", false, bytesOf(wsMasked(wsBinary, []byte("x")), wsMaskedHeader(wsCont, 1<<63-1)), 1009},
		{"over the limit once decompressed", true, frame(wsFin|wsRSV1|wsText, string(wsDeflate(make([]byte, wsDefaultLimit+1)))), 1009},
		{"over the limit before it is decompressed", true, frame(wsFin|wsRSV1|wsText, strings.Repeat("x", wsDefaultLimit+1)), 1009},

		{"flood of commands", false, bytesOf(bytes.Repeat(wsMasked(wsFin|wsText, ping), 2000)), 1008},
		{"flood of empty messages", false, bytesOf(bytes.Repeat(wsMasked(wsFin|wsBinary, nil), 2000)), 1008},
		{"flood of pings", false, bytesOf(bytes.Repeat(wsMasked(wsFin|wsPing, nil), 2000)), 1008},
		{"flood of pings within a message", true, bytesOf(wsMasked(wsText, []byte("{")), bytes.Repeat(wsMasked(wsFin|wsPing, nil), 2000)), 1008},
		{"flood of pings within a compressed message", true, bytesOf(wsMasked(wsRSV1|wsText, nil), bytes.Repeat(wsMasked(wsFin|wsPing, nil), 2000)), 1008},

		{"the end within a header", false, func(r *wsRaw) { r.write([]byte{wsFin | wsText}); r.Close() }, 1006},
		{"the end within a payload", false, func(r *wsRaw) { r.write(wsMaskedHeader(wsFin|wsText, 9)); r.Close() }, 1006},
		{"the end within a message", false, func(r *wsRaw) { r.frame(wsText, ping); r.Close() }, 1006},
		{"the end within a compressed message", true, func(r *wsRaw) { r.frame(wsRSV1|wsText, wsDeflate(ping)); r.Close() }, 1006},
	}
	for _, opcode := range []byte{0x3, 0x4, 0x5, 0x6, 0x7, 0xb, 0xc, 0xd, 0xe, 0xf} {
		tests = append(tests, hostile{fmt.Sprintf("opcode %#x", opcode), false, frame(wsFin|opcode, "x"), 1002})
	}
	for _, code := range []uint16{0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535} {
		close := string(binary.BigEndian.AppendUint16(nil, code))
		tests = append(tests, hostile{fmt.Sprintf("close code %d", code), false, frame(wsFin|wsClose, close), 1002})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var header []string
			if test.deflate {
				header = []string{wsExtensions, wsDeflateOffer}
			}
			r := s.raw("?topic=hostile", header...)
			r.expect("hostile", "pushlet.subscribed", "")
			test.write(r)
			if code := r.closed(); code != test.code {
				t.Errorf("close code %d, want %d", code, test.code)
			}
			want := pushlet.ReasonProtocol
			if test.code == 1006 {
				want = pushlet.ReasonClientClosed
			}
			if end := s.end(); end.reason != want {
				t.Errorf("reason %q, want %q", end.reason, want)
			}
			witness.isWell()
		})
	}
	if st := s.Stats(); st.Clients != 1 {
		t.Errorf("%d clients are left, want the witness", st.Clients)
	}
}

// What RFC 6455 and RFC 7692 forbid and gorilla lets pass, without harm: half a close code
// (section 5.5.1) counts as none, and once compression is negotiated RSV1 (section 6.1) is
// ignored where it has no meaning.
func TestWebSocketLaxParser(t *testing.T) {
	s := wsServe(t, pushlet.WithCompression())
	r := s.raw("", wsExtensions, wsDeflateOffer)
	r.frame(wsFin|wsRSV1|wsPing, []byte("x"))
	if w := r.read(); w.first != wsFin|wsPong || string(w.payload) != "x" {
		t.Errorf("frame %#x %q, want a pong", w.first, w.payload)
	}
	r.frame(wsText, []byte(`{"action":`))
	r.frame(wsFin|wsRSV1|wsCont, []byte(`"ping"}`))
	r.expect("", "pushlet.pong", "")
	r.frame(wsFin|wsClose, []byte{3})
	wsExpectEcho(t, r, websocket.CloseNoStatusReceived)
}

// What looks odd and is allowed.
func TestWebSocketUnusualButCorrect(t *testing.T) {
	s := wsServe(t, pushlet.WithCompression())
	r := s.raw("", wsExtensions, wsDeflateOffer)
	pong := func() { t.Helper(); r.expect("", "pushlet.pong", "") }

	t.Run("fragments with pings between", func(t *testing.T) {
		command := []byte(`{"action":"subscribe","topic":"漢字"}`)
		for i := range command { // cuts the runes too
			first := byte(wsCont)
			if i == 0 {
				first = wsText
			}
			r.frame(first, command[i:i+1])
			r.frame(wsFin|wsPing, fmt.Appendf(nil, "ping %d", i))
			if w := r.read(); w.opcode() != wsPong || string(w.payload) != fmt.Sprintf("ping %d", i) {
				t.Fatalf("frame %#x %q, want the pong %d", w.first, w.payload, i)
			}
		}
		r.frame(wsFin|wsCont, nil)
		r.expect("漢字", "pushlet.subscribed", "")
	})
	t.Run("one byte at a time", func(t *testing.T) {
		for _, b := range wsMasked(wsFin|wsBinary, []byte(`{"action":"ping"}`)) {
			r.write([]byte{b})
		}
		pong()
	})
	t.Run("lengths not in their shortest form", func(t *testing.T) {
		command := []byte(`{"action":"ping"}`)
		r.write(append([]byte{wsFin | wsText, wsMask | 126, 0, byte(len(command)), 0, 0, 0, 0}, command...))
		pong()
		r.write(append([]byte{wsFin | wsText, wsMask | 127, 0, 0, 0, 0, 0, 0, 0, byte(len(command)), 0, 0, 0, 0}, command...))
		pong()
	})
	t.Run("as long as allowed", func(t *testing.T) {
		command := `{"action":"ping"` + strings.Repeat(" ", wsDefaultLimit-len(`{"action":"ping"}`)) + "}"
		r.text("%s", command)
		pong()
		r.frame(wsFin|wsRSV1|wsText, wsDeflate([]byte(command)))
		pong()
	})
	t.Run("pings and unasked pongs", func(t *testing.T) {
		for _, payload := range []string{"", "x", strings.Repeat("x", 125), "\xff\x00"} {
			r.frame(wsFin|wsPong, []byte(payload))
			r.frame(wsFin|wsPing, []byte(payload))
			if w := r.read(); w.first != wsFin|wsPong || string(w.payload) != payload {
				t.Fatalf("frame %#x %q, want a pong with %q", w.first, w.payload, payload)
			}
		}
	})
	t.Run("binary that is not UTF-8", func(t *testing.T) {
		r.frame(wsFin|wsBinary, []byte("{\"action\":\"subscribe\",\"topic\":\"\xff\"}"))
		r.expect("\ufffd", "pushlet.subscribed", "")
		r.frame(wsFin|wsBinary, []byte("{\"action\":\"\xff\"}"))
		if m := r.next(); m.Event != "pushlet.error" {
			t.Errorf("got %+v, want an error", m)
		}
	})
}

// Clients that stop in the middle of something hold up nobody, not even Shutdown, which
// the server's cleanup checks.
func TestWebSocketStalls(t *testing.T) {
	s := wsServe(t)
	witness := s.witness()
	request := wsRequest(http.MethodGet, "?topic=t")
	for _, sent := range []string{"", "GET /ws", request[:len(request)/2], request[:len(request)-2]} {
		conn, err := s.dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, sent)
		witness.isWell()
	}
	stalls := [][]byte{
		{wsFin | wsText},
		wsMaskedHeader(wsFin|wsText, 1<<15)[:6],
		wsMaskedHeader(wsFin|wsText, 100),
		wsMasked(wsFin|wsText, make([]byte, 100))[:50],
		wsMasked(wsText, []byte("{")),
		wsMasked(wsFin|wsPing, make([]byte, 125))[:100],
	}
	for _, sent := range stalls {
		r := s.raw("?topic=t")
		r.expect("t", "pushlet.subscribed", "")
		r.write(sent)
		s.publish("t", "still served")
		r.expect("t", "message", "still served")
		witness.isWell()
	}
	if st := s.Stats(); st.WebSocket != 1+len(stalls) {
		t.Errorf("%d WebSocket clients, want %d", st.WebSocket, 1+len(stalls))
	}
}

// wsHeap is how many bytes the objects on the heap take, dead ones included.
func wsHeap() int64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

// A client that asks and asks and reads no answer is ended before it costs much.
func TestWebSocketFloodWithoutReading(t *testing.T) {
	const queue = 1 << 30 // answers have a limit of their own
	long := strings.Repeat("x", 240)
	topics := func(n int) string {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf("%q", fmt.Sprint(long, i))
		}
		return strings.Join(list, ",")
	}
	for name, command := range map[string]string{
		"subscribe":   `{"action":"subscribe","topics":[` + topics(100) + `]}`,
		"unsubscribe": `{"action":"unsubscribe","topics":[` + topics(100) + `]}`,
		"bad topics":  `{"action":"subscribe","topics":[` + strings.Repeat(`"\n`+long+`",`, 99) + `""]}`,
		"replay":      `{"action":"subscribe","topic":"history","since":"0-1"}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := wsServeSmall(t, pushlet.WithQueue(8192, queue), pushlet.WithCommandRate(1e9, 1e9))
			witness := s.witness()
			for range 500 {
				s.publish("history", strings.Repeat("h", 1<<10))
			}
			r := s.raw("")
			flood := bytes.Repeat(wsMasked(wsFin|wsText, []byte(command)), 20)
			runtime.GC()
			before, peak := wsHeap(), int64(0)
			deadline := time.Now().Add(wsPatience)
			for ended := false; !ended; {
				r.SetWriteDeadline(time.Now().Add(wsPatience))
				if _, err := r.Write(flood); wsIsTimeout(err) {
					t.Fatal("the server neither reads nor ends the connection")
				}
				peak = max(peak, wsHeap()-before)
				select {
				case end := <-s.ended:
					ended = true
					if end.reason != pushlet.ReasonSlow {
						t.Errorf("reason %q, want %q", end.reason, pushlet.ReasonSlow)
					}
				default:
				}
				if time.Now().After(deadline) {
					t.Fatalf("the flood goes on; %v", s.Stats())
				}
			}
			if peak > 16<<20 {
				t.Errorf("%d MiB in use at most", peak>>20)
			}
			t.Logf("%d MiB in use at most", peak>>20)
			witness.isWell()
		})
	}
}

// A small frame that becomes 50 MiB is refused without becoming it.
func TestWebSocketBomb(t *testing.T) {
	s := wsServe(t, pushlet.WithCompression())
	witness := s.witness()
	mebibyte := wsDeflate(bytes.Repeat([]byte(" "), 1<<20))
	mebibyte = append(mebibyte, "\x00\x00\xff\xff"...) // so that another may follow
	bomb := wsMasked(wsFin|wsRSV1|wsText, bytes.Repeat(mebibyte, 50))
	if len(bomb) > wsDefaultLimit {
		t.Fatalf("the bomb has %d bytes, which is over the limit in itself", len(bomb))
	}
	const bombs = 4
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range bombs {
		r := s.raw("", wsExtensions, wsDeflateOffer)
		r.write(bomb)
		if code := r.closed(); code != websocket.CloseMessageTooBig {
			t.Errorf("close code %d, want 1009", code)
		}
		witness.isWell()
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / bombs; each > 1<<20 {
		t.Errorf("a bomb makes the server allocate %d KiB", each>>10)
	} else {
		t.Logf("a bomb makes server and client allocate %d KiB", each>>10)
	}
}

// Under load, with pings, commands, broken frames and Shutdown at random moments, frames
// stay whole: a control frame is never within a data frame, and nothing follows a close.
func TestWebSocketFramesStayWhole(t *testing.T) {
	const clients = 6
	for round := range 4 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			s := wsServeSmall(t, pushlet.WithCompression(), pushlet.WithCommandRate(1e9, 1e9),
				pushlet.WithQueue(100, 256<<10), pushlet.WithHistory(200, 256<<10, time.Hour))
			stop := make(chan struct{})
			var publishing, reading sync.WaitGroup
			publishing.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					size := 1 << rand.IntN(15)
					_ = s.Publish("t", "", strings.Repeat(fmt.Sprint(n%10), rand.IntN(size+1))) // until Stop
					if n%10 == 0 {
						s.Stats() // waits for the broker
					}
				}
			})
			enough := make(chan struct{}, clients)
			for i := range clients {
				k := &wsChecker{t: t, breaks: i == 0, enough: enough}
				var header []string
				if i%2 == 1 {
					header = []string{wsExtensions, wsDeflateOffer}
				}
				k.r = s.raw("?topic=t", header...)
				reading.Go(k.run)
			}
			for range clients {
				select {
				case <-enough:
				case <-time.After(wsPatience):
					t.Error("a client gets nothing")
				}
			}
			if err := s.Stop(); err != nil {
				t.Errorf("Stop: %v", err)
			}
			close(stop)
			publishing.Wait()
			reading.Wait()
		})
	}
}

// A wsChecker reads strictly and sends pings, whose pongs must come in order, and commands.
type wsChecker struct {
	t      *testing.T
	r      *wsRaw
	breaks bool // breaks the protocol in the end
	enough chan<- struct{}

	pings, pongs, data int
}

func (k *wsChecker) run() {
	const frames = 150
	for {
		w, err := k.r.tryRead()
		if err != nil {
			k.t.Errorf("no close frame after %d data frames: %v", k.data, err)
			return
		}
		switch w.opcode() {
		case wsClose:
			k.r.frame(wsFin|wsClose, w.payload)
			k.r.hangUp()
			broken := k.breaks && w.code() == websocket.CloseProtocolError // Shutdown may come first
			if w.code() != websocket.CloseGoingAway && !broken {
				k.t.Errorf("close code %d %q", w.code(), w.payload)
			}
			return
		case wsPing:
			k.r.frame(wsFin|wsPong, w.payload)
			continue
		case wsPong:
			if want := fmt.Sprintf("%0100d", k.pongs); string(w.payload) != want {
				k.t.Errorf("pong %q, want %q", w.payload, want)
			}
			k.pongs++
			continue
		}
		m := wsDecode(k.t, w.body(k.t))
		if m.Event == "message" && m.Data != "" && strings.Trim(m.Data, m.Data[:1]) != "" {
			k.t.Errorf("message with mixed data: %.100q", m.Data)
		}
		if k.data++; k.data == frames {
			k.enough <- struct{}{}
			if k.breaks {
				k.r.frame(wsFin|0x7, nil)
			}
		}
		switch k.data % 4 {
		case 0:
			k.r.frame(wsFin|wsPing, fmt.Appendf(nil, "%0100d", k.pings))
			k.pings++
		case 2:
			k.r.text(`{"action":"ping"}`)
		}
	}
}

package pushlet_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/usual2970/pushlet"
)

// permessage-deflate (RFC 7692) with WithCompression: each message compressed once, for all.

const wsAgreed = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

func TestWebSocketCompressionNegotiation(t *testing.T) {
	for _, test := range []struct {
		offer string
		on    bool
		want  string
	}{
		{"permessage-deflate", true, wsAgreed},
		{"permessage-deflate; client_max_window_bits", true, wsAgreed},
		{"permessage-deflate; client_max_window_bits=12; client_no_context_takeover", true, wsAgreed},
		{"permessage-deflate; server_no_context_takeover", true, wsAgreed},
		{"x-webkit-deflate-frame, permessage-deflate", true, wsAgreed},
		{"permessage-bzip2", true, ""},
		{"", true, ""},
		{"permessage-deflate", false, ""},
	} {
		t.Run(fmt.Sprintf("%s on=%t", test.offer, test.on), func(t *testing.T) {
			var options []pushlet.Option
			if test.on {
				options = append(options, pushlet.WithCompression())
			}
			s := wsServe(t, options...)
			r, answer := s.handshake(http.MethodGet, "?topic=t", wsExtensions, test.offer)
			if got := answer.header.Get(wsExtensions); got != test.want {
				t.Fatalf("agreed on %q, want %q", got, test.want)
			}
			r.expect("t", "pushlet.subscribed", "")
			s.publish("t", strings.Repeat("compress me ", 100))
			w := r.read()
			if compressed := w.first&wsRSV1 != 0; compressed != (test.want != "") {
				t.Errorf("compressed: %t, agreed on %q", compressed, test.want)
			}
			wsDecode(t, w.body(t))
		})
	}
}

// A client whose window is small says so. RFC 7692, section 7.1.2.1: a server that does not
// support that declines the offer, or it would send what the client cannot decompress.
func TestWebSocketCompressionSmallWindow(t *testing.T) {
	s := wsServe(t, pushlet.WithCompression())
	for _, offer := range []string{
		"permessage-deflate; server_max_window_bits=9",
		`permessage-deflate; client_max_window_bits; server_max_window_bits="10"`,
		"permessage-deflate; server_max_window_bits=9, permessage-deflate", // the second may be agreed on
	} {
		r, answer := s.handshake(http.MethodGet, "?topic=t", wsExtensions, offer)
		agreed := answer.header.Get(wsExtensions)
		if agreed != "" && (agreed != wsAgreed || strings.Count(offer, "permessage-deflate") < 2) {
			t.Errorf("offered %q, agreed on %q", offer, agreed)
		}
		r.expect("t", "pushlet.subscribed", "")
	}
}

// wsPayloads are data of all kinds that come near the limits of the encoding.
func wsPayloads() map[string]string {
	random := make([]byte, 48<<10)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(random)
	payloads := map[string]string{
		"empty":          "",
		"short":          "hi",
		"just too short": strings.Repeat("a", 50),
		"repeating":      strings.Repeat("ab", 10_000),
		"JSON":           `{"user":"ada","items":[` + strings.Repeat(`{"id":1,"name":"thing"},`, 200) + `{}]}`,
		"chinese":        strings.Repeat("双协议支持 - 同时支持 SSE 和 WebSocket 协议。", 50),
		"random":         base64.StdEncoding.EncodeToString(random),
		"control bytes":  strings.Repeat("\x00\x01\r\n\"\\", 1000),
		"large":          strings.Repeat("The quick brown fox. ", 1<<18/21),
	}
	for n := 20; n < 140; n += 7 { // around the shortest that are compressed
		payloads[fmt.Sprint(n, " bytes")] = base64.StdEncoding.EncodeToString(random[:n])
	}
	return payloads
}

func TestWebSocketCompressedMessages(t *testing.T) {
	s := wsServe(t, pushlet.WithCompression())
	deflate := []string{wsExtensions, wsDeflateOffer}
	text := append([]string{wsSubproto, "pushlet.text"}, deflate...)
	clients := map[string]*wsClient{
		"binary":      s.connect("?topic=t", deflate...),
		"text":        s.connect("?topic=t", text...),
		"plain":       s.connect("?topic=t"),
		"plain text":  s.connect("?topic=t", wsSubproto, "pushlet.text"),
		"by commands": s.connect("", deflate...),
	}
	raw := map[string]*wsRaw{
		"binary": s.raw("?topic=t", deflate...),
		"text":   s.raw("?topic=t", text...),
	}
	for _, c := range clients {
		if c.response.Header.Get(wsExtensions) == "" {
			continue
		}
		c.EnableWriteCompression(true)
	}
	clients["by commands"].subscribe("t") // in a compressed command
	for name, c := range clients {
		if name != "by commands" {
			c.expect("t", "pushlet.subscribed", "")
		}
	}
	for _, r := range raw {
		r.expect("t", "pushlet.subscribed", "")
	}
	check := func(name, topic, data string) {
		t.Helper()
		for _, c := range clients {
			c.expect(topic, "message", data)
		}
		for kind, r := range raw {
			w := r.read()
			if m := wsDecode(t, w.body(t)); m.Topic != topic || m.Data != data {
				t.Fatalf("%s, %s: got %.100q for topic %q", name, kind, m.Data, m.Topic)
			}
			if want := map[string]byte{"binary": wsBinary, "text": wsText}[kind]; w.opcode() != want {
				t.Errorf("%s, %s: opcode %#x", name, kind, w.opcode())
			}
			compressed := w.first&wsRSV1 != 0
			// Where it begins to pay is the library's to choose, between these.
			if plain := len(w.body(t)); plain < 128 && compressed || plain > 512 && !compressed {
				t.Errorf("%s, %s: compressed: %t, with %d bytes of JSON", name, kind, compressed, plain)
			} else if w.size > plain+plain/100+50 {
				t.Errorf("%s, %s: %d bytes on the wire for %d bytes of JSON", name, kind, w.size, plain)
			}
		}
	}
	for name, data := range wsPayloads() {
		s.publish("t", data)
		check(name, "t", data)
		s.broadcast("", data)
		check(name+", broadcast", "*", data)
	}
}

// What one client gets is byte for byte what another gets, live or from history: the bytes
// are made once.
func TestWebSocketCompressedOnce(t *testing.T) {
	s := wsServe(t, pushlet.WithCompression(), pushlet.WithHistory(1000, 16<<20, time.Hour))
	offers := []string{wsDeflateOffer, "permessage-deflate", wsDeflateOffer}
	var live []*wsRaw
	var since string
	for _, offer := range offers {
		r := s.raw("?topic=t", wsExtensions, offer)
		since = r.expect("t", "pushlet.subscribed", "").ID
		live = append(live, r)
	}
	var want []wsWire
	for _, data := range wsPayloads() {
		s.publish("t", data)
		w := live[0].read()
		want = append(want, w)
		for i, r := range live[1:] {
			if got := r.read(); got.first != w.first || !bytes.Equal(got.payload, w.payload) {
				t.Fatalf("clients 0 and %d get different bytes for %.50q", 1+i, data)
			}
		}
	}
	late := s.raw("?topic=t&since="+since, wsExtensions, wsDeflateOffer)
	late.expect("t", "pushlet.subscribed", "")
	for i, w := range want {
		if got := late.read(); got.first != w.first || !bytes.Equal(got.payload, w.payload) {
			t.Errorf("message %d is different from history", i)
		}
	}
}

// Commands may be compressed, in any way that DEFLATE allows.
func TestWebSocketCompressedCommands(t *testing.T) {
	s := wsServe(t, pushlet.WithCompression())
	r := s.raw("", wsExtensions, wsDeflateOffer)
	ping := []byte(`{"action":"ping"}`)
	deflated := wsDeflate(ping)
	stored := append([]byte{0, byte(len(ping)), 0, ^byte(len(ping)), 0xff}, ping...)
	final := append([]byte{1}, stored[1:]...)
	for name, frames := range map[string][]byte{
		"text":                wsMasked(wsFin|wsRSV1|wsText, deflated),
		"binary":              wsMasked(wsFin|wsRSV1|wsBinary, deflated),
		"not compressed":      wsMasked(wsFin|wsText, ping),
		"stored block":        wsMasked(wsFin|wsRSV1|wsText, append(stored, 0)),
		"final block":         wsMasked(wsFin|wsRSV1|wsText, append(final, 0)),
		"empty blocks before": wsMasked(wsFin|wsRSV1|wsText, append([]byte("\x00\x00\x00\xff\xff"), deflated...)),
		"fragments": append(wsMasked(wsRSV1|wsText, deflated[:5]),
			append(wsMasked(wsCont, nil), wsMasked(wsFin|wsCont, deflated[5:])...)...),
	} {
		t.Run(name, func(t *testing.T) {
			r.write(frames)
			w := r.read()
			if m := wsDecode(t, w.body(t)); m.Event != "pushlet.pong" {
				t.Errorf("got %+v, want a pong", m)
			}
		})
	}
	t.Run("empty", func(t *testing.T) {
		r.frame(wsFin|wsRSV1|wsText, []byte{0})
		if m := r.next(); m.Event != "pushlet.error" {
			t.Errorf("got %+v, want an error", m)
		}
	})
	t.Run("gorilla", func(t *testing.T) {
		c := s.connect("", wsExtensions, wsDeflateOffer)
		if err := c.SetCompressionLevel(9); err != nil {
			t.Fatal(err)
		}
		list, _ := json.Marshal(strings.Split(strings.Repeat("topic ", 99)+"topic", " "))
		if err := c.WriteMessage(websocket.BinaryMessage, fmt.Appendf(nil, `{"action":"subscribe","topics":%s}`, list)); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			c.expect("topic", "pushlet.subscribed", "")
		}
	})
}

// BenchmarkWebSocketCompression shows what compression saves for messages as applications
// send them: bytes on the wire per message and client, header included.
func BenchmarkWebSocketCompression(b *testing.B) {
	price := func(i int) string {
		return fmt.Sprintf(`{"symbol":"%s","price":%d.%02d,"change":-0.%02d,"volume":%d}`,
			[]string{"AAPL", "MSFT", "GOOG", "AMZN", "NVDA"}[i%5], 100+i*37%400, i*71%100, i*13%100, 100_000+i*7919%900_000)
	}
	list := func(n int, item func(int) string) string {
		items := make([]string, n)
		for i := range items {
			items[i] = item(i)
		}
		return "[" + strings.Join(items, ",") + "]"
	}
	const sentence = "The deployment of version 2.4.1 to the production cluster has finished; all health checks are green. "
	for _, message := range []struct{ name, topic, event, data string }{
		{"chat line", "rooms/42", "message", `{"user":"ada","text":"see you tomorrow"}`},
		{"notification", "users/123/notifications", "notification",
			`{"id":98213,"type":"comment","title":"New comment","body":"Grace replied to your post","url":"/posts/771#c98213","read":false}`},
		{"stock price", "stocks/AAPL", "price", price(0)},
		{"20 stock prices", "stocks", "prices", list(20, price)},
		{"server metrics", "hosts/web-1", "metrics", list(12, func(i int) string {
			return fmt.Sprintf(`{"name":"cpu.core%d.usage","value":%d.%d,"unit":"percent","host":"web-1"}`, i, i*17%100, i*3%10)
		})},
		{"game state", "games/7", "state", list(30, func(i int) string {
			return fmt.Sprintf(`{"id":%d,"x":%d.%d,"y":%d.%d,"hp":%d}`, i, i*131%1000, i%10, i*57%1000, i%7, 100-i)
		})},
		{"Chinese notice", "公告", "message", strings.Repeat("系统将于今晚十点进行维护,预计持续两小时,请提前保存您的工作。", 3)},
		{"English text", "news", "message", strings.Repeat(sentence, 5)},
		{"8 KiB of JSON", "reports", "report", list(64, func(i int) string {
			return fmt.Sprintf(`{"order":%d,"customer":"customer-%d","status":"%s","total":%d.%02d,"items":%d,"created_at":"2024-01-%02dT10:%02d:00Z"}`,
				50_000+i, i*31%97, []string{"paid", "shipped", "open"}[i%3], i*811%900, i*7%100, i%9, 1+i%28, i%60)
		})},
	} {
		b.Run("message="+strings.ReplaceAll(message.name, " ", "_"), func(b *testing.B) {
			s := wsServe(b, pushlet.WithCompression())
			s.beatEvery(time.Hour)
			query := "?topic=" + message.topic
			plain, deflated := s.raw(query), s.raw(query, wsExtensions, wsDeflateOffer)
			plain.next()
			deflated.next()
			var total [2]int
			n := 0
			for b.Loop() {
				if err := s.Publish(message.topic, message.event, message.data); err != nil {
					b.Fatal(err)
				}
				total[0] += plain.read().size
				total[1] += deflated.read().size
				n++
			}
			b.ReportMetric(float64(len(message.data)), "data-bytes")
			b.ReportMetric(float64(total[0])/float64(n), "plain-bytes")
			b.ReportMetric(float64(total[1])/float64(n), "deflate-bytes")
			b.ReportMetric(100*(1-float64(total[1])/float64(total[0])), "%-saved")
		})
	}
}

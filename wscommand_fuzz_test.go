package pushlet_test

import (
	"net"
	"path/filepath"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"github.com/usual2970/pushlet"
)

// Whatever a client sends, as a command or as bytes, it is answered or closed. Each input
// goes the whole way, from a socket through the HTTP server to the broker and back.

// wsServeUnix starts a server for fuzzing: a socket in a folder has no ports to run out of.
func wsServeUnix(f *testing.F, options ...pushlet.Option) *wsServer {
	f.Helper()
	path := filepath.Join(f.TempDir(), "ws")
	l, err := net.Listen("unix", path)
	if err != nil {
		f.Fatal(err)
	}
	s := wsServeOn(f, l, nil, append(options, pushlet.WithCommandRate(1e9, 1e9))...)
	s.dial = func() (net.Conn, error) { return net.Dial("unix", path) }
	return s
}

// in returns the server for use in one run of the fuzz target.
func (s *wsServer) in(t *testing.T) *wsServer {
	in := *s
	in.t = t
	return &in
}

func FuzzCommand(f *testing.F) {
	for _, command := range []string{
		`{"action":"ping"}`,
		`{"action":"subscribe","topic":"a"}`,
		`{"action":"subscribe","topics":["a","b","*"],"topic":"c","since":"1732000000000-4096"}`,
		`{"action":"subscribe","topic":"*","since":"0-0"}`,
		`{"action":"subscribe","topics":["a","b","*"],"since":{"a":"1732000000000-4096","b":null,"c":"x","*":""}}`,
		`{"action":"subscribe","topic":"a","since":"18446744073709551615-18446744073709551615"}`,
		`{"action":"unsubscribe","topics":["a","a","*"]}`,
		`{"ACTION":"ping","action":"subscribe","topic":"\ud800\u0000\n"}`,
		`{"action":"subscribe","topics":[null,"",{},[]]}`,
		`{"action":"subscribe","topic":1e999}`,
		`[[[[[[[[`, `null`, ``, "\x00", "\xff\xfe", "{\"action\":\"\xed\xa0\x80\"}",
	} {
		f.Add(false, []byte(command))
		f.Add(true, []byte(command))
	}
	server := wsServeUnix(f)
	f.Fuzz(func(t *testing.T, binary bool, command []byte) {
		s := server.in(t)
		r := s.raw("?topic=a")
		r.expect("a", "pushlet.subscribed", "")
		first := byte(wsFin | wsText)
		if binary {
			first = wsFin | wsBinary
		}
		r.frame(first, command)
		want := 0
		switch {
		case len(command) > wsDefaultLimit:
			want = websocket.CloseMessageTooBig
		case !binary && !utf8.Valid(command):
			want = websocket.CloseInvalidFramePayloadData
		}
		if want != 0 {
			if code := r.closed(); code != want {
				t.Errorf("close code %d, want %d", code, want)
			}
			s.end()
			return
		}
		// The answer, and that of a ping: the connection goes on.
		r.text(`{"action":"ping"}`)
		answers := []string{"pushlet.subscribed", "pushlet.unsubscribed", "pushlet.error", "pushlet.pong", "pushlet.gap"}
		for n, pong := 0, false; n < 2 || !pong; n++ {
			m := r.next()
			if !slices.Contains(answers, m.Event) || m.Event == "pushlet.error" && m.Data == "" {
				t.Fatalf("answer %+v", m)
			}
			pong = pong || m.Event == "pushlet.pong"
		}
		r.Close()
		s.end()
	})
}

func FuzzWebSocketFrames(f *testing.F) {
	for _, frames := range [][]byte{
		nil,
		wsMasked(wsFin|wsText, []byte(`{"action":"ping"}`)),
		append(wsMasked(wsText, []byte(`{"action":`)), wsMasked(wsFin|wsCont, []byte(`"ping"}`))...),
		wsMasked(wsFin|wsRSV1|wsBinary, wsDeflate([]byte(`{"action":"subscribe","topic":"a"}`))),
		append(wsMasked(wsFin|wsPing, []byte("x")), wsMasked(wsFin|wsPong, nil)...),
		wsMasked(wsFin|wsClose, []byte("\x03\xe8bye")),
		wsMaskedHeader(wsFin|wsText, 1<<63),
		{wsFin | wsText, 0},
	} {
		f.Add(frames)
	}
	server := wsServeUnix(f, pushlet.WithCompression())
	f.Fuzz(func(t *testing.T, frames []byte) {
		s := server.in(t)
		r := s.raw("?topic=a", wsExtensions, wsDeflateOffer)
		r.expect("a", "pushlet.subscribed", "")
		r.write(frames)
		_ = r.Conn.(*net.UnixConn).CloseWrite() // the server may have closed
		for {
			w, err := r.tryRead() // checks the frame
			if wsIsTimeout(err) {
				t.Fatal("the connection does not end")
			}
			if err != nil {
				break
			}
			if w.opcode()&wsControls == 0 {
				wsDecode(t, w.body(t))
			}
		}
		r.Close()
		s.end()
	})
}

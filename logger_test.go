package pushlet_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
)

// TestSlog: fields are attributes, lines have levels, what a client has sent is quoted
// once, and no message is in the log.
func TestSlog(t *testing.T) {
	t.Parallel()
	var out lockedBuffer
	logger := slog.New(slog.NewTextHandler(&out, nil))
	s := newSite(t, withOptions(pushlet.WithSlog(logger), pushlet.WithQueue(1, 1), pushlet.WithHistory(1, 1, time.Hour),
		pushlet.WithHooks(pushlet.Hooks{OnConnect: func(pushlet.Client) { panic("mine") }})))
	topic := `a" client="forged`
	loseMessages(t, s, topic, "secret "+strings.Repeat("x", 1<<10))
	origin := `https://evil.example.org" client="forged`
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/ws", nil)
	for name, value := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Origin": origin} {
		r.Header.Set(name, value)
	}
	s.p.HandleWebSocket(httptest.NewRecorder(), r)
	for _, want := range []string{
		`level=WARN msg="slow consumer lost messages, policy: skip" client=`,
		fmt.Sprintf(" topic=%q\n", topic),
		fmt.Sprintf(`level=WARN msg="websocket refused: origin not allowed" origin=%q`, origin),
		`level=ERROR msg="OnConnect panicked" panic=mine stack=`,
	} {
		eventually(t, "logged: "+want, func() bool { return strings.Contains(out.String(), want) })
	}
	if strings.Contains(out.String(), "secret") {
		t.Errorf("a message is in the log: %q", out.String())
	}
}

func TestSlogNil(t *testing.T) {
	t.Parallel()
	if err := newPushlet(t, pushlet.WithSlog(nil)).Start(); err == nil || !strings.Contains(err.Error(), "WithSlog") {
		t.Errorf("Start = %v", err)
	}
}

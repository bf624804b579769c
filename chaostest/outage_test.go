package chaostest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/internal/redistest"
)

// TestOutage has Redis down for ten seconds. Clients stay connected and hear heartbeats,
// Publish and the readiness say what is wrong, and all comes back by itself.
func TestOutage(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.AppendOnly("always"))
	w := newWorld(t, settings{redis: clientsOf(server), whole: true, cuts: -1})
	type state struct{ connects, beats int }
	stateOf := func(c *client) (s state) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, r := range c.log {
			if r.kind == opened {
				s.connects++
			}
		}
		s.beats = c.beats
		return s
	}
	w.run(func() {
		before := make(map[*client]state)
		for _, c := range w.clients {
			before[c] = stateOf(c)
		}
		begin := time.Now()
		server.Kill()
		w.eventually("no instance is ready", func() bool {
			for _, in := range w.instances {
				if err := in.ready(); !errors.Is(err, pushlet.ErrUnavailable) {
					return false
				}
			}
			return true
		})
		t.Logf("not ready after %v", time.Since(begin))
		time.Sleep(time.Second)
		for end := begin.Add(lasts(4500*time.Millisecond, 10*time.Second)); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			for _, in := range w.instances {
				checkUnavailable(t, in, time.Since(begin) > 3500*time.Millisecond)
			}
		}
		down := time.Since(begin)
		for _, c := range w.clients {
			now, was := stateOf(c), before[c]
			if now.connects != was.connects {
				t.Errorf("%s has connected %d times while Redis was down", c.name, now.connects-was.connects)
			}
			if beats, least := now.beats-was.beats, int(down.Seconds()/2); beats < least {
				t.Errorf("%s has heard %d heartbeats in %v", c.name, beats, down)
			}
		}
		server.Restart()
		begin = time.Now()
		w.ready()
		t.Logf("ready %v after Redis was", time.Since(begin))
	})
	if s := w.during(); s.refused < 10 {
		t.Errorf("while Redis was down: %v", s)
	}
}

// checkUnavailable checks an instance whose Redis has been down for a while; if for long,
// it does not take new clients.
func checkUnavailable(t *testing.T, in instance, long bool) {
	t.Helper()
	const limit = 300 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	begin := time.Now()
	err := in.publish(ctx, "unheard", "data")
	if took := time.Since(begin); !errors.Is(err, pushlet.ErrUnavailable) || errors.Is(err, pushlet.ErrUncertain) || took > limit+late {
		t.Errorf("instance %s: Publish returns %v after %v", in.name(), err, took)
	}
	if status := get(t, in.url()+"/ready", ""); status != http.StatusServiceUnavailable {
		t.Errorf("instance %s: readiness is %d", in.name(), status)
	}
	if !long {
		return
	}
	if status := get(t, in.url()+"/events?topic=a", "text/event-stream"); status != http.StatusOK {
		t.Errorf("instance %s: an EventSource gets %d", in.name(), status)
	}
	_, resp, err := websocket.DefaultDialer.DialContext(t.Context(), "ws"+in.url()[len("http"):]+"/ws", nil)
	if err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("instance %s: a WebSocket gets %v, %v", in.name(), resp, err)
	}
}

// get asks for something that must end at once, and returns the status.
func get(t *testing.T, url, accept string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	must(t, err)
	req.Header.Set("Accept", accept)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Errorf("%s does not end: %v", url, err)
	}
	return resp.StatusCode
}

package main

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestReconnection(t *testing.T) {
	service := startService(t)

	t.Run("restart", func(t *testing.T) {
		s, c := begin(t, service, atOnce)
		c.send(t, "id: 1\ndata: a\n\n")
		s.expect(event{Data: "a", ID: "1"})
		if status := s.command(params{"command": "restart"}); status != http.StatusAccepted {
			t.Errorf("status %d", status)
		}
		await(t, "the end of the connection", c.Context().Done())
		c = s.accept()
		if got := c.Header.Get("Last-Event-Id"); got != "1" {
			t.Errorf("Last-Event-ID %q", got)
		}
		c.send(t, "data: b\n\n")
		s.expect(event{Data: "b", ID: "1"})
		s.nothing() // that it was told to is no error
	})

	const none = "none" // there is no header
	for _, test := range []struct {
		name, text string
		events     []event
		want       string // Last-Event-ID of the next request
	}{
		{"the ID of the last event", "id: 1\ndata: a\n\n", []event{{Data: "a", ID: "1"}}, "1"},
		{"the last ID, which a later event does not have", "id: 1\ndata: a\n\ndata: b\n\n", []event{{Data: "a", ID: "1"}, {Data: "b", ID: "1"}}, "1"},
		{"an ID that was taken back", "id: 1\ndata: a\n\nid: \ndata: b\n\n", []event{{Data: "a", ID: "1"}, {Data: "b"}}, none},
		// Not in the harness.
		{"no ID", "data: a\n\n", []event{{Data: "a"}}, none},
		{"an ID without data", "data: a\n\nid: 2\n\n", []event{{Data: "a"}}, "2"},
		{"an ID with a NUL", "id: 1\ndata: a\n\nid: 2\x00\ndata: b\n\n", []event{{Data: "a", ID: "1"}, {Data: "b", ID: "1"}}, "1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, c := begin(t, service, atOnce)
			if c.Header["Last-Event-Id"] != nil {
				t.Errorf("Last-Event-ID %q", c.Header["Last-Event-Id"])
			}
			c.send(t, test.text)
			s.expect(test.events...)
			c.end()
			got := none
			if ids := s.accept().Header["Last-Event-Id"]; ids != nil {
				got = strings.Join(ids, ",")
			}
			if got != test.want {
				t.Errorf("Last-Event-ID %q, want %q", got, test.want)
			}
		})
	}

	t.Run("the body is sent again", func(t *testing.T) {
		s, c := begin(t, service, atOnce.with("method", "POST").with("body", jsonBody).with("headers", params{"content-type": jsonType}))
		for range 2 {
			if c.Method != "POST" || c.body != jsonBody || c.Header.Get("Content-Type") != jsonType {
				t.Errorf("%s, headers %q, body %q", c.Method, c.Header, c.body)
			}
			c.end()
			c = s.accept()
		}
	})

	t.Run("read timeout", func(t *testing.T) {
		s, c := begin(t, service, atOnce.with("readTimeoutMs", 500))
		// On a slow machine the first connections may be given up before the event is there.
		chunks, late := c.chunks, time.After(patience)
		for received, silent := false, false; !received || !silent; {
			select {
			case c = <-s.conns:
				chunks = c.chunks
			case chunks <- "data: a\n\n":
				chunks = nil // once for each
			case m := <-s.told:
				received = received || m.Kind == "event" && m.Event.Data == "a"
				silent = silent || received && strings.Contains(m.Error, "silent")
			case <-late:
				t.Fatalf("not within %v: event %v, error %v", patience, received, silent)
			}
		}
		_ = s.accept()
	})

	for name, leave := range map[string]func(*conn){"end": (*conn).end, "abort": (*conn).abort} {
		for _, test := range []struct {
			name, text, more string
			want             event
		}{
			{"what is not complete is dropped", "id: 1\ndata: a\n\nid: 2\nevent: t\ndata: b\ndata: c", "data: d\n\n", event{Data: "d", ID: "1"}},
			{"the next connection works", "id: 1\ndata: a\n\n", "id: 2\ndata: b\n\n", event{Data: "b", ID: "2"}},
		} {
			t.Run(name+": "+test.name, func(t *testing.T) {
				s, c := begin(t, service, atOnce)
				c.send(t, test.text)
				s.expect(event{Data: "a", ID: "1"})
				leave(c)
				_ = s.expectError()
				c = s.accept()
				if got := c.Header.Get("Last-Event-Id"); got != "1" {
					t.Errorf("Last-Event-ID %q", got)
				}
				c.send(t, test.more)
				s.expect(test.want)
			})
		}
	}

	t.Run("retry", func(t *testing.T) { // not in the harness
		s, c := begin(t, service, params{"initialDelayMs": 1000 * 60 * 60})
		c.send(t, "retry: 1\n")
		c.end()
		_ = s.accept()
	})
}

package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

const jsonType, jsonBody = "application/json; charset=utf-8", `{"a": "b"}`

func TestHTTPBehavior(t *testing.T) {
	service := startService(t)

	t.Run("method and headers by default", func(t *testing.T) {
		_, c := begin(t, service, nil)
		if c.Method != http.MethodGet || c.Header.Get("Accept") != "text/event-stream" || c.Header.Get("Cache-Control") != "no-cache" ||
			c.Header["Last-Event-Id"] != nil || c.body != "" {
			t.Errorf("%s, headers %q, body %q", c.Method, c.Header, c.body)
		}
	})

	t.Run("after 204 it does not come back", func(t *testing.T) {
		s := prepare(t)
		asked := s.answer("/gone", http.StatusNoContent)
		s.create(service, atOnce.with("streamUrl", s.url+"/gone"))
		staysAway(s, service, asked, "204")
	})

	for _, status := range []int{301, 302, 303, 307, 308} { // the harness: 301 and 307
		t.Run(fmt.Sprintf("redirect %d", status), func(t *testing.T) {
			s := prepare(t)
			s.answer("/moved", status, "Location", s.url+"/stream")
			s.create(service, params{"streamUrl": s.url + "/moved"})
			c := s.accept()
			c.send(t, "data: a\n\n")
			s.expect(event{Data: "a"})
		})
		t.Run(fmt.Sprintf("redirect %d with an empty location", status), func(t *testing.T) {
			s := prepare(t)
			s.answer("/moved", status, "Location", "")
			s.create(service, params{"streamUrl": s.url + "/moved"})
			_ = s.expectError()
		})
		t.Run(fmt.Sprintf("redirect %d without a location", status), func(t *testing.T) {
			s := prepare(t)
			asked := s.answer("/moved", status)
			s.create(service, atOnce.with("streamUrl", s.url+"/moved"))
			staysAway(s, service, asked, fmt.Sprint(status))
		})
	}

	t.Run("headers", func(t *testing.T) {
		_, c := begin(t, service, params{"headers": params{"x-one": "1", "x-two": "2"}})
		if c.Header.Get("X-One") != "1" || c.Header.Get("X-Two") != "2" {
			t.Errorf("headers %q", c.Header)
		}
	})

	for _, method := range []string{"POST", "REPORT"} {
		p := params{"method": method, "body": jsonBody, "headers": params{"content-type": jsonType}}
		t.Run(method, func(t *testing.T) {
			_, c := begin(t, service, p)
			if c.Method != method || c.Header.Get("Content-Type") != jsonType || c.body != jsonBody {
				t.Errorf("%s, headers %q, body %q", c.Method, c.Header, c.body)
			}
		})
		// The rest is not in the harness.
		t.Run(method+" without a content type", func(t *testing.T) {
			_, c := begin(t, service, params{"method": method, "body": "a"})
			if c.Method != method || c.Header.Get("Content-Type") != "text/plain" || c.body != "a" {
				t.Errorf("%s, headers %q, body %q", c.Method, c.Header, c.body)
			}
		})
		for _, status := range []int{307, 308} {
			t.Run(fmt.Sprintf("%s, redirect %d", method, status), func(t *testing.T) {
				s := prepare(t)
				s.answer("/moved", status, "Location", s.url+"/stream")
				s.create(service, p.with("streamUrl", s.url+"/moved"))
				if c := s.accept(); c.Method != method || c.Header.Get("Content-Type") != jsonType || c.body != jsonBody {
					t.Errorf("%s, headers %q, body %q", c.Method, c.Header, c.body)
				}
			})
		}
	}

	t.Run("Last-Event-ID of the first request", func(t *testing.T) {
		s, c := begin(t, service, params{"lastEventId": "7"})
		if got := c.Header.Get("Last-Event-Id"); got != "7" {
			t.Errorf("Last-Event-ID %q", got)
		}
		c.send(t, "data: a\n\n") // it counts as received
		s.expect(event{Data: "a", ID: "7"})
	})

	for _, test := range []struct {
		status int
		kind   string
	}{{200, "text/html"}, {200, ""}, {201, "text/event-stream"}, {401, ""}, {403, ""}, {404, ""}, {410, ""}} {
		t.Run(fmt.Sprintf("after %d %s it does not come back", test.status, test.kind), func(t *testing.T) {
			s := prepare(t)
			asked := s.answer("/refused", test.status, "Content-Type", test.kind)
			s.create(service, atOnce.with("streamUrl", s.url+"/refused"))
			want := fmt.Sprint(test.status)
			if test.status == http.StatusOK {
				want = "content type"
			}
			staysAway(s, service, asked, want)
		})
	}
	for _, status := range []int{429, 500, 503} {
		t.Run(fmt.Sprintf("after %d it comes back", status), func(t *testing.T) {
			s := prepare(t)
			asked := s.answer("/refused", status)
			s.create(service, atOnce.with("streamUrl", s.url+"/refused"))
			for range 3 {
				await(t, "a request", asked)
				if text := s.expectError(); !strings.Contains(text, fmt.Sprint(status)) {
					t.Errorf("error %q", text)
				}
			}
		})
	}
}

// answer has a path of the harness answer with a status, and headers in pairs. It returns where
// requests are noted.
func (s *subject) answer(path string, status int, headers ...string) (asked chan struct{}) {
	asked = make(chan struct{}, 1000)
	s.mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		for i := 0; i < len(headers); i += 2 {
			w.Header()[headers[i]] = []string{headers[i+1]}
		}
		w.WriteHeader(status)
	})
	return asked
}

// staysAway takes the error that must be reported, and checks that the client asks once only:
// not while another, with the same delay, comes back three times.
func staysAway(s *subject, service string, asked chan struct{}, want string) {
	s.t.Helper()
	if text := s.expectError(); !strings.Contains(text, want) {
		s.t.Errorf("error %q, want %q", text, want)
	}
	other, c := begin(s.t, service, atOnce)
	for range 3 {
		c.end()
		c = other.accept()
	}
	if len(asked) != 1 {
		s.t.Errorf("%d requests, want 1", len(asked))
	}
	s.nothing()
}

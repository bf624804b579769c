package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"testing"
)

func TestStatus(t *testing.T) {
	a := ask(t, http.MethodGet, startService(t)+"/", nil)
	var got struct {
		Name         string
		Capabilities []string
	}
	must(t, json.Unmarshal([]byte(a.body), &got))
	if a.status != http.StatusOK || got.Name == "" || !slices.Contains(got.Capabilities, "bom") || slices.Contains(got.Capabilities, "comments") {
		t.Errorf("%+v", a)
	}
}

func TestBadRequests(t *testing.T) {
	service := startService(t)
	for name, p := range map[string]any{
		"no JSON":         "x",
		"no stream":       params{"callbackUrl": "http://127.0.0.1:1/"},
		"no callback":     params{"streamUrl": "http://127.0.0.1:1/"},
		"no URL":          params{"streamUrl": "x", "callbackUrl": "http://127.0.0.1:1/"},
		"a wrong method":  params{"streamUrl": "http://127.0.0.1:1/", "callbackUrl": "http://127.0.0.1:1/", "method": "A B"},
		"a wrong integer": params{"streamUrl": "http://127.0.0.1:1/", "callbackUrl": "http://127.0.0.1:1/", "initialDelayMs": "1"},
	} {
		if a := ask(t, http.MethodPost, service+"/", p); a.status != http.StatusBadRequest || a.body == "" {
			t.Errorf("%s: %+v", name, a)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodDelete} {
		if a := ask(t, method, service+"/streams/1", params{"command": "restart"}); a.status != http.StatusNotFound {
			t.Errorf("%s: %+v", method, a)
		}
	}
	s, _ := begin(t, service, nil)
	for want, c := range map[int]any{
		http.StatusAccepted:   params{"command": "listen", "listen": params{"type": "t"}},
		http.StatusBadRequest: params{"command": "dance"},
	} {
		if status := s.command(c); status != want {
			t.Errorf("%v: status %d", c, status)
		}
	}
	if status := s.command("x"); status != http.StatusBadRequest {
		t.Errorf("status %d", status)
	}
}

// DELETE of a stream ends its connection, and that of the service everything.
func TestStop(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	served := make(chan error, 1)
	go func() { served <- serve(context.Background(), l) }()
	service := "http://" + l.Addr().String()

	s := prepare(t)
	var conns []*conn
	var locations []string
	for range 2 {
		made := ask(t, http.MethodPost, service+"/", params{"streamUrl": s.url + "/stream", "callbackUrl": s.url + "/callback"})
		locations = append(locations, made.location)
		conns = append(conns, s.accept())
	}
	for _, want := range []int{http.StatusNoContent, http.StatusNotFound} {
		if a := ask(t, http.MethodDelete, locations[0], nil); a.status != want {
			t.Errorf("DELETE: %+v, want %d", a, want)
		}
	}
	await(t, "the end of a connection", conns[0].Context().Done())
	if conns[1].Context().Err() != nil {
		t.Error("the other has ended too")
	}
	if a := ask(t, http.MethodDelete, service+"/", nil); a.status != http.StatusNoContent {
		t.Errorf("DELETE /: %+v", a)
	}
	must(t, await(t, "the end of the service", served))
	await(t, "the end of a connection", conns[1].Context().Done())
}

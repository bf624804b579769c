package pushlet_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/usual2970/pushlet"
)

func TestHandleClientJS(t *testing.T) {
	p := newPushlet(t, pushlet.WithAllowedOrigins("https://app.example.com"))
	get := func(method string, headers ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, "/pushlet.js", nil)
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		p.HandleClientJS(w, r)
		return w
	}
	want, err := os.ReadFile("js/pushlet.min.js")
	check(t, err)

	plain := get(http.MethodGet)
	if plain.Code != http.StatusOK || !bytes.Equal(plain.Body.Bytes(), want) {
		t.Errorf("status %d, %d bytes, want js/pushlet.min.js", plain.Code, plain.Body.Len())
	}
	if got := plain.Header().Get("Content-Type"); got != "text/javascript; charset=utf-8" {
		t.Errorf("Content-Type %q: browsers run modules only as JavaScript", got)
	}
	zipped := get(http.MethodGet, "Accept-Encoding", "br, gzip")
	z, err := gzip.NewReader(zipped.Body)
	check(t, err)
	if body, err := io.ReadAll(z); err != nil || !bytes.Equal(body, want) || zipped.Header().Get("Content-Encoding") != "gzip" {
		t.Errorf("gzip: %d bytes, %v", len(body), err)
	}
	for _, h := range []http.Header{plain.Header(), zipped.Header()} {
		if h.Get("Cache-Control") != "no-cache" || !strings.Contains(strings.Join(h["Vary"], ","), "Accept-Encoding") {
			t.Errorf("headers %v", h)
		}
	}
	if a, b := plain.Header().Get("ETag"), zipped.Header().Get("ETag"); a == "" || a == b {
		t.Errorf("ETags %s and %s", a, b)
	}
	for name, want := range map[string]int{plain.Header().Get("ETag"): http.StatusNotModified, `"old"`: http.StatusOK} {
		if w := get(http.MethodGet, "If-None-Match", name); w.Code != want {
			t.Errorf("If-None-Match %s: status %d, want %d", name, w.Code, want)
		}
	}
	for encoding, want := range map[string]string{"gzip;q=0": "", "gzip; q=0.0": "", "identity": "", "deflate, gzip;q=0.5": "gzip", "*": ""} {
		if got := get(http.MethodGet, "Accept-Encoding", encoding).Header().Get("Content-Encoding"); got != want {
			t.Errorf("Accept-Encoding %q: Content-Encoding %q, want %q", encoding, got, want)
		}
	}
	if w := get(http.MethodHead); w.Code != http.StatusOK || w.Body.Len() > 0 {
		t.Errorf("HEAD: status %d, %d bytes", w.Code, w.Body.Len())
	}
	if w := get(http.MethodPost); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: status %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
	if w := get(http.MethodGet, "Origin", "https://app.example.com"); w.Header().Get("Access-Control-Allow-Origin") != "https://app.example.com" {
		t.Errorf("an allowed origin's page cannot import it: %v", w.Header())
	}

	// What a page downloads: at most 4 KB.
	if n := len(get(http.MethodGet, "Accept-Encoding", "gzip").Body.Bytes()); n > 4096 {
		t.Errorf("js/pushlet.min.js has %d bytes compressed, more than 4096", n)
	}
}

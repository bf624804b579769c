package pushlet

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"net/http"
	"strings"
	"sync"
	"time"
)

// clientJS is js/pushlet.js without what only people need, made by `make js`.
//
//go:embed js/pushlet.min.js
var clientJS []byte

// clientJSTag stands for its contents.
var clientJSTag = sync.OnceValue(func() string {
	sum := sha256.Sum256(clientJS)
	return hex.EncodeToString(sum[:12])
})

// clientJSZip is clientJS compressed (RFC 1952).
var clientJSZip = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // the level is valid
	_, _ = z.Write(clientJS)                              // into memory: cannot fail
	_ = z.Close()
	return b.Bytes()
})

// HandleClientJS serves the client for browsers, one ES module of this version of Pushlet:
//
//	http.HandleFunc("/pushlet.js", p.HandleClientJS)
//
//	<script type="module">
//	import { Pushlet } from "/pushlet.js";
//	new Pushlet().subscribe("news", m => console.log(m.data));
//	</script>
//
// What the module does is described in js/pushlet.d.ts. Browsers ask each time whether they have
// the current one. It answers GET and HEAD, others with 405, and can be used before Start.
func (p *Pushlet) HandleClientJS(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	p.cfg.allowOrigin(w, r) // a module is fetched with CORS
	h := w.Header()
	h.Set("Content-Type", "text/javascript; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Add("Vary", "Accept-Encoding")
	body, tag := clientJS, clientJSTag()
	if h.Get("Content-Encoding") == "" && acceptsGzip(r.Header) {
		h.Set("Content-Encoding", "gzip")
		body, tag = clientJSZip(), tag+"-gzip"
	}
	h.Set("ETag", `"`+tag+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// acceptsGzip reports whether a client takes gzip (RFC 9110, section 12.5.3). One that weighs
// it, which browsers do not, is taken at its word only where it says no.
func acceptsGzip(h http.Header) bool {
	for part := range strings.SplitSeq(strings.Join(h["Accept-Encoding"], ","), ",") {
		coding, weight, _ := strings.Cut(part, ";")
		if strings.EqualFold(strings.TrimSpace(coding), "gzip") {
			q, isQ := strings.CutPrefix(strings.ReplaceAll(weight, " ", ""), "q=")
			return !isQ || strings.Trim(q, "0.") != ""
		}
	}
	return false
}

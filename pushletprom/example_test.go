package pushletprom_test

import (
	"fmt"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/pushletprom"
)

// A server mounts the handler at /metrics.
func ExampleNewCollector() {
	p := pushlet.New()
	if err := p.Start(); err != nil {
		fmt.Println(err)
		return
	}
	defer p.Stop()

	registry := prometheus.NewRegistry()
	registry.MustRegister(pushletprom.NewCollector(p))
	metrics := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})

	if err := p.Publish("news", "message", "hello"); err != nil {
		fmt.Println(err)
	}

	answer := httptest.NewRecorder()
	metrics.ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(answer.Body.String()) {
		if strings.HasPrefix(line, "pushlet_clients{") || strings.HasPrefix(line, "pushlet_published") {
			fmt.Print(line)
		}
	}
	// Output:
	// pushlet_clients{protocol="sse"} 0
	// pushlet_clients{protocol="websocket"} 0
	// pushlet_published_total 1
}

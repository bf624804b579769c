package pushletprom

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usual2970/pushlet"
)

func start(t *testing.T) *pushlet.Pushlet {
	t.Helper()
	p := pushlet.New()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	return p
}

func register(t *testing.T, c ...prometheus.Collector) *prometheus.Registry {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	for _, c := range c {
		if err := r.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// values gathers, "name{label=value}" by its value.
func values(t *testing.T, g prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			name := f.GetName()
			if len(labels) > 0 {
				name += "{" + strings.Join(labels, ",") + "}"
			}
			all[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return all
}

// TestValues: what is gathered after real traffic, also before Start and after Stop.
func TestValues(t *testing.T) {
	p := pushlet.New()
	r := register(t, NewCollector(p))
	if got := values(t, r)["pushlet_published_total"]; got != 0 {
		t.Errorf("before Start: %v", got)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(p.HandleSSE))
	defer srv.Close()
	resp, err := http.Get(srv.URL + "?topic=a")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for range 3 {
		if err := p.Publish("a", "message", "hello"); err != nil {
			t.Fatal(err)
		}
	}
	lines := bufio.NewScanner(resp.Body)
	for n := 0; n < 3 && lines.Scan(); {
		if lines.Text() == "data: hello" {
			n++
		}
	}
	await(t, r, map[string]float64{
		"pushlet_clients{protocol=sse}": 1, "pushlet_clients{protocol=websocket}": 0, "pushlet_topics": 1,
		"pushlet_published_total": 3, "pushlet_delivered_total": 3, "pushlet_connections_total": 1,
		"pushlet_connections_ended_total{reason=shutdown}": 0, "pushlet_queued_messages": 0,
	})
	if _, ok := values(t, r)["pushlet_redis_up"]; ok {
		t.Error("pushlet_redis_up without Redis")
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	await(t, r, map[string]float64{
		"pushlet_clients{protocol=sse}": 0, "pushlet_connections_ended_total{reason=shutdown}": 1, "pushlet_published_total": 3,
	})
}

// await waits until the values are these.
func await(t *testing.T, g prometheus.Gatherer, want map[string]float64) {
	t.Helper()
	var got map[string]float64
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		got = values(t, g)
		wrong := 0
		for name, v := range want {
			if have, ok := got[name]; !ok || have != v {
				wrong++
			}
		}
		if wrong == 0 {
			return
		}
	}
	t.Fatalf("got %v\nwant %v", got, want)
}

// TestLint: names and help as Prometheus wants them.
func TestLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(register(t, NewCollector(start(t))))
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// TestTwo Pushlets in one registry, told apart by constant labels.
func TestTwo(t *testing.T) {
	a, b := start(t), start(t)
	r := register(t, NewCollector(a, prometheus.Labels{"hub": "a"}), NewCollector(b, prometheus.Labels{"hub": "b"}))
	if err := b.Publish("x", "", "hello"); err != nil {
		t.Fatal(err)
	}
	await(t, r, map[string]float64{"pushlet_published_total{hub=a}": 0, "pushlet_published_total{hub=b}": 1})
	if err := r.Register(NewCollector(a, prometheus.Labels{"hub": "a"})); err == nil {
		t.Error("the same labels twice are accepted")
	}
}

// TestReadme: its table lists the metrics, as they are.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, m := range metrics {
		label, kind := "–", "gauge"
		if m.label != "" {
			label = "`" + m.label + "`"
		}
		if m.kind == counter {
			kind = "counter"
		}
		fmt.Fprintf(&want, "| `pushlet_%s` | %s | %s | %s |\n", m.name, kind, label, m.help)
	}
	_, table, _ := strings.Cut(string(text), "|---|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	if strings.TrimSpace(table) != strings.TrimSpace(want.String()) {
		t.Errorf("the table must be:\n%s", want.String())
	}
}

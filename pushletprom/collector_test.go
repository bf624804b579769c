package pushletprom

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/pushlettest"
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
	lacks(t, r, "pushlet_redis_up", "pushlet_store_up", "pushlet_publish_queue_messages")
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	await(t, r, map[string]float64{
		"pushlet_clients{protocol=sse}": 0, "pushlet_connections_ended_total{reason=shutdown}": 1, "pushlet_published_total": 3,
	})
}

// lacks checks that there are no such metrics.
func lacks(t *testing.T, g prometheus.Gatherer, names ...string) {
	t.Helper()
	got := values(t, g)
	for _, name := range names {
		if _, ok := got[name]; ok {
			t.Errorf("there is %s", name)
		}
	}
}

// faulty is a store that can be made to fail.
type faulty struct {
	pushlet.History
	fails atomic.Bool
}

func (s *faulty) Append(ctx context.Context, messages []pushlet.Message) error {
	if s.fails.Load() {
		return pushlet.ErrUnavailable
	}
	return s.History.Append(ctx, messages)
}

func (s *faulty) Newest(ctx context.Context) (string, error) {
	if s.fails.Load() {
		return "", pushlet.ErrUnavailable
	}
	return s.History.Newest(ctx)
}

// TestStore: whether the store works, and what there is only with one.
func TestStore(t *testing.T) {
	s := &faulty{History: pushlettest.NewMemoryHistory()}
	p := pushlet.New(pushlet.WithHistoryStore(s), pushlet.WithPublishTimeout(100*time.Millisecond))
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	r := register(t, NewCollector(p))
	await(t, r, map[string]float64{"pushlet_store_up": 1, "pushlet_store_down_seconds": 0, "pushlet_store_reads_total": 0,
		"pushlet_publish_queue_messages": 0, "pushlet_publish_queue_bytes": 0, "pushlet_users": 0})
	lacks(t, r, "pushlet_redis_up", "pushlet_ingested_total")
	s.fails.Store(true)
	if err := p.Publish("a", "", "hello"); err == nil {
		t.Error("published without a store")
	}
	await(t, r, map[string]float64{"pushlet_store_up": 0})
	if down := values(t, r)["pushlet_store_down_seconds"]; down <= 0 {
		t.Errorf("down for %v", down)
	}
	s.fails.Store(false)
	await(t, r, map[string]float64{"pushlet_store_up": 1})
}

// TestFields: every field of Stats is in a metric, so that none that comes is forgotten.
func TestFields(t *testing.T) {
	with := func(change func(reflect.Value)) string {
		s := pushlet.Stats{Distributed: true, Stored: true}
		change(reflect.ValueOf(&s).Elem())
		var all []map[string]float64
		for _, m := range metrics {
			all = append(all, m.value(s))
		}
		return fmt.Sprint(all)
	}
	none := with(func(reflect.Value) {})
	// What others say already.
	same := map[string]bool{"Clients": true, "Undelivered": true, "Gaps": true, "WriteTimeouts": true}
	for i, f := range reflect.VisibleFields(reflect.TypeFor[pushlet.Stats]()) {
		got := with(func(s reflect.Value) {
			switch v := s.Field(i); v.Kind() {
			case reflect.Bool:
				v.SetBool(false)
			case reflect.Map:
				v.Set(reflect.ValueOf(map[pushlet.Reason]uint64{"x": 1}))
			case reflect.Uint64:
				v.SetUint(1)
			default:
				v.SetInt(1)
			}
		})
		if changed := got != none; changed == same[f.Name] {
			t.Errorf("%s: in a metric: %v", f.Name, changed)
		}
	}
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

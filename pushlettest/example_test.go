package pushlettest_test

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/pushlettest"
)

// These are tests as a user writes them, of the application below: it tells its customers
// when their orders are on their way.

// newShop returns the application. In production main starts p and serves the handler.
func newShop(options ...pushlet.Option) (p *pushlet.Pushlet, handler http.Handler) {
	p = pushlet.New(append(options, pushlet.WithAuthorize(mayFollow))...)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /events", p.HandleSSE)
	mux.HandleFunc("GET /ws", p.HandleWebSocket)
	mux.HandleFunc("POST /ship", func(w http.ResponseWriter, r *http.Request) {
		topic := "customers/" + r.FormValue("customer")
		if err := p.Publish(topic, "shipped", r.FormValue("order")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	return p, mux
}

// mayFollow lets customers see what is theirs.
func mayFollow(r *http.Request, topic string) error {
	owner, isCustomer := strings.CutPrefix(topic, "customers/")
	customer, err := r.Cookie("customer") // an application looks a session up
	if isCustomer && (err != nil || customer.Value != owner) {
		return errors.New("not your orders")
	}
	return nil
}

// start serves the shop in memory until the test is over.
func start(t *testing.T, options ...pushlet.Option) (*pushlet.Pushlet, *pushlettest.Server) {
	t.Helper()
	p, handler := newShop(options...)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	return p, pushlettest.NewServer(t, handler)
}

// A customer sees their own orders, and nobody else does.
func TestCustomersSeeTheirOwnOrders(t *testing.T) {
	_, srv := start(t)
	asAnn := pushlettest.WithHeader("Cookie", "customer=ann")

	if _, answer := srv.TrySSE("/events?topic=customers/ann"); answer.Status != http.StatusForbidden {
		t.Errorf("status %d for a stranger, want 403", answer.Status)
	}
	if _, answer := srv.TryWebSocket("/ws?topic=customers/ben", asAnn); answer.Status != http.StatusForbidden {
		t.Errorf("status %d for another customer, want 403", answer.Status)
	}

	page := srv.SSE("/events?topic=customers/ann", asAnn)
	app := srv.WebSocket("/ws", asAnn)
	app.Subscribe("customers/ann")
	if err := app.TrySubscribe("customers/ben"); err == nil {
		t.Error("Ann follows Ben's orders")
	}

	for _, order := range []url.Values{
		{"customer": {"ben"}, "order": {"17"}}, // not for Ann
		{"customer": {"ann"}, "order": {"18"}},
	} {
		resp, err := srv.HTTPClient().PostForm(pushlettest.URL+"/ship", order)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	page.Expect("shipped", "18")
	app.Expect("shipped", "18")
}

// A customer whose network fails gets what was sent meanwhile, once.
func TestNothingIsLostInATunnel(t *testing.T) {
	p, srv := start(t)
	page := srv.SSE("/events?topic=customers/ann", pushlettest.WithHeader("Cookie", "customer=ann"))
	ship := func(orders ...string) {
		t.Helper()
		for _, order := range orders {
			if err := p.Publish("customers/ann", "shipped", order); err != nil {
				t.Fatal(err)
			}
		}
	}

	ship("1")
	page.Expect("shipped", "1")

	page.Stall() // from here on what is sent does not arrive
	ship("2", "3")
	page.Drop()
	ship("4")
	page.Reconnect()

	page.Expect("shipped", "2")
	page.Expect("shipped", "3")
	page.Expect("shipped", "4")
	if gaps := page.Gaps(); len(gaps) > 0 {
		t.Errorf("orders were lost: %v", gaps)
	}
	if n := len(page.Events()); n != 4 {
		t.Errorf("%d messages arrived, want 4", n)
	}
}

// In a bubble hours take no time: heartbeats come, and one who stays away for longer than
// the history reaches is told that something is missing.
func TestADayAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, srv := start(t, pushlet.WithHistory(1000, 1<<20, time.Hour))
		page := srv.SSE("/events?topic=news")

		time.Sleep(10 * time.Minute)
		if page.Heartbeats() == 0 {
			t.Error("no heartbeat in ten minutes: proxies would cut the connection")
		}
		page.ExpectNone()

		page.Drop()
		for _, headline := range []string{"morning", "noon", "evening"} {
			if err := p.Publish("news", "headline", headline); err != nil {
				t.Fatal(err)
			}
			time.Sleep(8 * time.Hour)
		}
		page.Reconnect()
		gap := page.WaitFor(func(e pushlettest.Event) bool { return e.Name == "pushlet.gap" })
		if !strings.Contains(gap.Data, "expired") {
			t.Errorf("gap %v, want one that says expired", gap)
		}
		page.Expect("headline", "evening") // the newest is kept for a day
	})
}

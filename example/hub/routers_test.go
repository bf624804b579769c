package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	gingzip "github.com/gin-contrib/gzip"
	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	chimiddleware "github.com/go-chi/chi/v5/middleware"
	"github.com/gorilla/websocket"
	"github.com/labstack/echo/v4"
	echomiddleware "github.com/labstack/echo/v4/middleware"

	"github.com/usual2970/pushlet"
)

// A router mounts Pushlet under one of the routers that people use, with the middleware of
// that router in front of it: what recovers from panics and what logs, and what compresses.
type router struct {
	name  string
	build func(p *pushlet.Pushlet, compress bool) http.Handler
}

var routers = []router{
	{"gin", func(p *pushlet.Pushlet, compress bool) http.Handler {
		r := gin.New()
		r.Use(gin.RecoveryWithWriter(discard{}), gin.LoggerWithWriter(discard{}))
		if compress {
			r.Use(gingzip.Gzip(gingzip.DefaultCompression))
		}
		r.Use(func(c *gin.Context) { c.Request = withUser(c.Request, c.Query("uid")) })
		r.GET("/events", gin.WrapF(p.HandleSSE))
		r.GET("/ws", gin.WrapF(p.HandleWebSocket))
		r.POST("/push", gin.WrapF(p.HandlePush))
		return r
	}},
	{"echo", func(p *pushlet.Pushlet, compress bool) http.Handler {
		e := echo.New()
		e.Use(echomiddleware.Recover(), echomiddleware.RequestLoggerWithConfig(echomiddleware.RequestLoggerConfig{
			LogStatus:     true,
			LogValuesFunc: func(echo.Context, echomiddleware.RequestLoggerValues) error { return nil },
		}))
		if compress {
			e.Use(echomiddleware.Gzip())
		}
		e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
			return func(c echo.Context) error {
				c.SetRequest(withUser(c.Request(), c.QueryParam("uid")))
				return next(c)
			}
		})
		e.GET("/events", echo.WrapHandler(http.HandlerFunc(p.HandleSSE)))
		e.GET("/ws", echo.WrapHandler(http.HandlerFunc(p.HandleWebSocket)))
		e.POST("/push", echo.WrapHandler(http.HandlerFunc(p.HandlePush)))
		return e
	}},
	{"chi", func(p *pushlet.Pushlet, compress bool) http.Handler {
		r := chi.NewRouter()
		r.Use(chimiddleware.Recoverer, chimiddleware.RequestLogger(&chimiddleware.DefaultLogFormatter{Logger: discard{}}))
		if compress {
			r.Use(chimiddleware.Compress(5, "text/event-stream", "application/json"))
		}
		r.Use(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				next.ServeHTTP(w, withUser(r, r.URL.Query().Get("uid")))
			})
		})
		r.Get("/events", p.HandleSSE)
		r.Get("/ws", p.HandleWebSocket)
		r.Post("/push", p.HandlePush)
		return r
	}},
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) Print(...any)                {}

func withUser(r *http.Request, uid string) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), uidKey{}, uid))
}

// TestRouters follows and pushes under each router: over a real socket, with and without
// middleware that compresses, for clients that accept that and for others.
func TestRouters(t *testing.T) {
	for _, router := range routers {
		for _, compress := range []bool{false, true} {
			for _, hijack := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s,gzip=%t,hijack=%t", router.name, compress, hijack), func(t *testing.T) {
					t.Parallel()
					testRouter(t, router, compress, hijack)
				})
			}
		}
	}
}

func testRouter(t *testing.T, router router, compress, hijack bool) {
	p := pushlet.New(
		pushlet.WithHijack(hijack),
		pushlet.WithIdentity(uidOf),
		pushlet.WithAuthorize(func(_ *http.Request, topic string) error {
			if topic == "secret" {
				return errors.New("not for you")
			}
			return nil
		}),
		pushlet.WithPushAuthorize(func(r *http.Request) error {
			switch r.Header.Get("Authorization") {
			case "Bearer right":
				return nil
			case "":
				return pushlet.ErrUnauthenticated
			}
			return errors.New("wrong token")
		}),
	)
	base := serve(t, p, router.build(p, compress))

	// As curl asks, as a browser's EventSource does, and as a client that takes gzip for
	// whatever it asks.
	streams := []*stream{
		follow(t, base+"/events?uid=ann", "Accept-Encoding", "identity"),
		follow(t, base+"/events?uid=ann", "Accept", "text/event-stream", "Accept-Encoding", "gzip, deflate, br, zstd"),
		follow(t, base+"/events?uid=ann", "Accept-Encoding", "gzip"),
	}
	// gin's gzip says at once that it compresses, so the connection is left to it.
	for i, s := range streams {
		want := ""
		if compress && i > 0 && (router.name == "gin" || !hijack) {
			want = "gzip"
		}
		if s.encoding != want {
			t.Errorf("stream %d has encoding %q, want %q", i, s.encoding, want)
		}
	}
	conn, resp, err := websocket.DefaultDialer.DialContext(t.Context(), "ws"+strings.TrimPrefix(base, "http")+"/ws?uid=ann&topic=default",
		http.Header{"Accept-Encoding": {"gzip"}})
	if err != nil {
		t.Fatal("WebSocket: ", err, resp)
	}
	defer conn.Close()
	receive := func() (event, data string) {
		t.Helper()
		var m struct{ Event, Data string }
		check(t, conn.SetReadDeadline(time.Now().Add(patience)))
		check(t, conn.ReadJSON(&m))
		return m.Event, m.Data
	}
	for range 2 { // default, and the user's own
		if event, data := receive(); event != "pushlet.subscribed" {
			t.Fatalf("the WebSocket begins with %s %s", event, data)
		}
	}

	// Each message on its own: it must not wait for another in somebody's buffer.
	for i := range 3 {
		data := fmt.Sprint("hello ", i)
		body := fmt.Sprintf(`{"uids":["ann"],"events":[{"data":%q}]}`, data)
		status, text := ask(t, http.MethodPost, base+"/push", body, "Authorization", "Bearer right")
		if want := `{"events":[{"published":1,"duplicates":0,"clients":4}]}`; status != http.StatusOK || strings.TrimSpace(text) != want {
			t.Fatalf("push is answered with %d %s, want %s", status, text, want)
		}
		for _, s := range streams {
			s.expect("message", data)
		}
		if event, got := receive(); event != "message" || got != data {
			t.Fatalf("the WebSocket gets %s %s, want %s", event, got, data)
		}
	}

	for _, c := range []struct {
		method, path, body, authorization string
		want                              int
	}{
		{http.MethodGet, "/events", "", "", http.StatusUnauthorized},
		{http.MethodGet, "/events?uid=ann&topic=secret", "", "", http.StatusForbidden},
		{http.MethodGet, "/events?uid=ann&topic=*", "", "", http.StatusBadRequest},
		{http.MethodGet, "/ws?uid=ann", "", "", http.StatusUpgradeRequired},
		{http.MethodPost, "/push", toAll, "", http.StatusUnauthorized},
		{http.MethodPost, "/push", toAll, "Bearer wrong", http.StatusForbidden},
		{http.MethodPost, "/push", `{"events":[]}`, "Bearer right", http.StatusBadRequest},
	} {
		if status, text := ask(t, c.method, base+c.path, c.body, "Authorization", c.authorization); status != c.want {
			t.Errorf("%s %s %s is answered with %d %s, want %d", c.method, c.path, c.body, status, text, c.want)
		}
	}
	for query, want := range map[string]int{"": http.StatusUnauthorized, "?uid=ann&topic=secret": http.StatusForbidden} {
		conn, resp, err := websocket.DefaultDialer.DialContext(t.Context(), "ws"+strings.TrimPrefix(base, "http")+"/ws"+query, nil)
		if err == nil {
			conn.Close()
			t.Errorf("/ws%s was accepted", query)
		} else if resp == nil || resp.StatusCode != want {
			t.Errorf("/ws%s: %v, %v, want %d", query, err, resp, want)
		}
	}

	// All that there is has an end, at which clients are told.
	check(t, p.Stop())
	for i, s := range streams {
		if _, _, ok := s.next(); ok || s.lines.Err() != nil {
			t.Errorf("stream %d does not end well: %t, %v", i, ok, s.lines.Err())
		}
	}
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the WebSocket ends with %v", err)
	}
}

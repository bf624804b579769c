package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/usual2970/pushlet"
)

// An instance is one of several servers of the same application. It keeps its name and
// its address; the rest is made anew each time it starts.
type instance struct {
	name  string
	redis string
	addr  string // known once it has been started

	changing sync.Mutex // held while it is started or stopped
	now      atomic.Pointer[service]
	proxy    *proxy // of the load balancer
}

// A service is an instance that runs.
type service struct {
	instance string
	pushlet  *pushlet.Pushlet
	server   *http.Server
	clients  sync.Map // IDs of those that are connected
}

func newInstance(name, addr, redis string) *instance {
	return &instance{name: name, addr: addr, redis: redis}
}

// start does nothing if the instance runs.
func (i *instance) start() error {
	i.changing.Lock()
	defer i.changing.Unlock()
	if i.now.Load() != nil {
		return nil
	}
	listener, err := net.Listen("tcp", i.addr)
	if err != nil {
		return err
	}
	s := &service{instance: i.name}
	s.pushlet = pushlet.New(
		pushlet.WithRedisPrefix("pushlet-example"), // it may be a Redis that others use
		pushlet.WithIdentity(func(r *http.Request) (string, error) {
			return r.URL.Query().Get("name"), nil // an application would look at its session
		}),
		pushlet.WithPresence(2*time.Second),
		pushlet.WithRetry(500*time.Millisecond), // not 3 s: one wants to see something
		pushlet.WithHooks(pushlet.Hooks{
			OnConnect:    func(c pushlet.Client) { s.clients.Store(c.ID, nil) },
			OnDisconnect: func(c pushlet.Client, _ pushlet.Reason) { s.clients.Delete(c.ID) },
		}),
	)
	err = s.pushlet.EnableDistributedMode(i.redis, "", 0)
	if err == nil || errors.Is(err, pushlet.ErrUnavailable) { // then it begins once Redis is there
		err = s.pushlet.Start()
	}
	if err != nil {
		listener.Close()
		return err
	}
	if i.proxy == nil {
		i.addr = browserHost(listener.Addr()) // from now on this port
		i.proxy = newProxy(i.addr)
	}
	s.server = &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.server.Serve(listener) }() // ends with stop or kill
	i.now.Store(s)
	return nil
}

// routes is the application. It is the same on all instances.
func (s *service) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/events", s.pushlet.HandleSSE)
	mux.HandleFunc("/ws", s.pushlet.HandleWebSocket)
	mux.HandleFunc("/ready", s.pushlet.HandleReady) // for a load balancer
	mux.HandleFunc("/send", func(w http.ResponseWriter, r *http.Request) {
		err := s.publish(r.Context(), "message", message{
			From: r.FormValue("name"), Text: r.FormValue("message"), Via: s.instance,
		})
		switch {
		case errors.Is(err, pushlet.ErrUncertain):
			http.Error(w, err.Error(), http.StatusGatewayTimeout)
		case err != nil: // surely not published
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default:
			w.Write([]byte("Published by instance " + s.instance))
		}
	})
	return mux
}

// A message is what somebody has sent.
type message struct {
	From string `json:"from"`
	Text string `json:"text"`
	Via  string `json:"via"` // the instance that published it
}

func (s *service) publish(ctx context.Context, event string, data any) error {
	text, err := json.Marshal(data)
	if err != nil {
		return err
	}
	return s.pushlet.PublishContext(ctx, topic, event, string(text))
}

// stop ends the instance as one does before an update: every client gets what there is for
// it, and is told to come back.
func (i *instance) stop() error {
	i.changing.Lock()
	defer i.changing.Unlock()
	s := i.now.Swap(nil) // from now on the load balancer leaves it out
	if s == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := errors.Join(s.pushlet.Shutdown(ctx), s.server.Shutdown(ctx)) // in this order
	i.proxy.transport.CloseIdleConnections()
	return err
}

// kill ends the instance as a crash does: in the middle of what it was sending.
func (i *instance) kill() {
	i.changing.Lock()
	defer i.changing.Unlock()
	s := i.now.Swap(nil)
	if s == nil {
		return
	}
	i.proxy.cut()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.pushlet.Shutdown(ctx) // does not wait for anybody
	s.server.Close()
	i.proxy.transport.CloseIdleConnections()
}

package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/usual2970/pushlet"
)

// routes is what the load balancer serves: the page, what the page needs to watch and to
// control the instances, and for all the rest an instance.
func (c *cluster) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(page)
	})
	mux.HandleFunc("GET /cluster", c.handleStatus)
	mux.HandleFunc("POST /instances/{name}/{action}", c.handleInstance)
	mux.HandleFunc("POST /stream/{action}", c.handleStream)
	mux.Handle("/", c.balancer)
	return mux
}

// A status says how all are.
type status struct {
	Instances []instanceStatus `json:"instances"`
	Streaming bool             `json:"streaming"`
	Clients   int              `json:"clients"` // that follow the topic, on all instances
	Users     map[string]int   `json:"users"`   // of these, by name; null if that is not known
}

type instanceStatus struct {
	Name    string `json:"name"`
	Addr    string `json:"addr"`
	Up      bool   `json:"up"`
	Ready   bool   `json:"ready"`
	Clients int    `json:"clients"`
	Here    bool   `json:"here"` // the client that asks is one of them
}

// handleStatus answers the page, which asks with the ID of its client. The instances know
// theirs by the hooks OnConnect and OnDisconnect.
func (c *cluster) handleStatus(w http.ResponseWriter, r *http.Request) {
	all := status{Streaming: c.counter.runs()}
	for _, i := range c.instances {
		is := instanceStatus{Name: i.name, Addr: i.addr}
		if s := i.now.Load(); s != nil {
			is.Up, is.Ready = true, s.pushlet.Ready() == nil
			is.Clients = s.pushlet.Stats().Clients
			_, is.Here = s.clients.Load(r.FormValue("client"))
		}
		all.Instances = append(all.Instances, is)
	}
	if _, s := c.balancer.next(); s != nil {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if p, err := s.pushlet.Presence(ctx, topic); err == nil {
			all.Clients, all.Users = p.Clients, p.Users
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(all) // if it fails the page has gone
}

// handleInstance starts, stops or kills an instance.
func (c *cluster) handleInstance(w http.ResponseWriter, r *http.Request) {
	for _, i := range c.instances {
		if i.name != r.PathValue("name") {
			continue
		}
		var err error
		switch r.PathValue("action") {
		case "start":
			err = i.start()
		case "stop":
			err = i.stop()
		case "kill":
			i.kill()
		default:
			http.NotFound(w, r)
			return
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		return
	}
	http.NotFound(w, r)
}

// handleStream starts or stops the stream of numbered messages.
func (c *cluster) handleStream(w http.ResponseWriter, r *http.Request) {
	switch r.PathValue("action") {
	case "start":
		c.counter.start(c.balancer)
	case "stop":
		c.counter.stop()
	default:
		http.NotFound(w, r)
	}
}

// A counter publishes numbered messages, 10 a second, by the instances in turn. Whoever
// follows the topic can tell what is missing, and what came twice.
type counter struct {
	mu   sync.Mutex
	end  context.CancelFunc // nil: it does not run
	done chan struct{}
}

// A number is one of these messages.
type number struct {
	Run    string `json:"run"`
	N      int    `json:"n"` // from 1
	Via    string `json:"via"`
	Unsure []int  `json:"unsure,omitempty"` // nobody knows whether these were published
}

func (k *counter) runs() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.end != nil
}

// start begins anew, from 1.
func (k *counter) start(b *balancer) {
	k.stop()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.end != nil {
		return // another one was faster
	}
	ctx, end := context.WithCancel(context.Background())
	done := make(chan struct{})
	k.end, k.done = end, done
	go func() {
		defer close(done)
		count(ctx, b)
	}()
}

func (k *counter) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.end != nil {
		k.end()
		<-k.done
		k.end = nil
	}
}

// count shows what to make of the errors of Publish.
func count(ctx context.Context, b *balancer) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	next := number{Run: rand.Text(), N: 1}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		_, s := b.next()
		if s == nil {
			continue
		}
		next.Via = s.instance
		switch err := s.publish(ctx, "number", next); {
		case err == nil:
			next.N++
		case errors.Is(err, pushlet.ErrUncertain):
			// It may have been published: again might be twice. So leave it, and say so.
			next.Unsure = append(next.Unsure, next.N)
			next.N++
		default:
			// It was surely not published: the same once more, perhaps by the other instance.
		}
	}
}

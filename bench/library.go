package main

import (
	"net"
	"net/http"
	"time"

	"github.com/usual2970/pushlet"
)

// library is Pushlet as an application uses it, with every option at its default
// but for the log, which would fill the terminal.
type library struct {
	pushlet *pushlet.Pushlet
	topics  []string // names, so that the publisher does not spend its time on them
}

func newPushlet(heartbeat time.Duration) (*library, error) {
	p := pushlet.New(pushlet.WithLogger(func() pushlet.Logger { return silent{} }))
	if err := p.SetHeartbeatInterval(heartbeat); err != nil {
		return nil, err
	}
	if err := p.Start(); err != nil {
		return nil, err
	}
	return &library{pushlet: p}, nil
}

func (l *library) serve(listener net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/events", l.pushlet.HandleSSE)
	mux.HandleFunc("/ws", l.pushlet.HandleWebSocket)
	return http.Serve(listener, mux)
}

func (l *library) publish(k int, data string) error {
	for len(l.topics) <= k {
		l.topics = append(l.topics, topicName(len(l.topics)))
	}
	return l.pushlet.Publish(l.topics[k], "message", data)
}

func (l *library) clients() int { return l.pushlet.Stats().Clients }

// silent is a logger that says nothing.
type silent struct{}

func (silent) Println(...any) {}

func (silent) WithField(string, any) pushlet.Logger { return silent{} }

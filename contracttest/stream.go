package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/usual2970/pushlet/consumer"
)

// The parameters of a stream, with the names of the protocol.
type parameters struct {
	StreamURL      string            `json:"streamUrl"`
	CallbackURL    string            `json:"callbackUrl"`
	InitialDelayMS *int              `json:"initialDelayMs"`
	ReadTimeoutMS  *int              `json:"readTimeoutMs"`
	LastEventID    string            `json:"lastEventId"`
	Headers        map[string]string `json:"headers"`
	Method         string            `json:"method"`
	Body           string            `json:"body"`
}

// maxSize leaves room for the largest payload of the harness, 128 MiB.
const maxSize = 256 << 20

// options are what a program would write.
func (p *parameters) options() []consumer.Option {
	options := []consumer.Option{consumer.WithMaxSize(maxSize), consumer.WithLastEventID(p.LastEventID)}
	if p.InitialDelayMS != nil {
		first := max(time.Duration(*p.InitialDelayMS)*time.Millisecond, time.Millisecond)
		options = append(options, consumer.WithReconnectInterval(first, max(first, 30*time.Second)))
	}
	if p.ReadTimeoutMS != nil {
		options = append(options, consumer.WithIdleTimeout(time.Duration(*p.ReadTimeoutMS)*time.Millisecond))
	}
	if p.Method != "" {
		options = append(options, consumer.WithMethod(p.Method))
	}
	if p.Body != "" {
		options = append(options, consumer.WithBody("text/plain", []byte(p.Body)))
	}
	for name, value := range p.Headers { // after the body: a content type among them counts
		options = append(options, consumer.WithHeader(name, value))
	}
	return options
}

// A message is what the harness is told.
type message struct {
	Kind    string `json:"kind"` // "event" or "error"
	Event   *event `json:"event,omitempty"`
	Error   string `json:"error,omitempty"`
	Comment string `json:"comment,omitempty"`
}

type event struct {
	Type string `json:"type"`
	Data string `json:"data"`
	ID   string `json:"id"`
}

// A stream is a client, and reports what it receives.
type stream struct {
	// Immutable after startStream.
	client   *consumer.Client
	callback string
	ctx      context.Context // of reports
	cancel   context.CancelFunc

	sent int // reports; owned by the callbacks of client, which come one after the other

	mu     sync.Mutex // held by who starts and stops client, also while waiting for that
	closed bool
}

func startStream(p parameters) (*stream, error) {
	if p.CallbackURL == "" {
		return nil, errors.New("no callbackUrl")
	}
	s := &stream{
		client:   consumer.NewClient(p.StreamURL, p.options()...),
		callback: strings.TrimSuffix(p.CallbackURL, "/"),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.client.OnEvent("*", func(m *consumer.Message) {
		s.report(message{Kind: "event", Event: &event{m.Event, m.Data, m.ID}})
	})
	s.client.OnError(func(err error) {
		// The document of the protocol has the text in "comment", the harness reads "error".
		s.report(message{Kind: "error", Error: err.Error(), Comment: err.Error()})
	})
	if err := s.client.Start(); err != nil {
		s.cancel()
		return nil, err
	}
	return s, nil
}

// report returns when the harness has answered. The numbers begin with 1.
func (s *stream) report(m message) {
	s.sent++
	if err := s.post(m); err != nil && s.ctx.Err() == nil {
		log.Printf("report %d: %v", s.sent, err)
	}
}

func (s *stream) post(m message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	url := fmt.Sprintf("%s/%d", s.callback, s.sent)
	req, err := http.NewRequestWithContext(s.ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

// restart breaks the connection, and connects again from where the client was.
func (s *stream) restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.client.Stop()
	<-s.client.Wait()
	if err := s.client.Start(); err != nil {
		log.Printf("restart: %v", err) // cannot be: nobody else starts it
	}
}

// close ends the client, and waits for that.
func (s *stream) close() {
	s.cancel() // a report may wait for a harness that has gone
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.client.Stop()
	<-s.client.Wait()
}

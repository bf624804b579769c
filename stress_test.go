package pushlet

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestStressTinyQueues lets clients fall behind and catch up all the time, with real
// workers and sockets that take a little at a time: what the model test cannot, which
// has one goroutine. History keeps everything, so everybody must get everything.
func TestStressTinyQueues(t *testing.T) {
	const clients, publishers = 24, 4
	messages := 500
	if testing.Short() {
		messages = 100
	}
	for _, queue := range []int{1, 3} {
		t.Run(fmt.Sprint("queue=", queue), func(t *testing.T) {
			total := publishers * messages
			p := New(WithHistory(total+1, 1<<30, time.Hour), WithQueue(queue, 1<<20))
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			defer p.Stop()
			topics := []string{"a", "b"}
			var got []*sinkTransport
			for i := range clients {
				s := &sinkTransport{want: total, done: make(chan struct{}), rand: rand.New(rand.NewPCG(uint64(i), 1))}
				c := newClient(Client{ID: fmt.Sprint(i)}, form(i%3), s, p.env, time.Now())
				got = append(got, s)
				p.broker.send(&attach{client: c, topics: topics})
				defer func() { p.broker.send(&detach{c, time.Now()}) }()
			}
			var wg sync.WaitGroup
			for i := range publishers {
				wg.Go(func() {
					for n := range messages {
						if err := p.Publish(topics[(i+n)%2], "e", fmt.Sprintf("<%d.%d>", i, n)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			for i, s := range got {
				select {
				case <-s.done:
				case <-time.After(time.Minute):
					t.Fatalf("client %d has %d messages of %d", i, s.count(), total)
				}
				s.verify(t, publishers, messages)
			}
			if p.Stats().FellBehind == 0 {
				t.Error("nobody fell behind: the test does not do what it is for")
			}
		})
	}
}

// sinkTransport collects what is written and takes only a part of it at a time.
type sinkTransport struct {
	want int
	done chan struct{} // closed when want messages are there
	rand *rand.Rand    // of whoever writes

	mu   sync.Mutex
	seen int
	data bytes.Buffer
}

func (s *sinkTransport) tryWrite(_ *socketWriter, b []byte) (int, error) {
	if s.rand.IntN(2) == 0 {
		b = b[:s.rand.IntN(len(b)+1)]
	}
	return s.write(b)
}

func (s *sinkTransport) write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data.Write(b)
	before := s.seen
	s.seen += bytes.Count(b, []byte{'>'})
	if before < s.want && s.seen >= s.want {
		close(s.done)
	}
	return len(b), nil
}

func (s *sinkTransport) endWrite()         {}
func (s *sinkTransport) check(bool) Reason { return "" }
func (s *sinkTransport) close()            {}

func (s *sinkTransport) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// verify wants every message once, those of each publisher in order.
func (s *sinkTransport) verify(t *testing.T, publishers, messages int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make([]int, publishers)
	for _, part := range strings.Split(s.data.String(), "<")[1:] {
		var i, n int
		if _, err := fmt.Sscanf(part, "%d.%d>", &i, &n); err != nil {
			t.Fatalf("%v in %q", err, part)
		}
		if n != next[i] {
			t.Fatalf("publisher %d: message %d, want %d", i, n, next[i])
		}
		next[i]++
	}
	for i, n := range next {
		if n != messages {
			t.Errorf("publisher %d: %d messages of %d", i, n, messages)
		}
	}
	if strings.Contains(s.data.String(), eventGap) {
		t.Error("a gap although history has everything")
	}
}

package consumer_test

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/consumer"
)

func TestCallbacks(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		p := start(t, pushlet.WithHistory(2, 1<<20, time.Hour))
		c := consumer.NewClient(path(serve(t, p).URL)+"?topic=a", quickly)
		calls := make(chan string, 100)
		for _, name := range []string{"", "custom", "*"} {
			c.OnEvent(name, func(m *consumer.Message) { calls <- fmt.Sprintf("%s: %s %s", name, m.Event, m.Data) })
		}
		c.OnEvent("custom", func(m *consumer.Message) { calls <- "second" })
		c.OnConnection(func() { calls <- "connection" })
		ready := make(chan string, 100)
		c.OnSubscribed(func(topic string) { ready <- topic })
		c.OnError(func(err error) { t.Error(err) })
		expect := func(want ...string) {
			t.Helper()
			for _, w := range want {
				select {
				case got := <-calls:
					if got != w {
						t.Fatalf("call %q, want %q", got, w)
					}
				case <-time.After(patience):
					t.Fatalf("no call, want %q", w)
				}
			}
		}
		select {
		case <-c.Wait():
		default:
			t.Error("Wait waits for what does not run")
		}
		c.Stop() // nothing
		must(t, c.Connect())
		expect("connection")
		<-ready
		if err := errors.Join(c.Start(), c.Connect()); !errors.Is(err, consumer.ErrRunning) || c.Err() != nil {
			t.Errorf("%v, %v", err, c.Err())
		}
		for _, err := range c.Messages(t.Context()) {
			if !errors.Is(err, consumer.ErrRunning) {
				t.Error(err)
			}
		}
		must(t, p.Publish("a", "", "1"))
		must(t, p.Publish("a", "custom", "2"))
		must(t, p.Publish("a", "other", "3"))
		expect(": message 1", "custom: custom 2", "second", "*: other 3")

		c.Disconnect()
		c.Stop()
		<-c.Wait()
		if err := c.Err(); !errors.Is(err, consumer.ErrStopped) {
			t.Errorf("ended by %v", err)
		}
		for i := range 4 {
			must(t, p.Publish("a", "", fmt.Sprint(i+4)))
		}
		must(t, c.Start()) // goes on where it was
		expect("connection", "*: pushlet.gap "+gapData(path), ": message 6", ": message 7")
		c.Stop()
		<-c.Wait()
	})
}

func gapData(path func(string) string) string {
	if strings.HasPrefix(path(""), "ws") {
		return "trimmed"
	}
	return `{"topics":["a"],"reason":"trimmed"}`
}

// A callback may stop it, and is the last then.
func TestStopInACallback(t *testing.T) {
	both(t, func(t *testing.T, path func(string) string) {
		p := start(t)
		c := consumer.NewClient(path(serve(t, p).URL) + "?topic=a")
		n := 0
		c.OnEvent("message", func(*consumer.Message) {
			n++
			c.Stop()
		})
		c.OnSubscribed(func(string) {
			must(t, p.Publish("a", "", "1"))
			must(t, p.Publish("a", "", "2"))
		})
		must(t, c.Start())
		<-c.Wait()
		if n != 1 {
			t.Errorf("%d calls", n)
		}
	})
}

// Stop ends a loop as well.
func TestStopALoop(t *testing.T) {
	c := consumer.NewClient(scripted(t, open("data: x\n\n")).URL)
	n := 0
	for m, err := range c.Messages(t.Context()) {
		if n++; n == 1 {
			c.Stop()
		} else if !errors.Is(err, consumer.ErrStopped) {
			t.Errorf("%+v, %v", m, err)
		}
	}
	if n != 2 || !errors.Is(c.Err(), consumer.ErrStopped) {
		t.Errorf("%d elements, %v", n, c.Err())
	}
}

// Connect tells why the first connection failed, and can be called again.
func TestConnectFails(t *testing.T) {
	srv := scripted(t, status(500), status(403), open("data: x\n\n"))
	for _, url := range []string{srv.URL, wsURL(scripted(t, status(500), status(403), status(403)).URL)} {
		c := consumer.NewClient(url)
		c.OnError(func(err error) { t.Errorf("OnError: %v", err) })
		for _, want := range []int{500, 403} {
			var answer *consumer.ResponseError
			if err := c.Connect(); !errors.As(err, &answer) || answer.Status != want || !errors.Is(c.Err(), err) {
				t.Errorf("%v, want %d; %v", err, want, c.Err())
			}
		}
		if url == srv.URL {
			must(t, c.Connect())
			c.Stop()
			<-c.Wait()
		}
	}
}

// What nobody handles is an error that is told; the final one too.
func TestUnhandled(t *testing.T) {
	srv := scripted(t, stream("event: pushlet.gap\ndata: {\"topics\":[\"a\"],\"reason\":\"trimmed\"}\n\ndata: x\n\n"), status(204))
	c := consumer.NewClient(srv.URL, quickly)
	errs := make(chan error, 10)
	c.OnError(func(err error) { errs <- err })
	must(t, c.Start())
	<-c.Wait()
	var gap *consumer.Gap
	var again *consumer.RetryError
	if err := <-errs; !errors.As(err, &gap) || gap.Reason != "trimmed" {
		t.Errorf("first %v", err)
	}
	if err := <-errs; !errors.As(err, &again) {
		t.Errorf("then %v", err)
	}
	if err := <-errs; !errors.Is(err, consumer.ErrNoContent) || !errors.Is(c.Err(), err) {
		t.Errorf("last %v", err)
	}
	if len(errs) > 0 {
		t.Errorf("error %v", <-errs)
	}
}

// Without OnError errors are logged, without the URL.
func TestLog(t *testing.T) {
	said := make(firstLine, 1)
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(said, nil)))
	defer slog.SetDefault(old)
	c := consumer.NewClient("http://127.0.0.1:1/events?token=secret")
	must(t, c.Start())
	if line := <-said; !strings.Contains(line, "refused") || strings.Contains(line, "secret") {
		t.Errorf("logged %q", line)
	}
	c.Stop()
	<-c.Wait()
}

// A firstLine keeps the first line that is written.
type firstLine chan string

func (c firstLine) Write(b []byte) (int, error) {
	select {
	case c <- string(b):
	default:
	}
	return len(b), nil
}

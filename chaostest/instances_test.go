package chaostest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/internal/redistest"
)

// Instances that are killed or restarted, with a Redis that is well.

// TestInstanceKill kills one instance after the other, as a crash would.
func TestInstanceKill(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	w := newWorld(t, settings{whole: true, start: func(w *world, i int) instance { return newProcess(w, i, server.Addr()) }})
	w.run(func() {
		for i := range int(lasts(4, 20)) {
			p := w.instances[i%len(w.instances)].(*process)
			p.kill()
			time.Sleep(lasts(100*time.Millisecond, 300*time.Millisecond))
			p.run()
			w.ready()
		}
	})
}

// TestInstanceRestart stops one instance after the other in good order and starts another
// in its place.
func TestInstanceRestart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	w := newWorld(t, settings{redis: clientsOf(server), whole: true})
	w.run(func() {
		for i := range int(lasts(6, 40)) {
			l := w.instances[i%len(w.instances)].(*local)
			l.end()
			l.begin()
			w.ready()
			time.Sleep(lasts(100*time.Millisecond, 200*time.Millisecond))
		}
	})
}

// childEnv has, in a process that is an instance, the address of Redis.
const childEnv = "PUSHLET_CHAOS_INSTANCE"

// A process is an instance in a process of its own, so that it can be killed.
type process struct {
	w      *world
	called string
	redis  string
	http   *http.Client // for publish and ready

	mu   sync.Mutex
	base string
	cmd  *exec.Cmd
	life io.Closer // the process ends when it is closed
}

func newProcess(w *world, i int, redis string) *process {
	p := &process{w: w, called: string(rune('a' + i)), redis: redis, http: &http.Client{Transport: new(http.Transport)}}
	p.run()
	return p
}

// run starts the process, and waits until it serves.
func (p *process) run() {
	p.w.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+p.redis)
	cmd.Stderr = os.Stderr
	life, err := cmd.StdinPipe()
	must(p.w.t, err)
	out, err := cmd.StdoutPipe()
	must(p.w.t, err)
	must(p.w.t, cmd.Start())
	p.mu.Lock()
	p.cmd, p.life = cmd, life
	p.mu.Unlock()
	base, err := bufio.NewReader(out).ReadString('\n')
	must(p.w.t, err)
	p.mu.Lock()
	p.base = strings.TrimSpace(base)
	p.mu.Unlock()
}

// kill ends the process with SIGKILL.
func (p *process) kill() {
	p.mu.Lock()
	cmd, life := p.cmd, p.life
	p.base, p.cmd = "", nil
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	cmd.Process.Kill()
	cmd.Wait()
	life.Close()
}

func (p *process) name() string { return p.called }

func (p *process) url() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.base
}

// publish asks the process to do it. Where no answer comes nobody knows what it has done.
func (p *process) publish(ctx context.Context, topic, data string) error {
	limit := "0"
	if deadline, ok := ctx.Deadline(); ok {
		limit = time.Until(deadline).String()
	}
	ctx, cancel := context.WithTimeout(context.Background(), late+5*time.Second)
	defer cancel()
	base := p.url()
	if base == "" {
		return pushlet.ErrClosed
	}
	query := url.Values{"topic": {topic}, "limit": {limit}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/publish?"+query.Encode(), strings.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := p.http.Do(req)
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("%w: %w", pushlet.ErrUnavailable, err)
	case err != nil:
		return fmt.Errorf("%w: %w", pushlet.ErrUncertain, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", pushlet.ErrUncertain, err)
	case resp.StatusCode == http.StatusServiceUnavailable:
		return fmt.Errorf("%w: %s", pushlet.ErrUnavailable, text)
	case resp.StatusCode == http.StatusAccepted:
		return fmt.Errorf("%w: %s", pushlet.ErrUncertain, text)
	}
	return nil
}

func (p *process) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), late)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url()+"/ready", nil)
	if err != nil {
		return err
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		return errors.New(string(text))
	}
	return nil
}

func (p *process) stats() string { return p.url() }

func (p *process) end() {
	p.kill()
	p.http.CloseIdleConnections()
}

// beInstance is the whole of such a process. It ends when it is killed, or its parent is.
func beInstance(addr string) int {
	client := redis.NewClient(&redis.Options{Addr: addr})
	p := pushlet.New(
		pushlet.WithRedis(client),
		pushlet.WithLogger(func() pushlet.Logger { return mute{} }),
		pushlet.WithHistory(1<<20, 1<<28, time.Hour),
		pushlet.WithRetry(50*time.Millisecond),
	)
	if err := errors.Join(p.SetHeartbeatInterval(time.Second), p.Start()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	mux := routes(p)
	mux.HandleFunc("POST /publish", func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		limit, _ := time.ParseDuration(r.FormValue("limit"))
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		err = publishTo(ctx, p, r.FormValue("topic"), string(data))
		switch {
		case errors.Is(err, pushlet.ErrUncertain):
			http.Error(w, err.Error(), http.StatusAccepted)
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	srv := httptest.NewServer(mux)
	fmt.Println(srv.URL)
	io.Copy(io.Discard, os.Stdin) // until the parent has gone
	return 0
}

// mute is a logger.
type mute struct{}

func (mute) Println(...any)                         {}
func (m mute) WithField(string, any) pushlet.Logger { return m }

package chaostest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/usual2970/pushlet/internal/redistest"
)

// A single Redis that is killed and comes back: with all its data, with some, or none.

// TestRedisRestart kills a Redis that has all on disk before it answers.
func TestRedisRestart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.AppendOnly("always"))
	w := newWorld(t, settings{redis: clientsOf(server), whole: true})
	w.run(func() {
		for range int(lasts(2, 6)) {
			server.Kill()
			time.Sleep(lasts(100*time.Millisecond, 500*time.Millisecond))
			server.Restart()
			w.ready()
			time.Sleep(lasts(200*time.Millisecond, time.Second))
		}
	})
	if !w.noticed() {
		t.Error("no instance has lost its connection")
	}
}

// TestRedisRollback kills a Redis that comes back without the last messages that it has
// acknowledged: its files are put back to what they were shortly before.
func TestRedisRollback(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.AppendOnly("everysec"))
	files := filesOf(t, server)
	w := newWorld(t, settings{redis: clientsOf(server), reasons: []string{"rolled_back"}})
	lost := 0
	w.run(func() {
		for range int(lasts(2, 6)) {
			files.save()
			saved := w.since()
			time.Sleep(lasts(300*time.Millisecond, time.Second))
			server.Kill()
			lost += w.published(saved, w.since()).acked
			files.restore()
			server.Restart()
			w.ready()
			time.Sleep(lasts(200*time.Millisecond, 2*time.Second))
		}
	})
	if lost == 0 {
		t.Error("no message that was acknowledged was lost")
	}
	w.expectGap("rolled_back")
}

// TestRedisRollbackUnheard is TestRedisRollback with messages that have reached nobody
// before they were lost, so that only the instance that has published them can know.
func TestRedisRollbackUnheard(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.AppendOnly("everysec"))
	files := filesOf(t, server)
	w := newWorld(t, settings{redis: clientsOf(server), private: 1, reasons: []string{"rolled_back"}})
	w.run(func() {
		for range int(lasts(1, 4)) {
			w.hush(true)
			for _, in := range w.instances[1:] {
				in.end()
			}
			files.save()
			saved := w.since()
			for _, topic := range append([]string{everybody}, w.names...) {
				if m := w.publish(w.instances[0], topic, 10, patience); m.outcome != acked {
					t.Error(m)
				}
			}
			server.Kill()
			files.restore()
			server.Restart()
			for _, in := range w.instances[1:] {
				in.(*local).begin()
			}
			if !testing.Short() { // it sees it soon, without anything else to publish
				w.allHave("a gap", gap, saved)
			}
			w.hush(false)
			w.allHave("a gap", gap, saved)
			time.Sleep(lasts(0, 2*time.Second))
		}
	})
}

// A files can put the files of a server back to what they were.
type files struct {
	t          *testing.T
	dir, saved string
}

func filesOf(t *testing.T, server *redistest.Server) *files {
	t.Helper()
	dir, err := server.Client().ConfigGet(t.Context(), "dir").Result()
	must(t, err)
	return &files{t: t, dir: filepath.Join(dir["dir"], "appendonlydir")}
}

// save copies the files, while the server runs.
func (f *files) save() {
	f.t.Helper()
	f.saved = filepath.Join(f.t.TempDir(), "saved")
	must(f.t, os.CopyFS(f.saved, os.DirFS(f.dir)))
}

// restore puts back what was saved. The server must be down.
func (f *files) restore() {
	f.t.Helper()
	must(f.t, os.RemoveAll(f.dir))
	must(f.t, os.CopyFS(f.dir, os.DirFS(f.saved)))
}

// TestRedisWipe kills a Redis that comes back without any data.
func TestRedisWipe(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	w := newWorld(t, settings{redis: clientsOf(server), reasons: []string{"restarted"}})
	w.run(func() {
		for range int(lasts(2, 6)) {
			server.Kill()
			server.Wipe()
			time.Sleep(lasts(50*time.Millisecond, time.Second))
			server.Restart()
			time.Sleep(lasts(500*time.Millisecond, 2*time.Second))
		}
	})
	w.expectGap("restarted")
}

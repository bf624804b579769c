package chaostest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

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
	admin := server.Client()
	dir := filepath.Join(dataDir(t, admin), "appendonlydir")
	w := newWorld(t, settings{redis: clientsOf(server), reasons: []string{"rolled_back"}})
	lost := 0
	w.run(func() {
		for i := range int(lasts(1, 4)) {
			time.Sleep(1200 * time.Millisecond) // until the sync of all before
			older := filepath.Join(t.TempDir(), fmt.Sprint(i))
			must(t, os.CopyFS(older, os.DirFS(dir)))
			copied := w.since()
			time.Sleep(lasts(300*time.Millisecond, time.Second))
			server.Kill()
			lost += w.published(copied, w.since()).acked
			must(t, os.RemoveAll(dir))
			must(t, os.Rename(older, dir))
			server.Restart()
			w.ready()
		}
	})
	if lost == 0 {
		t.Error("no message that was acknowledged was lost")
	}
	w.expectGap("rolled_back")
}

// dataDir is where a server keeps its files.
func dataDir(t *testing.T, admin *redis.Client) string {
	t.Helper()
	dir, err := admin.ConfigGet(t.Context(), "dir").Result()
	must(t, err)
	return dir["dir"]
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

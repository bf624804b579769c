package pushlettest_test

import (
	"testing"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/pushlettest"
)

func TestMemoryHistory(t *testing.T) {
	t.Parallel()
	pushlettest.TestHistory(t, func(*testing.T) pushlet.History { return pushlettest.NewMemoryHistory() },
		pushlettest.HistoryReopen(func(_ *testing.T, h pushlet.History) pushlet.History { return h }),
		pushlettest.HistoryTrim(func(_ *testing.T, h pushlet.History, a pushlet.Audience, keep int) {
			h.(*pushlettest.MemoryHistory).Trim(a, keep)
		}))
}

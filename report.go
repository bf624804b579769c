package pushlet

import "log/slog"

// What the hooks are told that are not called in a connection's goroutine.

// A report is something that happened in the broker. tell calls the hook.
type report interface {
	tell(p *Pushlet)
	calls() int // of the hook
}

// maxReports is how many reports may wait for the hooks.
const maxReports = 256

type slowReport struct{ SlowConsumer }

func (*slowReport) calls() int { return 1 }

func (r *slowReport) tell(p *Pushlet) {
	logAt(p.log.WithField("client", r.Client).WithField("topic", r.Topic), slog.LevelWarn,
		"slow consumer lost messages, policy:", r.Policy)
	if p.cfg.hooks.OnSlow != nil {
		p.guard("OnSlow", func() { p.cfg.hooks.OnSlow(r.SlowConsumer) })
	}
}

// An undeliveredReport is what was left over of one connection.
type undeliveredReport struct {
	client Client
	why    Reason
	frames []*frame // only what the broker does not change any more is looked at
}

func (r *undeliveredReport) calls() int { return len(r.frames) }

func (r *undeliveredReport) tell(p *Pushlet) {
	for _, f := range r.frames {
		u := Undelivered{r.client, f.topic, f.id.String(), f.event, f.data, r.why}
		p.guard("OnUndelivered", func() { p.cfg.hooks.OnUndelivered(u) })
	}
}

// report is called by the broker, so it does not wait.
func (p *Pushlet) report(r report) {
	select {
	case p.reports <- r:
	default:
		p.counters.unreported.Add(uint64(r.calls()))
	}
}

// tellReports hands the reports on, until there is nothing left to report.
func (p *Pushlet) tellReports() {
	for {
		select {
		case r := <-p.reports:
			r.tell(p)
		case <-p.quiet:
			for len(p.reports) > 0 { // nobody reports any more
				(<-p.reports).tell(p)
			}
			return
		}
	}
}

package main

import (
	"fmt"
	"sync"
	"time"
)

// pass shows a line until the next is written. It is cut to the width of the terminal, because
// one that wraps could not be written over.
func (s *stream) pass(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	width, _ := terminalWidth(s.file)
	if width <= 0 {
		width = 80
	}
	if len(line) >= width { // ASCII
		line = line[:width-1]
	}
	s.passing = true
	_, _ = s.file.WriteString("\r" + line + eraseLine)
}

// end removes what passes.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
}

const (
	progressEvery = 200 * time.Millisecond // on a terminal, where the line is written over
	reportEvery   = 3 * time.Second        // elsewhere
)

// showProgress says how far the bench is, on the standard error, until the function that it returns is called.
func (b *bench) showProgress() (stop func()) {
	out := b.c.stderr
	every, show := reportEvery, func(line string) { b.c.note(dim, "pushlet bench: %s", line) }
	if out.terminal {
		every, show = progressEvery, out.pass
	}
	if b.quiet {
		return func() {}
	}
	done := make(chan struct{})
	var shown sync.WaitGroup
	shown.Go(func() { // ends with stop
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		before, at := int64(0), time.Now()
		for {
			select {
			case <-done:
				return
			case now := <-ticker.C:
				deliveries := b.live.deliveries.Load()
				perSecond := float64(deliveries-before) / now.Sub(at).Seconds()
				show(b.progress(now.Sub(b.epoch), perSecond))
				if now.Sub(at) > time.Second { // so that the rate does not flicker
					before, at = deliveries, now
				}
			}
		}
	})
	return func() {
		close(done)
		shown.Wait()
		out.end()
	}
}

func (b *bench) progress(elapsed time.Duration, perSecond float64) string {
	l := &b.live
	line := fmt.Sprintf("%d s  connected %s/%s", int(elapsed.Seconds()), thousands(l.up.Load()), thousands(int64(b.n)))
	if n := l.failed.Load(); n > 0 {
		line += "  failed " + thousands(n)
	}
	if n := l.reconnects.Load(); n > 0 {
		line += "  reconnects " + thousands(n)
	}
	if b.push != nil {
		line += "  published " + thousands(l.published.Load())
	}
	return line + fmt.Sprintf("  deliveries %s (%s/s)", thousands(l.deliveries.Load()), thousands(int64(perSecond)))
}

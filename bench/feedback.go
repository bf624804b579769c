package main

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"
)

// Feedback is how the server's publisher knows what has arrived: the workers of
// the load generator write reports to a pipe that both processes hold. How often
// they do is the load generator's decision (see ConnectArgs.ReportEvery), because
// reading a report costs the server CPU time that is measured.

// A report says what one worker's connections have received since they connected.
type report struct {
	worker int
	least  int // messages that the slowest connection has received
	total  int // messages that all connections have received
}

const reportSize = 24 // far below PIPE_BUF, so that a report is written whole

func (r report) encode() []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(r.worker))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.least))
	return binary.LittleEndian.AppendUint64(b, uint64(r.total))
}

func decodeReport(b []byte) report {
	return report{
		worker: int(binary.LittleEndian.Uint64(b)),
		least:  int(binary.LittleEndian.Uint64(b[8:])),
		total:  int(binary.LittleEndian.Uint64(b[16:])),
	}
}

// feedback is the server's view of the reports.
type feedback struct {
	changed chan struct{} // holds one token when a report has come since the last look

	mu      sync.Mutex
	reports map[int]report
}

func newFeedback() *feedback {
	return &feedback{changed: make(chan struct{}, 1), reports: make(map[int]report)}
}

// read takes in reports until r ends.
func (f *feedback) read(r io.Reader) error {
	var b [reportSize]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		rep := decodeReport(b[:])
		f.mu.Lock()
		f.reports[rep.worker] = rep
		f.mu.Unlock()
		select {
		case f.changed <- struct{}{}:
		default:
		}
	}
}

// arrived returns what the slowest connection and all connections have received.
func (f *feedback) arrived() (least, total int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	least = -1
	for _, r := range f.reports {
		if least < 0 || r.least < least {
			least = r.least
		}
		total += r.total
	}
	return max(least, 0), total
}

// patience is how long nothing may arrive before a run is given up.
const patience = 15 * time.Second

var errStalled = errors.New("no message has arrived for " + patience.String())

// wait returns when enough says so of what has arrived.
func (f *feedback) wait(enough func(least, total int) bool) error {
	if enough(f.arrived()) {
		return nil
	}
	stalled := time.NewTimer(patience)
	defer stalled.Stop()
	for {
		select {
		case <-f.changed:
			if enough(f.arrived()) {
				return nil
			}
			stalled.Reset(patience)
		case <-stalled.C:
			return errStalled
		}
	}
}

package pushlet

import (
	"fmt"
	"log"
)

// A Logger is what Pushlet writes its log to. Both methods must be safe for
// concurrent use. Message contents are never logged, and what a client sent is
// logged quoted.
type Logger interface {
	// Println logs its arguments in the manner of fmt.Println.
	Println(v ...any)
	// WithField returns a new logger that adds key and value to every line.
	WithField(key string, value any) Logger
}

// NewLogger makes the logger of one Pushlet.
type NewLogger func() Logger

// stdLogger writes to the standard library's default logger.
type stdLogger struct {
	fields string // " key=value …", ready to append
}

func newStdLogger() Logger { return stdLogger{} }

func (l stdLogger) Println(v ...any) {
	line := fmt.Sprintln(v...)
	log.Print("pushlet: ", line[:len(line)-1], l.fields)
}

func (l stdLogger) WithField(key string, value any) Logger {
	return stdLogger{fields: l.fields + fmt.Sprintf(" %s=%q", key, fmt.Sprint(value))}
}

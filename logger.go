package pushlet

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"strings"
)

// A Logger is what Pushlet writes its log to. Both methods must be safe for
// concurrent use. Message contents are never logged, and what a client sent is only the
// value of a field, never part of a line; the default logger and log/slog quote it.
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

// slogLogger writes to log/slog: fields are attributes.
type slogLogger struct{ log *slog.Logger }

func (l slogLogger) Println(v ...any) { l.printAt(slog.LevelInfo, v...) }

func (l slogLogger) WithField(key string, value any) Logger {
	return slogLogger{l.log.With(key, value)}
}

func (l slogLogger) printAt(level slog.Level, v ...any) {
	l.log.Log(context.Background(), level, strings.TrimSuffix(fmt.Sprintln(v...), "\n"))
}

// logAt logs at a level where the logger has levels. Info is what happens, Warn what
// somebody should look at, Error what must not happen.
func logAt(l Logger, level slog.Level, v ...any) {
	if leveled, ok := l.(interface{ printAt(slog.Level, ...any) }); ok {
		leveled.printAt(level, v...)
		return
	}
	l.Println(v...)
}

// Command pushlet looks at a running server from the command line: it shows what a server pushes,
// publishes, and measures.
//
//	go install github.com/usual2970/pushlet/cmd/pushlet@latest
//
//	pushlet sub localhost:8080 -topic news -topic sports
//	pushlet pub localhost:8080 -topic news 'hello, world'
//	pushlet bench ws://localhost:8080 -n 10000
//
// "pushlet help COMMAND" lists the options. They may stand before or after the URL.
//
// # URLs
//
// Without a scheme a URL is http. Without a path it is /events for http and https, which is
// Server-Sent Events, /ws for ws and wss, and /push for pub. Each request has the headers of
// -header, and the token of -token or the environment variable PUSHLET_TOKEN as
// "Authorization: Bearer"; a user and a password in the URL become "Authorization: Basic".
//
// # Output
//
// Results go to the standard output, everything else to the standard error. On a terminal there
// are colours, unless NO_COLOR is set or TERM is "dumb". What comes from a server is shown with its
// control characters escaped, so that it cannot take hold of a terminal; -json has it exactly.
// When nobody reads the standard output any more, as in "pushlet sub … | head -1", the command ends
// without a word.
//
// # Exit codes
//
//	0  as wanted
//	1  failed: a final error, a refusal, not published, connections that bench did not get
//	2  wrong usage
//	3  finished, but messages were lost or came twice: bench; sub with -fail-on-gap
//	4  pub: perhaps published, the outcome is not known
//
// An interrupt, or SIGTERM, ends sub with 0, because it has no other end; bench stops early and still
// shows its table. A second one ends the process at once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)   // so that a second signal ends the program at once
	signal.Ignore(syscall.SIGPIPE) // a write fails with EPIPE instead: see finish
	os.Exit(run(ctx, newConsole(), os.Args[1:]))
}

// A command is what can stand after "pushlet".
type command struct {
	name, arguments, summary string
	// run does it. It defines its own options in o before it parses, because help asks for them.
	run func(ctx context.Context, c *console, o *options, args []string) error
	// notes stand below the options in the help.
	notes string
}

// commands is a function, not a variable, because help asks for it.
func commands() []command {
	return []command{subCommand, pubCommand, benchCommand}
}

// run does what args say and returns the exit code.
func run(ctx context.Context, c *console, args []string) int {
	if len(args) == 0 {
		usage(c.stderr)
		return exitUsage
	}
	name, args := args[0], args[1:]
	switch name {
	case "help", "-h", "-help", "--help":
		return help(ctx, c, args)
	case "version", "-version", "--version":
		_, _ = fmt.Fprintln(c.stdout, "pushlet", version(), runtime.Version())
		return exitOK
	}
	for _, cmd := range commands() {
		if cmd.name == name {
			return cmd.start(ctx, c, args)
		}
	}
	c.complain("pushlet: there is no command %q: see pushlet help", name)
	return exitUsage
}

// start runs a command and says what has become of it.
func (cmd command) start(ctx context.Context, c *console, args []string) int {
	o := newOptions(cmd.name)
	err := cmd.run(ctx, c, o, args)
	var wrong *usageError
	switch {
	case errors.Is(err, flag.ErrHelp):
		cmd.help(c.stdout, o)
		return exitOK
	case errors.As(err, &wrong):
		c.complain("pushlet %s: %v\nusage: pushlet %[1]s %[3]s\nsee pushlet help %[1]s", cmd.name, err, cmd.arguments)
	case err != nil && !errors.Is(err, syscall.EPIPE):
		c.complain("pushlet %s: %s", cmd.name, plain(err))
	}
	return codeOf(err)
}

// help prints what there is, or the options of a command.
func help(ctx context.Context, c *console, args []string) int {
	if len(args) == 0 {
		usage(c.stdout)
		return exitOK
	}
	return run(ctx, c, []string{args[0], "-h"})
}

func usage(w io.Writer) {
	var b strings.Builder
	b.WriteString("Pushlet from the command line: Server-Sent Events and WebSocket.\n\n")
	for _, cmd := range commands() {
		fmt.Fprintf(&b, "  pushlet %-6s%-32s %s\n", cmd.name, cmd.arguments, cmd.summary)
	}
	b.WriteString(`  pushlet help  [command]                        options and examples
  pushlet version

Without a scheme a URL is http; without a path it is /events, over ws and wss /ws, for pub /push.
Exit codes: 0 as wanted, 1 failed, 2 wrong usage, 3 messages were lost, 4 perhaps published.
`)
	_, _ = io.WriteString(w, b.String()) // nobody is told if this fails
}

// help prints the options of a command.
func (cmd command) help(w io.Writer, o *options) {
	var b strings.Builder
	fmt.Fprintf(&b, "usage: pushlet %s %s\n\n%s.\n\n", cmd.name, cmd.arguments, cmd.summary)
	o.flags.SetOutput(&b)
	o.flags.PrintDefaults()
	fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(cmd.notes))
	_, _ = io.WriteString(w, b.String())
}

// version is that of the module, or of the commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	if v := info.Main.Version; v != "" {
		return v
	}
	return "(devel)"
}

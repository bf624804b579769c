// Command bench measures Pushlet against baselines that do the least a server can,
// in the same run, and says which of the project's targets are reached. See README.md.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Roles of the child processes, as first argument.
const (
	roleServer = "serve"
	roleLoad   = "load"
)

// defaultHeartbeat is Pushlet's own default. Baselines send none.
const defaultHeartbeat = 30 * time.Second

// fileLimit is enough for 50,000 connections and what else a process holds.
const fileLimit = 60_000

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 && (args[0] == roleServer || args[0] == roleLoad) {
		return runRole(args)
	}
	b, out, err := parse(args)
	if err != nil {
		return err
	}
	b.runScenarios()
	if err := b.results.writeMarkdown(os.Stdout); err != nil {
		return err
	}
	if out != "" {
		if err := b.results.save(out); err != nil {
			return err
		}
	}
	if len(b.results.Failed) > 0 {
		return errors.New("not every scenario came to its end")
	}
	return nil // also when a target is missed: the table says so, and machines differ
}

// runRole is what a child process does.
func runRole(args []string) error {
	if _, err := raiseFileLimit(fileLimit); err != nil {
		return err
	}
	if args[0] == roleLoad {
		return runLoad()
	}
	heartbeat, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	return runServer(args[1], args[2], heartbeat, args[4])
}

// bench is one run of the program.
type bench struct {
	quick     bool
	rounds    int
	scenarios []string
	protocols []string
	profiles  string
	files     int // that a process of ours may hold open
	results   results
}

// scenarios are what can be measured, in order. One without a protocol runs once.
var scenarios = []struct {
	name         string
	run          func(b *bench, protocol string) error
	withProtocol bool
}{
	{"idle", (*bench).idle, true},
	{"fanout", (*bench).fanout, true},
	{"full", (*bench).full, true},
	{"topics", (*bench).topics, true},
	{"churn", (*bench).churn, true},
	{"resume", (*bench).resume, true},
	{"nobody", func(b *bench, _ string) error { return b.nobody() }, false},
	{"redis", func(b *bench, _ string) error { return b.redis() }, false},
}

func parse(args []string) (b *bench, out string, err error) {
	var known []string
	for _, s := range scenarios {
		known = append(known, s.name)
	}
	all := strings.Join(known, ",")

	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	only := flags.String("only", all, "scenarios to run")
	protocols := flags.String("protocol", protocolSSE+","+protocolWebSocket, "protocols to run them with")
	quick := flags.Bool("quick", false, "smaller and shorter: two to three minutes")
	rounds := flags.Int("rounds", 0, "rounds in which baseline and Pushlet are measured in turn (default 5, with -quick 2)")
	profiles := flags.String("profile", "", "`directory` for CPU and heap profiles of the servers; they make the figures worse")
	flags.StringVar(&out, "o", "", "also write the table to this `file.md`, and all figures to file.json")
	if err := flags.Parse(args); err != nil {
		return nil, "", err
	}
	if flags.NArg() > 0 {
		return nil, "", fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	b = &bench{
		quick:     *quick,
		rounds:    *rounds,
		scenarios: strings.Split(*only, ","),
		protocols: strings.Split(*protocols, ","),
	}
	for _, s := range b.scenarios {
		if !slices.Contains(known, s) {
			return nil, "", fmt.Errorf("no scenario %q; there are %s", s, all)
		}
	}
	for _, p := range b.protocols {
		if p != protocolSSE && p != protocolWebSocket {
			return nil, "", fmt.Errorf("no protocol %q; there are %s and %s", p, protocolSSE, protocolWebSocket)
		}
	}
	if b.rounds < 1 {
		b.rounds = b.sized(5, 2)
	}
	if *profiles != "" {
		if b.profiles, err = filepath.Abs(*profiles); err != nil {
			return nil, "", err
		}
		if err := os.MkdirAll(b.profiles, 0o755); err != nil {
			return nil, "", err
		}
	}
	if b.files, err = raiseFileLimit(fileLimit); err != nil {
		return nil, "", err
	}
	b.results = results{Machine: machine(), Command: strings.TrimSpace("go run . " + strings.Join(args, " "))}
	return b, out, nil
}

// runScenarios runs what was asked for. One that fails does not keep the others from running.
func (b *bench) runScenarios() {
	for _, s := range scenarios {
		if !slices.Contains(b.scenarios, s.name) {
			continue
		}
		protocols := b.protocols
		if !s.withProtocol {
			protocols = []string{""}
		}
		for _, protocol := range protocols {
			progress("— %s %s", s.name, protocol)
			if err := s.run(b, protocol); err != nil {
				failure := fmt.Sprintf("%s %s: %v", s.name, protocol, err)
				progress("FAILED: %s", failure)
				b.results.Failed = append(b.results.Failed, failure)
			}
		}
	}
}

// sized returns a size for this run.
func (b *bench) sized(full, quick int) int {
	if b.quick {
		return quick
	}
	return full
}

// window returns a length of time for this run.
func (b *bench) window(full, quick time.Duration) time.Duration {
	if b.quick {
		return quick
	}
	return full
}

// machine describes where and when this runs, and how busy it is with other things.
func machine() string {
	kernel, processor := field("/proc/sys/kernel/osrelease", ""), field("/proc/cpuinfo", "model name\t: ")
	busy, _, _ := strings.Cut(field("/proc/loadavg", ""), " ") // of the last minute
	return fmt.Sprintf("%s, %s, Linux %s, %s, %d cores, load average at the start %s",
		time.Now().Format(time.DateOnly), runtime.Version(), kernel, processor, runtime.NumCPU(), busy)
}

// field returns what follows prefix in a file's first line that begins with it.
func field(path, prefix string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return "?"
	}
	for line := range strings.Lines(string(content)) {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			return strings.TrimSpace(rest)
		}
	}
	return "?"
}

package main

import (
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
)

// options are what is on the command line after the name of a command.
type options struct {
	flags   *flag.FlagSet
	headers list
	token   string
}

// newOptions defines the options that all commands have.
func newOptions(command string) *options {
	o := &options{flags: flag.NewFlagSet(command, flag.ContinueOnError)}
	o.flags.SetOutput(io.Discard)
	o.flags.Var(&o.headers, "header", "send a header, `'Name: value'`, with each request; may be repeated")
	o.flags.StringVar(&o.token, "token", "", "send `T` as \"Authorization: Bearer T\" (default $PUSHLET_TOKEN)")
	return o
}

// parse reads flags wherever they stand, and returns what is not a flag. What follows "--" is
// none. The first that is left over is the URL.
func (o *options) parse(args []string) (url string, rest []string, err error) {
	flags, rest := split(o.flags, args)
	if err := o.flags.Parse(flags); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return "", nil, err
		}
		return "", nil, usagef("%v", err)
	}
	if len(rest) == 0 {
		return "", nil, usagef("the URL is missing")
	}
	return rest[0], rest[1:], nil
}

// split separates flags, with their values, from other arguments, as the package flag reads them.
func split(fs *flag.FlagSet, args []string) (flags, rest []string) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			return flags, append(rest, args...)
		case len(arg) < 2 || arg[0] != '-':
			rest = append(rest, arg)
			continue
		}
		flags = append(flags, arg)
		name := strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
		f := fs.Lookup(name)
		if f == nil {
			continue // unknown, or has its value behind a "="
		}
		if b, ok := f.Value.(interface{ IsBoolFlag() bool }); (!ok || !b.IsBoolFlag()) && len(args) > 0 {
			flags = append(flags, args[0])
			args = args[1:]
		}
	}
	return flags, rest
}

// isSet reports whether a flag was given.
func (o *options) isSet(name string) (set bool) {
	o.flags.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// A list is a flag that may be repeated.
type list []string

func (l *list) String() string { return strings.Join(*l, ", ") }

func (l *list) Set(s string) error {
	if s == "" {
		return errors.New("empty")
	}
	*l = append(*l, s)
	return nil
}

// A target is where to connect to, and with which headers.
type target struct {
	url    *url.URL // without user and password
	header http.Header
}

func (t target) webSocket() bool { return t.url.Scheme == "ws" || t.url.Scheme == "wss" }

// target completes a URL. paths are what stands for a missing one, by scheme; a scheme that has
// none is an error.
func (o *options) target(raw string, paths map[string]string) (t target, err error) {
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	t.url, err = url.Parse(raw)
	if err != nil {
		return t, usagef("URL: %v", errors.Unwrap(err)) // without the URL, which may hold a password
	}
	path, ok := paths[t.url.Scheme]
	if !ok {
		schemes := make([]string, 0, len(paths))
		for s := range paths {
			schemes = append(schemes, s)
		}
		slices.Sort(schemes)
		return t, usagef("URL: scheme %q, want %s", t.url.Scheme, strings.Join(schemes, ", "))
	}
	if t.url.Hostname() == "" {
		t.url.Host = net.JoinHostPort("localhost", t.url.Port()) // ":8080", as one writes it for servers
		if t.url.Port() == "" {
			return t, usagef("URL: no host")
		}
	}
	if t.url.Path == "" {
		t.url.Path = path
	}
	t.url.Fragment = ""
	t.header, err = o.header()
	if user := t.url.User; user != nil {
		password, _ := user.Password()
		if t.header.Get("Authorization") == "" {
			t.header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
		}
		t.url.User = nil
	}
	return t, err
}

// streamPaths are where Pushlet's handlers are by custom.
var streamPaths = map[string]string{"http": "/events", "https": "/events", "ws": "/ws", "wss": "/ws"}

// header is what every request carries.
func (o *options) header() (http.Header, error) {
	h := http.Header{}
	token := o.token
	if token == "" {
		token = os.Getenv("PUSHLET_TOKEN")
	}
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	fresh := map[string]bool{}
	for _, line := range o.headers {
		name, value, ok := strings.Cut(line, ":")
		name, value = http.CanonicalHeaderKey(strings.TrimSpace(name)), strings.TrimSpace(value)
		if !ok || !isToken(name) {
			return nil, usagef("-header: want 'Name: value'") // without the value, which may be a secret
		}
		if !fresh[name] {
			h.Del(name) // also the token's, by whoever wants another
			fresh[name] = true
		}
		h.Add(name, value)
	}
	for name, values := range h {
		if slices.ContainsFunc(values, func(v string) bool { return strings.ContainsAny(v, "\r\n\x00") }) {
			return nil, usagef("header %s: a line break in it", name)
		}
	}
	return h, nil
}

// isToken reports whether s can be the name of a header.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7F || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
}

// redacted is a URL for messages: the query may hold a secret.
func redacted(u *url.URL) string { return fmt.Sprintf("%s://%s%s", u.Scheme, u.Host, u.Path) }

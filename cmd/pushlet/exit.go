package main

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// Exit codes: see the package's comment.
const (
	exitOK        = 0
	exitFailed    = 1
	exitUsage     = 2
	exitLost      = 3
	exitUncertain = 4
)

// A usageError is for what was typed wrongly.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// A lostError is the end of what went through, but lost messages or got them twice.
type lostError string

func (e lostError) Error() string { return string(e) }

// errUncertain is wrapped when nobody knows whether something was published.
var errUncertain = errors.New("perhaps published")

// codeOf is the exit code for the end of a command. When nobody reads the output there is nothing
// to complain of, and nobody to complain to.
func codeOf(err error) int {
	var wrong *usageError
	var lost lostError
	switch {
	case err == nil, errors.Is(err, syscall.EPIPE):
		return exitOK
	case errors.As(err, &wrong):
		return exitUsage
	case errors.As(err, &lost):
		return exitLost
	case errors.Is(err, errUncertain):
		return exitUncertain
	}
	return exitFailed
}

// plain is the text of an error for a person, who does not care for the package it comes from.
func plain(err error) string { return strings.ReplaceAll(err.Error(), "consumer: ", "") }

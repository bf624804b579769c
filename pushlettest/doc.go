// Package pushlettest helps to test applications that use pushlet, and the stores that they
// give to it.
package pushlettest

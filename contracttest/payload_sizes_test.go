package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// An event arrives when its last byte does, whatever its size has to do with that of a buffer.
// The harness goes up to 128 MiB, which takes too long here.
func TestPayloadSizes(t *testing.T) {
	service := startService(t)
	var sizes []int
	for bits := range 22 {
		sizes = append(sizes, 1<<bits-1, 1<<bits, 1<<bits+1)
	}
	slices.Sort(sizes)
	for _, size := range slices.Compact(sizes)[1:] { // not 0
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s, c := begin(t, service, atOnce)
			data := strings.Repeat("x", size)
			c.send(t, "data: "+data+"\n\n")
			s.expect(event{Data: data})
		})
	}
}

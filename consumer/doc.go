// Package consumer receives what servers push. Its [Decoder] reads event streams of any server.
package consumer

package pushlet

import "fmt"

// EnableDistributedMode is to share topics with other instances through the Redis at
// addr. This version works within one process: it always returns an error that wraps
// ErrUnsupported, so that nobody takes one instance for many.
func (p *Pushlet) EnableDistributedMode(addr, _ string, db int) error {
	return fmt.Errorf("%w: distributed mode (Redis at %q, database %d) is not part of this version", ErrUnsupported, addr, db)
}

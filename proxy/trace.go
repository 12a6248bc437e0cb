package proxy

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/warren-mesh/warren/proxy/route"
)

// newTrace names one connection in the logs and traces of both ends. It is no
// secret.
func newTrace() (t route.Traceparent) {
	binary.BigEndian.PutUint64(t.TraceID[:8], rand.Uint64())
	binary.BigEndian.PutUint64(t.TraceID[8:], rand.Uint64()|1) // all zeros is invalid
	binary.BigEndian.PutUint64(t.SpanID[:], rand.Uint64()|1)
	return t
}

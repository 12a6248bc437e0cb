package nstest

import (
	"testing"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
)

// The checks with less patience, for tests of their failing.
const short = 50 * time.Millisecond

func ShortLeakCheck(t testing.TB) { leakCheck(t, short) }

func ShortNS(t testing.TB, name string) (*netns.NS, string) { return newNS(t, name, short) }

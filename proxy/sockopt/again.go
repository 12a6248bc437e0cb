package sockopt

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"
)

// unanswered is how long an application in our own namespace may be silent before its
// silence is taken for a sign. The kernel answers for it at once, unless its queue of
// connections is full: then another question is as good as the first.
const unanswered = 200 * time.Millisecond

// ConnectLocal is Connect to an application in this namespace. Its client may have
// connections of its own there, which the application took before they were redirected.
// The kernel does not know their ports for used, since no socket of ours is on them, and
// may choose one: then nobody answers. So what is not answered soon is tried once more
// from a port that no client's connect is given, see [Source].
func (s *Sockets) ConnectLocal(ctx context.Context, src netip.Addr, dst netip.AddrPort) (*Connection, error) {
	if !src.IsValid() || s.cfg.ConnectTimeout <= unanswered {
		return s.Connect(ctx, src, dst)
	}
	c, err := s.connectFrom(ctx, src, dst, false, unanswered)
	if err == nil || ctx.Err() != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
		return c, err
	}
	return s.ConnectApart(ctx, src, dst)
}

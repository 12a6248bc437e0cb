package zds

import (
	"fmt"

	"github.com/warren-mesh/warren/internal/netns"
)

// op is an Add or Del on its way to one session. Its fields are guarded by the
// server's mutex, except that err may be read once done is closed.
type op struct {
	req     request
	packet  []byte
	ns      *netns.NS // ours, Adds only
	started bool      // a session has taken it; it cannot be withdrawn
	done    chan struct{}
	err     error
}

// newAdd opens the namespace again: the caller may close its own when it no
// longer waits.
func newAdd(w Workload) (*op, error) {
	o := &op{req: request{kind: kindAdd, uid: w.UID, info: w.Info}, done: make(chan struct{})}
	var err error
	if o.packet, err = o.req.encode(); err != nil {
		return nil, err
	}
	if w.NS == nil {
		return nil, fmt.Errorf("zds: add uid %s: no network namespace", w.UID)
	}
	if o.ns, err = w.NS.Dup(); err != nil {
		return nil, fmt.Errorf("zds: add uid %s: %w", w.UID, err)
	}
	return o, nil
}

func newDel(uid string) (*op, error) {
	o := &op{req: request{kind: kindDel, uid: uid}, done: make(chan struct{})}
	var err error
	o.packet, err = o.req.encode()
	return o, err
}

// finishLocked settles the outcome, once.
func (o *op) finishLocked(err error) {
	if o.finished() {
		return
	}
	if o.ns != nil {
		o.ns.Close()
	}
	o.err = err
	close(o.done)
}

func (o *op) finished() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

// AckError is the proxy's answer to a message that it could not obey.
type AckError struct {
	UID  string
	Text string // the proxy's, as received
}

func (e *AckError) Error() string {
	return fmt.Sprintf("zds: uid %s: the proxy says: %q", e.UID, e.Text)
}

package kubeauth

import (
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// patience is how long a request waits for news of its pods: a node's agent hears of a pod from the container
	// runtime, and may be a moment earlier.
	patience = 2 * time.Second
	// maxPatient bounds the requests that wait at a time; others are refused at once.
	maxPatient = 1024
)

// Authorizer says which certificates a node's proxy may have. Safe for concurrent use.
type Authorizer struct {
	cfg     Config
	source  Source
	waiting chan struct{} // a slot for each request that waits
}

// Authorizer makes the Authorizer for the callers that a knows.
func (a *Authenticator) Authorizer(source Source) *Authorizer {
	return &Authorizer{cfg: a.cfg, source: source, waiting: make(chan struct{}, maxPatient)}
}

// Allowed returns nil if the caller may have a certificate for id, and otherwise the reason, which is for the log. It
// waits up to two seconds for news of the pods in question.
func (a *Authorizer) Allowed(caller Caller, id spiffeid.ID) error {
	if id.TrustDomain() != a.cfg.TrustDomain {
		return fmt.Errorf("the trust domain is %s", a.cfg.TrustDomain.Name())
	}
	if err := a.cfg.checkTrusted(caller); err != nil {
		return err
	}
	cluster, changed := a.source.Read()
	err := judge(cluster, caller, id)
	if err == nil || !errors.As(err, new(*early)) {
		return err
	}
	select {
	case a.waiting <- struct{}{}:
		defer func() { <-a.waiting }()
	default:
		return &unavailable{err: fmt.Errorf("%w, and %d requests wait for news of pods", err, maxPatient)}
	}
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		select {
		case <-changed:
		case <-limit.C:
			if cluster == nil {
				return &unavailable{err: err}
			}
			return fmt.Errorf("%w, after waiting for %s", err, patience)
		}
		cluster, changed = a.source.Read()
		if err = judge(cluster, caller, id); err == nil || !errors.As(err, new(*early)) {
			return err
		}
	}
}

// early is a reason that may go away with the next news.
type early struct{ reason string }

func (e *early) Error() string { return e.reason }

func waitFor(format string, args ...any) error { return &early{reason: fmt.Sprintf(format, args...)} }

// judge decides for a trusted caller.
func judge(c Cluster, caller Caller, id spiffeid.ID) error {
	if c == nil {
		return waitFor("the pods of the cluster have not been read yet")
	}
	pod, ok := c.Pod(caller.Pod)
	acc, _ := account(caller.Identity)
	switch {
	case !ok:
		return waitFor("the caller's pod %s is not known", caller.Pod)
	case pod.UID != caller.PodUID: // the news of its successor, or of it as the successor, is on the way
		return waitFor("pod %s has UID %q, the token is for %q", caller.Pod, pod.UID, caller.PodUID)
	case pod.Node == "":
		return waitFor("the caller's pod %s is on no node", caller.Pod)
	case pod.Account != acc.Name:
		return fmt.Errorf("pod %s has service account %s, the token is that of %s", caller.Pod, pod.Account, acc.Name)
	case pod.Finished:
		return fmt.Errorf("the caller's pod %s has finished", caller.Pod)
	case caller.Node != "" && caller.Node != pod.Node:
		return fmt.Errorf("pod %s is on node %s, the token names %s", caller.Pod, pod.Node, caller.Node)
	case id == caller.Identity || c.Runs(pod.Node, id):
		return nil
	}
	return waitFor("no pod of the mesh with that identity, or none that has not finished, is on node %s", pod.Node)
}

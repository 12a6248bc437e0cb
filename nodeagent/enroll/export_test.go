package enroll

import (
	"time"

	"github.com/warren-mesh/warren/cni/event"
)

// Waiting is how many hold or wait for the right to change a pod.
func (e *Enroller) Waiting(uid string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if m := e.members[uid]; m != nil {
		return m.users
	}
	return 0
}

// Suspect says whether every sweep looks at the rules of a pod.
func (e *Enroller) Suspect(uid string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.members[uid]
	return m != nil && time.Now().Before(m.suspect)
}

// Knows says whether a pod is known by this attachment.
func (e *Enroller) Knows(key event.Key) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.keys[key]
	return ok
}

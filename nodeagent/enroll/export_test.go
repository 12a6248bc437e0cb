package enroll

// Waiting is how many hold or wait for the right to change a pod.
func (e *Enroller) Waiting(uid string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if m := e.members[uid]; m != nil {
		return m.users
	}
	return 0
}

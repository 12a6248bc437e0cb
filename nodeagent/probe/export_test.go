package probe

// TryCgroups is the trial of rules by cgroup.
func (p *Probe) TryCgroups() error { return p.tryCgroups() }

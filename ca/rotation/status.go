package rotation

import (
	"errors"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
)

// Status is what `controlplane ca status` tells.
type Status struct {
	From     string          `json:"from"`
	Plugged  bool            `json:"plugged,omitempty"`
	Phase    Phase           `json:"phase"`
	Since    time.Time       `json:"since,omitzero"`
	Signing  authority.About `json:"signing"`
	Other    authority.About `json:"other,omitzero"` // to come, or still trusted
	Replicas []ReplicaStatus `json:"replicas,omitempty"`
	Live     Live            `json:"live"`            // SVIDs that are valid
	Needed   Live            `json:"needed,omitzero"` // those of them that the next step would cut off
	Next     string          `json:"next,omitempty"`  // step
	Wait     string          `json:"wait,omitempty"`  // why it is too early
	Note     string          `json:"note,omitempty"`
}

// ReplicaStatus is what is known of one replica.
type ReplicaStatus struct {
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
	AtStep bool      `json:"atStep"`
	Ended  bool      `json:"ended,omitempty"`
	Live   Live      `json:"live"`
}

// Look says how a store is, without changing anything.
func (c *Config) Look(k Kept, replicas []Replica, settle time.Duration, now time.Time) (Status, error) {
	if k.Name == "" {
		return Status{}, errors.New("there is no CA yet; start a control plane first")
	}
	u, err := c.choose(k, now)
	if err != nil {
		return Status{}, err
	}
	any := func(Batch) bool { return true }
	s := Status{From: k.Name, Plugged: k.Plugged, Signing: authority.Describe(u.files.Cert), Live: live(replicas, now, any), Note: u.note}
	step := Record{}.step()
	if k.Record.Fits(k.Files) {
		s.Phase, s.Since, step = k.Record.Phase, k.Record.Since, k.Record.step()
		other := k.Record.Other.Cert
		if authority.CertID(other) == s.Signing.ID {
			other = k.Files.Cert
		}
		s.Other = authority.Describe(other)
	}
	for _, r := range replicas {
		s.Replicas = append(s.Replicas, ReplicaStatus{Name: r.Name, At: r.At, AtStep: r.Step == step, Ended: r.Ended, Live: live([]Replica{r}, now, any)})
	}
	switch s.Phase {
	case Settled:
		if !k.Plugged {
			s.Next = "prepare"
		}
		return s, nil
	case Prepared:
		s.Next = "activate"
	case Activated:
		s.Next, settle = "retire", 0
	default:
		return s, nil
	}
	s.Needed = needed(k.Record, replicas, now)
	if err := tooEarly(k, replicas, settle, now); err != nil {
		s.Wait = err.Error()
	}
	return s, nil
}

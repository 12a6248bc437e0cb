package admin

import (
	"cmp"
	"slices"
	"time"

	"github.com/warren-mesh/warren/ca/svid"
)

// entitlement is the right of one pod to one identity.
type entitlement struct {
	UID       string     `json:"uid"`
	Namespace string     `json:"namespace,omitempty"`
	Name      string     `json:"name,omitempty"`
	Identity  string     `json:"identity"`
	State     string     `json:"state"`
	By        svid.By    `json:"by"` // how it was had; empty: not yet
	Serial    string     `json:"serialNumber,omitempty"`
	PID       int        `json:"pid,omitempty"`
	Container string     `json:"container,omitempty"`
	Proven    *time.Time `json:"proven,omitempty"`
	ConfirmBy *time.Time `json:"confirmBy,omitempty"` // it is taken back then, unless it is confirmed
	// Federates counts the roots of other trust domains by which peers are let in.
	Federates map[string]int `json:"federates,omitempty"`
}

func (s Source) entitlements() any {
	out := []entitlement{}
	for _, st := range s.Certs() {
		e := entitlement{
			Namespace: st.Pod.Namespace, Name: st.Pod.Name, Identity: st.ID.String(), State: st.Text(), By: st.By, PID: st.Proof.PID,
			Container: st.Proof.Container, Proven: moment(st.Proof.At), ConfirmBy: moment(st.Until),
		}
		if st.Identity != nil {
			e.Serial = st.Identity.Chain()[0].SerialNumber.String()
			for td, certs := range st.Identity.Federated() {
				if e.Federates == nil {
					e.Federates = map[string]int{}
				}
				e.Federates[td.Name()] = len(certs)
			}
		}
		for _, holder := range st.Holders {
			e.UID = holder
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b entitlement) int {
		return cmp.Or(cmp.Compare(a.UID, b.UID), cmp.Compare(a.Identity, b.Identity))
	})
	address, reuse := s.Origin()
	return map[string]any{"source": address, "reuse": reuse, "entitlements": out}
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

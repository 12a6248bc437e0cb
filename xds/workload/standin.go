package workload

import (
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"istio.io/istio/pkg/workloadapi/security"
)

// StandIn is the policy that takes the place of a refused one of which there is
// no earlier version, so that what it guards is not left open: a denial refuses
// everything in its scope, a permission permits nothing. name is the xDS name,
// packed the encoded Authorization, of which only the fields that say whom the
// policy is for are read; what is not known there counts as a denial, and as one
// for the namespace that the name has. So it is where packed is empty, for nothing
// could be read.
//
// It is nil where none is needed: for a dry run, and for a policy of single
// workloads, which name it and are closed while it is missing (but not quite, if it
// seems to be about mTLS only: what was sent and not understood may be more). A dry run
// of single workloads is to close nothing: one that matches nothing stands for it. It is
// nil also for a name without a namespace, under which nothing could be found again.
func StandIn(name string, packed []byte) *Policy {
	namespace, rest, ok := strings.Cut(name, "/")
	if !ok || rest == "" {
		return nil
	}
	h := readHead(packed)
	selector := h.scope == uint64(security.Scope_WORKLOAD_SELECTOR)
	switch {
	case h.dryRun && selector:
		return &Policy{Namespace: namespace, Name: rest, Scope: ScopeSelector, Action: Deny, DryRun: true}
	case h.dryRun, selector && !StrictOnly(name):
		return nil
	}
	p := &Policy{Namespace: namespace, Name: rest, Scope: ScopeNamespace}
	switch {
	case selector:
		p.Scope = ScopeSelector
	case h.scope == uint64(security.Scope_GLOBAL) || namespace == "":
		p.Scope = ScopeGlobal
	}
	if h.action == uint64(security.Action_ALLOW) {
		p.Action = Allow // without a rule: it matches nothing
		return p
	}
	p.Action = Deny
	p.Rules = []Rule{{}} // without a clause: it matches everything
	return p
}

// head is the part of an Authorization that says whom it is for.
type head struct {
	scope, action uint64
	dryRun        bool
}

// unreadable is a value of neither enumeration.
const unreadable = ^uint64(0)

// Numbers of the fields of Authorization that a head has.
const (
	fieldScope  protowire.Number = 3
	fieldAction protowire.Number = 4
	fieldDryRun protowire.Number = 6
)

// readHead reads what it can of an encoding that may be broken inside. One that is
// broken as a whole says nothing, nor does an empty one: every policy has a name.
func readHead(b []byte) head {
	broken := head{scope: unreadable, action: unreadable}
	if len(b) == 0 {
		return broken
	}
	var h head
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return broken
		}
		b = b[n:]
		if typ != protowire.VarintType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return broken
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return broken
		}
		b = b[n:]
		switch num {
		case fieldScope:
			h.scope = v
		case fieldAction:
			h.action = v
		case fieldDryRun:
			h.dryRun = v != 0
		}
	}
	return h
}

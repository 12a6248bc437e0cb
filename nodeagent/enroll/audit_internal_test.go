package enroll

import (
	"testing"
	"time"
)

// TestNotYetListened: a pod whose rules and answer have been seen is whole, also
// before the first look at its listeners, or where nobody can look.
func TestNotYetListened(t *testing.T) {
	a := audited{inspected: time.Now(), proof: ProofWhole}
	if proof, flaw := a.state(); proof != ProofWhole || flaw != "" {
		t.Errorf("%s, %q", proof, flaw)
	}
	a.unheard, a.flaw = true, "nobody listens on [15001]"
	if proof, flaw := a.state(); proof != ProofListeners || flaw == "" {
		t.Errorf("without listeners: %s, %q", proof, flaw)
	}
}

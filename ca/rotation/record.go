package rotation

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
)

// Phase is how far a rotation or a replacement is.
type Phase string

// The phases of a record.
const (
	Settled   Phase = ""          // there is neither
	Replacing Phase = "replacing" // another authority was put into the store
	Prepared  Phase = "prepared"
	Activated Phase = "activated"
	Retired   Phase = "retired" // what is left is to put the new one where the old one is
)

// Empty says that there is nothing to remember.
func (r Record) Empty() bool { return r.Phase == Settled && len(r.Last.Cert) == 0 }

// Record is what a store holds beside the authority that is installed.
type Record struct {
	Phase Phase     `json:"phase,omitempty"`
	Since time.Time `json:"since,omitzero"` // when the phase began
	// Other is the authority that is replaced while Replacing, and the new one in a guarded rotation.
	Other authority.Files `json:"other,omitzero"`
	// For is authority.CertID of the installed one that the record is about. If another is installed the record is void.
	For string `json:"for,omitempty"`
	// Roots are those that the installed one came with, while Replacing: a store may publish others in their place.
	Roots []byte `json:"roots,omitempty"`
	// Last is the authority that was installed when a replica last looked: another one that is put in its place while none
	// runs replaces it as one does that is put there while they do. Empty where replacements have no overlap.
	Last authority.Files `json:"last,omitzero"`
	// Untold says, while Replacing, that the installed one's roots were given out when it came, and not to all before.
	Untold bool `json:"untold,omitempty"`
}

// guarded says that the steps are taken by hand.
func (r Record) guarded() bool {
	return r.Phase == Prepared || r.Phase == Activated || r.Phase == Retired
}

// Fits says whether the record is about what is installed.
func (r Record) Fits(installed authority.Files) bool {
	id := authority.CertID(installed.Cert)
	return r.Phase != Settled && (r.For == id || r.Phase == Retired && id == authority.CertID(r.Other.Cert))
}

// step names the phase so that replicas can say that they are at it.
func (r Record) step() string {
	if r.Phase == Settled {
		return "settled"
	}
	return string(r.Phase) + " " + authority.CertID(r.Other.Cert)
}

// Encode is the record as it is stored. It holds a private key.
func (r Record) Encode() ([]byte, error) { return json.Marshal(r) }

// Decode reads what Encode wrote. Its error quotes nothing.
func Decode(text []byte) (Record, error) {
	var r Record
	if len(text) == 0 {
		return r, nil
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return Record{}, fmt.Errorf("the record of the CA's rotation does not parse (%d bytes)", len(text))
	}
	switch r.Phase {
	case Settled:
		return Record{Last: r.Last}, nil
	case Replacing, Prepared, Activated, Retired:
	default:
		return Record{}, fmt.Errorf("the record of the CA's rotation names no phase that is known; it was written by a newer version")
	}
	if r.Since.IsZero() || r.For == "" || authority.CertID(r.Other.Cert) == "" {
		return Record{}, fmt.Errorf("the record of the CA's rotation is not complete")
	}
	return r, nil
}

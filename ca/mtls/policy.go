package mtls

import (
	"crypto/fips140"
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"
)

// Compliance is a set of rules that narrows what TLS may use.
type Compliance string

// The sets of rules.
const (
	Standard Compliance = ""
	PQC      Compliance = "pqc"        // X25519MLKEM768 alone: who cannot is refused
	FIPS     Compliance = "fips-140-3" // Go's validated module, or nothing starts
)

// Policy is what all configurations of this process may use.
type Policy struct {
	Compliance Compliance
	TLS12      bool // TLS 1.2 as well, for peers that have nothing newer
}

// policy belongs to the process, like Go's FIPS mode: there is no second mesh in it whose rules could differ.
var policy atomic.Pointer[Policy]

// Use sets the policy of configurations that are made from now on; call it before the first. What cannot be kept is an
// error.
func Use(p Policy) error {
	switch p.Compliance {
	case Standard:
	case PQC:
		if p.TLS12 {
			return errors.New("post-quantum key exchange needs TLS 1.3: TLS 1.2 cannot be allowed beside it")
		}
	case FIPS:
		if !fips140.Enabled() {
			return errors.New("this program does not run in FIPS mode: build it with make build FIPS=1, or run it with GODEBUG=fips140=on")
		}
	default:
		return fmt.Errorf("compliance policy %q: want %q, %q or none", p.Compliance, PQC, FIPS)
	}
	policy.Store(&p)
	return nil
}

// inForce is the policy in use.
func inForce() Policy {
	if p := policy.Load(); p != nil {
		return *p
	}
	return Policy{}
}

func (p Policy) minVersion() uint16 {
	if p.TLS12 {
		return tls.VersionTLS12
	}
	return tls.VersionTLS13
}

// curves: Go orders key exchanges itself and takes this list as a set; of the usual ones it puts the hybrid first. In
// FIPS mode it leaves out what is not approved.
func (p Policy) curves() []tls.CurveID {
	if p.Compliance == PQC {
		return []tls.CurveID{tls.X25519MLKEM768}
	}
	return []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384}
}

// CryptoProvider names what does the cryptography: "go-crypto", or "go-fips140" with the module's version.
func CryptoProvider() string {
	if fips140.Enabled() {
		return "go-fips140-" + fips140.Version()
	}
	return "go-crypto"
}

package rotation

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/mtls"
)

// maxRoots bounds the roots of one authority.
const maxRoots = 16

// use is what is signed with at a time.
type use struct {
	ca    *authority.Authority
	files authority.Files // with the roots that are told
	note  string          // what there is to say of what is under way; empty for nothing
}

// choose says what is signed with, given what is in the store.
func (c *Config) choose(k Kept, now time.Time) (use, error) {
	switch {
	case !k.Record.Fits(k.Files):
		return c.load(k.Files, "", now)
	case k.Record.guarded():
		return c.chooseGuarded(k, now)
	}
	both, known, err := union(k.Record.Other, k.Files)
	if err != nil {
		return use{}, err
	}
	takes := k.Record.Since
	if !known || k.Record.Untold {
		takes = takes.Add(c.Overlap)
	}
	ends := takes.Add(c.Overlap)
	old, next := k.Record.Other, k.Files
	ended := over(old, now)
	old.Roots, next.Roots = both, both
	if now.Before(takes) && !ended {
		return c.load(old, fmt.Sprintf("the CA is being replaced: the old one signs until %s, both are trusted", stamp(takes)), now)
	}
	if now.Before(ends) {
		return c.load(next, fmt.Sprintf("the CA was replaced: the old one is trusted until %s", stamp(ends)), now)
	}
	return c.load(k.Files, "", now)
}

func (c *Config) chooseGuarded(k Kept, now time.Time) (use, error) {
	old, next := k.Files, k.Record.Other
	if k.Record.Phase == Retired {
		return c.load(next, "", now)
	}
	both, _, err := union(old, next)
	if err != nil {
		return use{}, err
	}
	ended := over(old, now)
	old.Roots, next.Roots = both, both
	if k.Record.Phase == Prepared && !ended {
		return c.load(old, "another root is prepared, and given to everybody; the old one signs until `controlplane ca activate`", now)
	}
	return c.load(next, "another root signs; the old one is trusted until `controlplane ca retire`", now)
}

// over says whether an authority has expired, or all that it hangs from: then the next one must sign. One that is no good
// for another reason is not passed over, but is an error, so that what is in use stays.
func over(f authority.Files, now time.Time) bool {
	for _, text := range [][]byte{f.Cert, rootsOf(f)} {
		certs, err := mtls.ParsePEM(text, maxRoots)
		if err == nil && len(certs) > 0 && !slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return !now.After(c.NotAfter) }) {
			return true
		}
	}
	return false
}

func (c *Config) load(f authority.Files, note string, now time.Time) (use, error) {
	ca, err := authority.Load(f, c.Lifetimes, now)
	return use{ca: ca, files: f, note: note}, err
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// rootsOf are those of an authority: its certificate, where it names none.
func rootsOf(f authority.Files) []byte {
	if len(bytes.TrimSpace(f.Roots)) == 0 {
		return f.Cert
	}
	return f.Roots
}

// union returns the roots of two authorities together, and whether the first has all of the second's.
func union(old, next authority.Files) (both []byte, known bool, err error) {
	known = true
	seen := make(map[string]bool)
	for _, f := range []authority.Files{old, next} {
		certs, err := mtls.ParsePEM(rootsOf(f), maxRoots)
		if err != nil {
			return nil, false, fmt.Errorf("roots: %w", err)
		}
		before := len(seen)
		for _, c := range certs {
			if !seen[string(c.Raw)] {
				seen[string(c.Raw)] = true
				both = append(both, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
			}
		}
		known = before == 0 || len(seen) == before
	}
	return both, known, nil
}

// without is a bundle less one certificate.
func without(bundle []byte, id string) ([]byte, error) {
	certs, err := mtls.ParsePEM(bundle, maxRoots)
	if err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	var out []byte
	for _, c := range certs {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		if authority.CertID(text) != id {
			out = append(out, text...)
		}
	}
	return out, nil
}

// same says whether two authorities are one, with the same roots.
func same(a, b authority.Files) bool {
	for _, two := range [][2][]byte{{a.Cert, b.Cert}, {a.Key, b.Key}, {a.Chain, b.Chain}, {rootsOf(a), rootsOf(b)}} {
		if !bytes.Equal(bytes.TrimSpace(two[0]), bytes.TrimSpace(two[1])) {
			return false
		}
	}
	return true
}

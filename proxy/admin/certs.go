package admin

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"time"

	"github.com/warren-mesh/warren/ca/svid"
)

type certJSON struct {
	Chain    []certificate `json:"certChain"`
	Identity string        `json:"identity"`
	Roots    []certificate `json:"rootCerts"`
	State    string        `json:"state"`
}

type certificate struct {
	Expires time.Time `json:"expirationTime"`
	PEM     string    `json:"pem"` // base64 of the PEM text, as ztunnel has it
	Serial  string    `json:"serialNumber"`
	From    time.Time `json:"validFrom"`
}

func newCerts(states []svid.State) []certJSON {
	out := make([]certJSON, 0, len(states))
	for _, s := range states {
		j := certJSON{Identity: s.ID.String(), State: s.Text(), Chain: []certificate{}, Roots: []certificate{}}
		if s.Identity != nil {
			j.Chain, j.Roots = certificates(s.Identity.Chain()), certificates(s.Identity.Roots())
		}
		out = append(out, j)
	}
	return sorted(out, func(c certJSON) string { return c.Identity })
}

func certificates(chain []*x509.Certificate) []certificate {
	out := make([]certificate, 0, len(chain))
	for _, c := range chain {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		out = append(out, certificate{
			Expires: c.NotAfter.UTC(), PEM: base64.StdEncoding.EncodeToString(text), Serial: c.SerialNumber.String(), From: c.NotBefore.UTC(),
		})
	}
	return out
}

// certList is the list that guides about rotation ask for, by the names they use.
func certList(states []svid.State) any {
	type entry struct {
		ID          string     `json:"spiffe_id"`
		From        *time.Time `json:"valid_from"`
		Until       *time.Time `json:"valid_until"`
		Serial      string     `json:"serial_number"`
		State       string     `json:"state"`
		NextRefresh *time.Time `json:"next_refresh"`
		Failures    int        `json:"failures"`
		Holders     []string   `json:"holders"`
	}
	out := make([]entry, 0, len(states))
	for _, s := range states {
		e := entry{ID: s.ID.String(), State: s.Text(), Failures: s.Failures, Holders: list(s.Holders)}
		if !s.NextRefresh.IsZero() {
			next := s.NextRefresh.UTC()
			e.NextRefresh = &next
		}
		if s.Identity != nil {
			from, until := s.Identity.NotBefore().UTC(), s.Identity.NotAfter().UTC()
			e.From, e.Until, e.Serial = &from, &until, s.Identity.Chain()[0].SerialNumber.String()
		}
		out = append(out, e)
	}
	return map[string]any{"certificates": sorted(out, func(e entry) string { return e.ID })}
}

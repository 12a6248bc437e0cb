package dns

import (
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Metrics is told of every query. Its methods may be called from several
// goroutines and must not block.
type Metrics interface {
	// Query is called once for each query, when its outcome is known.
	Query(t Transport, qtype uint16, o Outcome)
	// Upstream is called for each query that was forwarded; failed means that no
	// resolver answered.
	Upstream(t Transport, qtype uint16, took time.Duration, failed bool)
}

// Outcome is what became of a query.
type Outcome uint8

// Outcomes.
const (
	Answered   Outcome = iota // from the mesh
	Empty                     // from the mesh, which has no such address
	Forwarded                 // a resolver's answer, or its failure, was passed on
	Cached                    // a resolver's answer to the same question, a moment ago
	Failed                    // no resolver answered
	Unknown                   // the pod was not known in time
	Overloaded                // more in flight than one pod may have
	Malformed                 // not a query, or one that makes no sense
)

func (o Outcome) String() string {
	return [...]string{"answered", "empty", "forwarded", "cached", "failed", "unknown", "overloaded", "malformed"}[o]
}

// TypeName is a query type as a label: "a", "aaaa"; "other" for those that hardly
// anybody asks for, so that a client cannot make up many labels.
func TypeName(qtype uint16) string {
	switch qtype {
	case dns.TypeA:
		return "a"
	case dns.TypeAAAA:
		return "aaaa"
	case dns.TypeSRV, dns.TypeTXT, dns.TypePTR, dns.TypeMX, dns.TypeNS, dns.TypeSOA, dns.TypeCNAME, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeNAPTR, dns.TypeCAA, dns.TypeANY:
		return strings.ToLower(dns.TypeToString[qtype])
	}
	return "other"
}

type noMetrics struct{}

func (noMetrics) Query(Transport, uint16, Outcome)                {}
func (noMetrics) Upstream(Transport, uint16, time.Duration, bool) {}

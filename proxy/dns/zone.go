package dns

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/warren-mesh/warren/xds/workload"
)

// maxLabels bounds the work that one name can make. No host of a mesh has as many
// labels: such a name is forwarded.
const maxLabels = 32

// Client is who asks: the pod whose namespace the query came from.
type Client struct {
	Namespace string
	Network   string
}

// Zone is what is answered from a view.
type Zone struct {
	// Partial: the view knows what somebody has asked for so far, and what a name means
	// there depends on it. All is forwarded.
	Partial bool
	// Domain is the mesh's, "cluster.local" if empty.
	Domain string
	// Search are the domains that the pod's resolver appends. Nil means those of
	// Kubernetes: <namespace>.svc.<domain>, svc.<domain> and <domain>.
	Search []string
	// Prefer is a namespace whose services go before others' that are neither
	// the client's own nor canonical.
	Prefer string
	// IPv6 is false where no pod has such an address: there is no AAAA then.
	IPv6 bool
}

// Verdict says who answers.
type Verdict uint8

// Verdicts.
const (
	Forward  Verdict = iota // the pod's resolver
	Local                   // we do
	Fallback                // we do, if the pod's resolver does not know the name
)

func (v Verdict) String() string { return [...]string{"forward", "local", "fallback"}[v] }

// Decision is the answer to one question.
type Decision struct {
	Verdict Verdict
	Service *workload.Service // whose name it is, unless forwarded
	// Alias is the name that the asked one stands for and Addrs belong to; empty
	// where they belong to the name as it was asked.
	Alias string
	// Addrs are of the family that was asked for, some perhaps more than once; none
	// means that the name has no such address.
	Addrs []netip.Addr
}

// Resolve answers a question of class IN, for a name in lower case without a dot
// at its end. It looks at nothing but its arguments; the order of addresses is
// the view's.
func (z *Zone) Resolve(v *workload.View, c Client, name string, qtype uint16) Decision {
	labels := strings.Count(name, ".") + 1
	if z.Partial || qtype != dns.TypeA && qtype != dns.TypeAAAA || name == "" || labels > maxLabels {
		return Decision{}
	}
	q := question{z: z, v: v, c: c, qtype: qtype}
	switch s, how := q.find(name); how {
	case foreign:
		return Decision{}
	case exact, wildcard:
		return q.answer(s, "")
	}
	if s, certain := q.expand(name, labels); s != nil {
		d := q.answer(s, "")
		if d.Verdict == Local && !certain {
			d.Verdict = Fallback
		}
		return d
	}
	return q.stripped(name)
}

// question is one question about one view.
type question struct {
	z     *Zone
	v     *workload.View
	c     Client
	qtype uint16
}

func (z *Zone) domain() string {
	if z.Domain == "" {
		return "cluster.local"
	}
	return z.Domain
}

// stripped answers for a name to which the client's resolver has appended a search
// domain, if it is known without. The client would come to it, some questions
// later.
func (q question) stripped(name string) Decision {
	try := func(domain string) (Decision, bool) {
		rest, ok := strings.CutSuffix(name, domain)
		short, dot := strings.CutSuffix(rest, ".")
		if !ok || !dot || short == "" {
			return Decision{}, false
		}
		switch s, how := q.find(short); how {
		case exact:
			return q.answer(s, short), true
		case wildcard:
			return q.answer(s, ""), true
		}
		if s, _ := q.expand(short, strings.Count(short, ".")+1); s != nil {
			return q.answer(s, short), true
		}
		return Decision{}, false
	}
	if q.z.Search != nil {
		for _, domain := range q.z.Search {
			if d, ok := try(domain); ok {
				return d
			}
		}
		return Decision{}
	}
	domain := q.z.domain()
	if !strings.HasSuffix(name, domain) {
		return Decision{}
	}
	for _, domain := range [...]string{q.c.Namespace + ".svc." + domain, "svc." + domain, domain} {
		if d, ok := try(domain); ok {
			return d
		}
	}
	return Decision{}
}

// expand finds a short name of Kubernetes. It is certain if nobody else can know
// the name: it has one label, or ends in .svc.
func (q question) expand(name string, labels int) (s *workload.Service, certain bool) {
	domain := q.z.domain()
	try := func(host string) bool {
		found, how := q.find(host)
		if how == exact || how == wildcard {
			s = found
		}
		return s != nil
	}
	svc := strings.HasSuffix(name, ".svc")
	switch {
	case labels == 1:
		return s, try(name + "." + q.c.Namespace + ".svc." + domain)
	case svc && (labels == 3 || labels == 4) && try(name+"."+domain):
		return s, true
	case labels == 2 && try(name+".svc."+domain), labels == 2 && try(name+"."+q.c.Namespace+".svc."+domain):
	case labels == 3 && try(name+".svc."+domain):
	}
	return s, false
}

// match says how a name was found.
type match uint8

const (
	missing match = iota
	exact
	wildcard
	foreign // it is under a headless service: a pod's name, which we do not know
)

// find looks for the service that a name means: itself, else the wildcard that
// comes closest.
func (q question) find(name string) (*workload.Service, match) {
	if s := q.choose(name); s != nil {
		return s, exact
	}
	for rest := name; ; {
		var ok bool
		if _, rest, ok = strings.Cut(rest, "."); !ok {
			return nil, missing
		}
		if s := q.choose(rest); s != nil && len(s.VIPs) == 0 {
			return nil, foreign
		}
		if s := q.choose("*." + rest); s != nil {
			return s, wildcard
		}
	}
}

// choose picks among the services of a hostname: of the client's namespace, else
// the canonical one, else of the preferred namespace, else the first.
func (q question) choose(host string) *workload.Service {
	var best *workload.Service
	rank := -1
	for _, s := range q.v.ServicesByHost(host) {
		if !s.VisibleTo(q.c.Namespace) || !q.eligible(s) {
			continue
		}
		n := 0
		switch {
		case s.Namespace == q.c.Namespace:
			return s
		case s.Canonical:
			n = 2
		case s.Namespace == q.z.Prefer:
			n = 1
		}
		if n > rank {
			best, rank = s, n
		}
	}
	return best
}

// eligible says whether a service's name is ours to answer for: it has an address
// of its own, or is a headless service of the cluster.
func (q question) eligible(s *workload.Service) bool {
	if len(s.VIPs) > 0 {
		return true
	}
	rest, ok := strings.CutSuffix(s.Hostname, q.z.domain())
	return ok && strings.HasSuffix(rest, ".svc.") && len(s.CIDRs) == 0
}

package proxy

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// party is what metrics and access log say of one end of a connection. What is
// not known is empty.
type party struct {
	workload, canonicalService, canonicalRevision, namespace string
	principal                                                string
	app, version, cluster                                    string
	region, zone                                             string
}

// partyOf describes a workload, or nobody.
func partyOf(w *workload.Workload) party {
	if w == nil {
		return party{}
	}
	return party{
		workload: w.WorkloadName, canonicalService: w.CanonicalName, canonicalRevision: w.CanonicalRevision,
		namespace: w.Namespace, app: w.CanonicalName, version: w.CanonicalRevision, cluster: w.ClusterID,
		region: w.Locality.Region, zone: w.Locality.Zone,
	}
}

// partyTold is who the other side says that it is.
func partyTold(b route.Baggage) party {
	return party{
		workload: b.WorkloadName, canonicalService: b.Service, canonicalRevision: b.Version, namespace: b.Namespace,
		app: b.Service, version: b.Version, cluster: b.Cluster, region: b.Region, zone: b.Zone,
	}
}

// principal is how metrics write an identity.
func principal(id spiffeid.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// labels are what the metrics of one connection are counted under.
type labels struct {
	direction                            track.Direction
	src, dst                             party
	service, serviceNamespace, shortName string
	mtls                                 bool
	// told is the pod, its UID, to which a peer has said who it is: one of the parties is
	// as it says. It is part of no series.
	told string
}

// untell leaves of the party that was told what its certificate says.
func (l *labels) untell() {
	l.told = ""
	p := &l.src
	if l.direction == track.Outbound {
		p = &l.dst
	}
	*p = party{principal: p.principal}
}

// withService adds the service that was addressed.
func (l *labels) withService(s *workload.Service) {
	if s != nil {
		l.service, l.serviceNamespace, l.shortName = s.Hostname, s.Namespace, s.Name
	}
}

// unknown is how what is not known is written.
const unknown = "unknown"

// forget empties what has a value.
func (l *labels) forget(value string) {
	for _, f := range []*string{&l.service, &l.serviceNamespace, &l.shortName} {
		if *f == value {
			*f = ""
		}
	}
	for _, p := range []*party{&l.src, &l.dst} {
		for _, f := range []*string{
			&p.workload, &p.canonicalService, &p.canonicalRevision, &p.namespace, &p.principal, &p.app, &p.version, &p.cluster, &p.region, &p.zone,
		} {
			if *f == value {
				*f = ""
			}
		}
	}
}

// located says whether the labels about regions and zones are given at all.
func (l *labels) located() bool {
	return l.src.region+l.src.zone+l.dst.region+l.dst.zone != ""
}

// reporter is what metrics call the end that has a connection of this direction.
func reporter(d track.Direction) string {
	if d == track.Outbound {
		return "source"
	}
	return "destination"
}

var labelNames = []string{
	"reporter",
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster",
	"destination_service", "destination_service_namespace", "destination_service_name",
	"destination_workload", "destination_canonical_service", "destination_canonical_revision", "destination_workload_namespace",
	"destination_principal", "destination_app", "destination_version", "destination_cluster",
	"request_protocol", "response_flags", "connection_security_policy",
}

var localityNames = []string{"source_region", "source_zone", "destination_region", "destination_zone"}

// values are the values of labelNames, and of localityNames when located.
func (l *labels) values(flag flag) []string {
	v := make([]string, 0, len(labelNames)+len(localityNames))
	v = append(v, reporter(l.direction))
	v = l.src.appendTo(v)
	v = append(v, l.service, l.serviceNamespace, l.shortName)
	v = l.dst.appendTo(v)
	security := ""
	if l.mtls {
		security = "mutual_tls"
	}
	v = append(v, "tcp", flag.String(), security)
	if l.located() {
		v = append(v, l.src.region, l.src.zone, l.dst.region, l.dst.zone)
	}
	for i := range v {
		if v[i] == "" {
			v[i] = unknown
		}
	}
	return v
}

func (p *party) appendTo(v []string) []string {
	return append(v, p.workload, p.canonicalService, p.canonicalRevision, p.namespace, p.principal, p.app, p.version, p.cluster)
}

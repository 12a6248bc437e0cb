package workload

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// What an empty field means.
const (
	DefaultTrustDomain    = "cluster.local"
	DefaultServiceAccount = "default"
	DefaultCluster        = "Kubernetes"
)

// Workload is one instance: a pod, a virtual machine, or a name behind which
// others run.
type Workload struct {
	UID       string // unique in the mesh; the xDS name
	Name      string // the pod's name
	Namespace string

	Addresses   []netip.Addr // unmapped; empty for a workload behind a gateway or a hostname
	Hostname    string       // resolved by the proxy when there is no address
	Network     string
	NetworkMode NetworkMode
	Protocol    TunnelProtocol

	TrustDomain    string // never empty after conversion
	ServiceAccount string // never empty after conversion
	Node           string
	ClusterID      string
	Locality       Locality

	CanonicalName     string // telemetry
	CanonicalRevision string // telemetry
	Type              Type   // telemetry
	WorkloadName      string // telemetry

	Waypoint          *GatewayAddress
	NetworkGateway    *GatewayAddress
	NativeTunnel      bool
	ApplicationTunnel *ApplicationTunnel

	// Services that this is an endpoint of.
	Services Memberships
	// Policies are the selector policies that guard it, as "namespace/name".
	Policies []string
	Status   Status
	// Capacity is the weight in load balancing; nil means 1.
	Capacity *uint32

	// ids holds the identity alone, so that it is built once and a decision can
	// hand it out without allocating. Empty until sealed, or when there is none.
	ids []spiffeid.ID
}

// Locality is where a workload runs, from coarse to fine.
type Locality struct{ Region, Zone, Subzone string }

// ApplicationTunnel says that the application takes tunnelled traffic itself.
type ApplicationTunnel struct {
	Protocol TunnelKind
	Port     uint16 // 0: the port that was asked for
}

// ResourceName is the xDS name.
func (w *Workload) ResourceName() string { return w.UID }

func compareWorkloads(a, b *Workload) int { return strings.Compare(a.UID, b.UID) }

// Identity is the SPIFFE ID that the workload speaks as; zero when its trust
// domain, namespace and service account do not form one.
func (w *Workload) Identity() spiffeid.ID {
	if len(w.ids) == 1 {
		return w.ids[0]
	}
	id, err := NewIdentity(w.TrustDomain, w.Namespace, w.ServiceAccount)
	if err != nil {
		return spiffeid.ID{}
	}
	return id
}

// Identities is Identity as a list of one, or an empty list. The result is
// shared and must not be changed.
func (w *Workload) Identities() []spiffeid.ID {
	if len(w.ids) == 1 {
		return w.ids
	}
	if id := w.Identity(); !id.IsZero() {
		return []spiffeid.ID{id}
	}
	return nil
}

// Weight is the share of a service's traffic relative to other endpoints.
func (w *Workload) Weight() uint32 {
	if w.Capacity == nil {
		return 1
	}
	return *w.Capacity
}

// HasAddr reports whether the address is one of the workload's.
func (w *Workload) HasAddr(a netip.Addr) bool { return slices.Contains(w.Addresses, a) }

// sealed returns the workload with its identity built, the same one if it was.
func (w *Workload) sealed() *Workload {
	if len(w.ids) == 1 {
		return w
	}
	c := *w
	c.ids = c.Identities()
	return &c
}

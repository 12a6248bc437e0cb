package workload

import (
	"fmt"
	"net/netip"
)

// The enumerations have the numbers of the wire and, as String, the names of the
// proxy's dump.

// TunnelProtocol is how a workload is reached.
type TunnelProtocol uint8

// Tunnel protocols. The wire's third, legacy Istio mTLS, is rejected on receipt.
const (
	TCP TunnelProtocol = iota
	HBONE
)

func (p TunnelProtocol) String() string { return name(tunnelNames[:], p) }

// Status is a workload's health.
type Status uint8

// Workload health.
const (
	Healthy Status = iota
	Unhealthy
)

func (s Status) String() string { return name(statusNames[:], s) }

// Type is the kind of thing that a workload is an instance of.
type Type uint8

// Workload types.
const (
	Deployment Type = iota
	CronJob
	Pod
	Job
)

func (t Type) String() string { return name(typeNames[:], t) }

// NetworkMode says whether an address identifies the workload.
type NetworkMode uint8

// Network modes. A host-network workload shares its address with the node and is
// never found by it.
const (
	Standard NetworkMode = iota
	HostNetwork
)

func (m NetworkMode) String() string { return name(networkModeNames[:], m) }

// IPFamilies are the address families that a service is reached by.
type IPFamilies uint8

// IP families. Automatic accepts every address there is.
const (
	Automatic IPFamilies = iota
	IPv4Only
	IPv6Only
	Dual
)

func (f IPFamilies) String() string { return name(familyNames[:], f) }

// Has says whether an address is of one of the families.
func (f IPFamilies) Has(a netip.Addr) bool {
	return !(f == IPv4Only && !a.Is4() || f == IPv6Only && a.Is4())
}

// Visibility says which clients may resolve a service.
type Visibility uint8

// Visibilities.
const (
	Public           Visibility = iota
	NamespacePrivate            // clients of the service's own namespace
)

func (v Visibility) String() string { return name(visibilityNames[:], v) }

// LBMode is how endpoints are chosen.
type LBMode uint8

// Load-balancing modes.
const (
	LBStandard    LBMode = iota // all endpoints alike
	LBStrict                    // only endpoints that meet every preference
	LBFailover                  // the endpoints that meet most preferences
	LBPassthrough               // none: to the original destination
)

func (m LBMode) String() string { return name(modeNames[:], m) }

// HealthPolicy says whether unhealthy endpoints are used.
type HealthPolicy uint8

// Health policies.
const (
	OnlyHealthy HealthPolicy = iota
	AllowAll
)

func (h HealthPolicy) String() string { return name(healthNames[:], h) }

// Scope is one routing preference: what client and endpoint should have in common.
type Scope uint8

// Routing preferences; zero is not one.
const (
	Region Scope = iota + 1
	Zone
	Subzone
	Node
	Cluster
	Network
)

func (s Scope) String() string { return name(scopeNames[:], s) }

// AppProtocol is a port's application protocol. Nothing here acts on it; it is
// kept so that what is read can be sent on unchanged.
type AppProtocol uint8

// Application protocols.
const (
	AppUnknown AppProtocol = iota
	AppHTTP11
	AppHTTP2
	AppGRPC
	AppTCP
	AppTLS
)

// TunnelKind is the protocol of an application tunnel.
type TunnelKind uint8

// Application tunnel protocols.
const (
	TunnelNone  TunnelKind = iota // bytes unchanged
	TunnelProxy                   // a PROXY v2 header first
)

func (k TunnelKind) String() string { return name(tunnelKindNames[:], k) }

// PolicyScope says which workloads a policy is for.
type PolicyScope uint8

// Policy scopes. A selector policy guards the workloads that name it.
const (
	ScopeGlobal PolicyScope = iota
	ScopeNamespace
	ScopeSelector
)

func (s PolicyScope) String() string { return name(policyScopeNames[:], s) }

// Action is what a matching policy does.
type Action uint8

// Actions.
const (
	Allow Action = iota
	Deny
)

func (a Action) String() string { return name(actionNames[:], a) }

var (
	tunnelNames      = [...]string{"TCP", "HBONE"}
	statusNames      = [...]string{"Healthy", "Unhealthy"}
	typeNames        = [...]string{"deployment", "cronjob", "pod", "job"}
	networkModeNames = [...]string{"Standard", "HostNetwork"}
	familyNames      = [...]string{"Automatic", "IPv4", "IPv6", "Dual"}
	visibilityNames  = [...]string{"Public", "Namespace"}
	modeNames        = [...]string{"Standard", "Strict", "Failover", "Passthrough"}
	healthNames      = [...]string{"OnlyHealthy", "AllowAll"}
	scopeNames       = [...]string{"", "Region", "Zone", "Subzone", "Node", "Cluster", "Network"}
	tunnelKindNames  = [...]string{"NONE", "PROXY"}
	policyScopeNames = [...]string{"Global", "Namespace", "WorkloadSelector"}
	actionNames      = [...]string{"Allow", "Deny"}
)

func name[E ~uint8](names []string, e E) string {
	if int(e) < len(names) {
		return names[e]
	}
	return fmt.Sprintf("unknown(%d)", e)
}

// enum narrows a number of the wire; a number without a name is an error.
func enum[E ~uint8, N ~int32](field string, n N, names []string) (E, error) {
	if n < 0 || int(n) >= len(names) || names[n] == "" {
		return 0, fmt.Errorf("unknown %s %d", field, n)
	}
	return E(n), nil
}

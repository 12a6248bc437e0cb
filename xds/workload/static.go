package workload

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"go.yaml.in/yaml/v3"
)

// ParseStatic reads the YAML of LOCAL_XDS_PATH: lists of workloads, services and
// policies with the names of the proxy's dump, ports as integer keys and string
// matches as tagged values (!Exact "cluster.local/ns/a/sa/b"). Unknown keys are
// errors. What is read is checked as strictly as what comes over xDS; all
// mistakes of values are reported at once.
func ParseStatic(data []byte) (Batch, error) {
	var f staticFile
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		return Batch{}, fmt.Errorf("workload: static configuration: %w", err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Batch{}, errors.New("workload: static configuration: want one YAML document")
	}
	var b Batch
	var errs []error
	seen := map[string]bool{}
	check := func(kind, name string, err error) bool {
		if key := kind + " " + name; err == nil && seen[key] {
			err = errors.New("is there twice")
		} else {
			seen[key] = true
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("workload: static configuration: %s %q: %w", kind, name, err))
		}
		return err == nil
	}
	for i := range f.Workloads {
		w, err := f.Workloads[i].build()
		if check("workload", f.Workloads[i].UID, err) {
			b.Workloads = append(b.Workloads, w)
		}
	}
	for i := range f.Services {
		s, err := f.Services[i].build()
		if check("service", f.Services[i].Namespace+"/"+f.Services[i].Hostname, err) {
			b.Services = append(b.Services, s)
		}
	}
	for i := range f.Policies {
		p, err := f.Policies[i].build()
		if check("policy", f.Policies[i].Namespace+"/"+f.Policies[i].Name, err) {
			b.Policies = append(b.Policies, p)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Batch{}, err
	}
	return b, nil
}

type staticFile struct {
	Workloads []staticWorkload `yaml:"workloads"`
	Services  []staticService  `yaml:"services"`
	Policies  []staticPolicy   `yaml:"policies"`
}

type staticWorkload struct {
	UID               string                       `yaml:"uid"`
	Name              string                       `yaml:"name"`
	Namespace         string                       `yaml:"namespace"`
	ServiceAccount    string                       `yaml:"serviceAccount"`
	TrustDomain       string                       `yaml:"trustDomain"`
	IPs               []netip.Addr                 `yaml:"workloadIps"`
	Hostname          string                       `yaml:"hostname"`
	Protocol          string                       `yaml:"protocol"`
	Network           string                       `yaml:"network"`
	NetworkMode       string                       `yaml:"networkMode"`
	NetworkGateway    *staticGateway               `yaml:"networkGateway"`
	Waypoint          *staticGateway               `yaml:"waypoint"`
	Node              string                       `yaml:"node"`
	ClusterID         string                       `yaml:"clusterId"`
	Locality          staticLocality               `yaml:"locality"`
	WorkloadName      string                       `yaml:"workloadName"`
	WorkloadType      string                       `yaml:"workloadType"`
	CanonicalName     string                       `yaml:"canonicalName"`
	CanonicalRevision string                       `yaml:"canonicalRevision"`
	NativeTunnel      bool                         `yaml:"nativeTunnel"`
	ApplicationTunnel *staticTunnel                `yaml:"applicationTunnel"`
	Policies          []string                     `yaml:"authorizationPolicies"`
	Status            string                       `yaml:"status"`
	Capacity          *uint32                      `yaml:"capacity"`
	Services          map[string]map[uint16]uint16 `yaml:"services"`
}

type staticGateway struct {
	Destination string `yaml:"destination"`
	HBONEPort   uint16 `yaml:"hboneMtlsPort"`
}

type staticLocality struct {
	Region  string `yaml:"region"`
	Zone    string `yaml:"zone"`
	Subzone string `yaml:"subzone"`
}

type staticTunnel struct {
	Protocol string  `yaml:"protocol"`
	Port     *uint16 `yaml:"port"`
}

func (s *staticWorkload) build() (*Workload, error) {
	w := &Workload{
		UID: s.UID, Name: s.Name, Namespace: s.Namespace, ServiceAccount: s.ServiceAccount, TrustDomain: s.TrustDomain,
		Addresses: s.IPs, Hostname: s.Hostname, Network: s.Network, Node: s.Node, ClusterID: s.ClusterID,
		Locality: Locality(s.Locality), WorkloadName: s.WorkloadName, CanonicalName: s.CanonicalName,
		CanonicalRevision: s.CanonicalRevision, NativeTunnel: s.NativeTunnel, Policies: s.Policies, Capacity: s.Capacity,
	}
	var errs [7]error
	w.Protocol, errs[0] = named[TunnelProtocol]("protocol", s.Protocol, tunnelNames[:])
	w.NetworkMode, errs[1] = named[NetworkMode]("networkMode", s.NetworkMode, networkModeNames[:])
	w.Type, errs[2] = named[Type]("workloadType", s.WorkloadType, typeNames[:])
	w.Status, errs[3] = named[Status]("status", s.Status, statusNames[:])
	w.Waypoint, errs[4] = s.Waypoint.build("waypoint")
	w.NetworkGateway, errs[5] = s.NetworkGateway.build("networkGateway")
	if t := s.ApplicationTunnel; t != nil {
		w.ApplicationTunnel = &ApplicationTunnel{}
		w.ApplicationTunnel.Protocol, errs[6] = named[TunnelKind]("applicationTunnel", t.Protocol, tunnelKindNames[:])
		if t.Port != nil {
			w.ApplicationTunnel.Port = *t.Port
		}
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	services := make(map[NamespacedHostname]PortMap, len(s.Services))
	for key, ports := range s.Services {
		h, err := ParseNamespacedHostname(key)
		if err != nil {
			return nil, err
		}
		services[h] = staticPorts(ports)
	}
	w.Services = NewMemberships(services)
	return WorkloadFromProto(w.ToProto())
}

func (g *staticGateway) build(field string) (*GatewayAddress, error) {
	if g == nil {
		return nil, nil
	}
	out, err := parseGateway(g.Destination, g.HBONEPort)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	return out, nil
}

func staticPorts(ports map[uint16]uint16) PortMap {
	var list []Port
	for service, target := range ports {
		list = append(list, Port{Service: service, Target: target})
	}
	return NewPortMap(list...)
}

// named is the value of a name in the dump; the empty name is the zero value.
func named[E ~uint8](field, s string, names []string) (E, error) {
	for i, n := range names {
		if n == s {
			return E(i), nil
		}
	}
	if s == "" {
		return 0, nil
	}
	return 0, fmt.Errorf("%s: %q is not one of %q", field, s, names)
}

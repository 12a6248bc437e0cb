package admin

import (
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

type staticJSON struct {
	Policies  []policyJSON     `json:"policies"`
	Services  []serviceJSON    `json:"services"`
	Workloads []staticWorkload `json:"workloads"`
}

// staticWorkload is a workload as the file has it: its services with their ports.
type staticWorkload struct {
	workloadJSON
	Services map[string]map[string]uint16 `json:"services"`
}

type stateJSON struct {
	Connections *connections `json:"connections,omitempty"`
	Info        infoJSON     `json:"info"`
	State       string       `json:"state"`
}

type infoJSON struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

type connections struct {
	Inbound  []connection `json:"inbound"`
	Outbound []connection `json:"outbound"`
}

type connection struct {
	Dst      string  `json:"actualDst"`
	Original *string `json:"originalDst"`
	Protocol string  `json:"protocol"`
	Src      string  `json:"src"`
}

func newConnections(facts []track.Facts) connections {
	c := connections{Inbound: []connection{}, Outbound: []connection{}}
	for _, f := range facts {
		j := connection{Dst: f.Dst.String(), Protocol: f.Protocol, Src: f.Src.String()}
		if f.Original != "" {
			j.Original = &f.Original
		}
		if f.Direction == track.Outbound {
			c.Outbound = append(c.Outbound, j)
		} else {
			c.Inbound = append(c.Inbound, j)
		}
	}
	return c
}

// dump is the whole state, in the order of names.
func (s Source) dump(v *workload.View) []section {
	config := s.Config()
	all := []section{
		{name: "certificates", value: newCerts(s.Certs())},
		{name: "config", value: config},
		{name: "policies", items: each(v.Policies(), newPolicy)},
		{name: "services", items: each(v.Services(), func(svc *workload.Service) serviceJSON { return newService(svc, endpoints(v, svc)) })},
		{name: "stagedServices", value: staged(v)},
		{name: "staticConfig", value: static(s.Static())},
		{name: "version", value: s.Version},
	}
	if config["proxyMode"] != "Dedicated" { // absent where the proxy is one pod's own
		all = append(all, section{name: "workloadState", value: s.states()})
	}
	return append(all, section{name: "workloads", items: each(v.Workloads(), newWorkload)})
}

// states are the pods', by UID.
func (s Source) states() map[string]stateJSON {
	out := make(map[string]stateJSON)
	facts := s.Connections()
	for _, p := range s.Pods() {
		st := stateJSON{Info: infoJSON{Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount}, State: p.State}
		if p.State == "Up" {
			c := newConnections(facts[p.UID])
			st.Connections = &c
		}
		out[p.UID] = st
	}
	return out
}

// endpoints are those that may be used: unhealthy ones only where the service
// takes them.
func endpoints(v *workload.View, s *workload.Service) map[string]endpointJSON {
	out := make(map[string]endpointJSON)
	for _, e := range v.Endpoints(s).All() {
		if s.Usable(e.Workload.Status) {
			out[e.Workload.UID] = newEndpoint(e.Workload, e.Ports)
		}
	}
	return out
}

// staged are endpoints of services that are not known, by service.
func staged(v *workload.View) map[string]map[string]endpointJSON {
	out := make(map[string]map[string]endpointJSON)
	for _, w := range v.Workloads() {
		for _, m := range w.Services {
			if v.Service(m.Service) != nil {
				continue
			}
			name := m.Service.String()
			if out[name] == nil {
				out[name] = make(map[string]endpointJSON)
			}
			out[name][w.UID] = newEndpoint(w, m.Ports)
		}
	}
	return out
}

func static(b workload.Batch) staticJSON {
	j := staticJSON{Policies: []policyJSON{}, Services: []serviceJSON{}, Workloads: []staticWorkload{}}
	for _, w := range b.Workloads {
		s := staticWorkload{workloadJSON: newWorkload(w), Services: make(map[string]map[string]uint16)}
		for _, m := range w.Services {
			s.Services[m.Service.String()] = newPorts(m.Ports)
		}
		j.Workloads = append(j.Workloads, s)
	}
	for _, s := range b.Services {
		j.Services = append(j.Services, newService(s, map[string]endpointJSON{}))
	}
	for _, p := range b.Policies {
		j.Policies = append(j.Policies, newPolicy(p))
	}
	return j
}

package admin

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/xds/workload"
)

// legacy is the dump as Istio 1.18 had it, which scripts and tutorials of 2023
// still read. The names mislead and are kept so: ca_cert is the workload's own
// certificate, cert_chain its issuers.
func (s Source) legacy(v *workload.View) []section {
	config, at := s.Config(), workloadsAt(v)
	byNamespace, policies := map[string][]string{}, map[string]*workload.Policy{}
	for _, p := range v.Policies() {
		policies[p.ResourceName()] = p
		byNamespace[p.Namespace] = append(byNamespace[p.Namespace], p.ResourceName())
	}
	return []section{
		{name: "certificates", value: legacyCerts(s.Certs())},
		{name: "config", value: legacyConfig(config)},
		{name: "local_node", value: config["localNode"]},
		{name: "policies", members: eachOf(policies, legacyPolicy)},
		{name: "policies_by_namespace", value: byNamespace},
		{name: "proxy_mode", value: config["proxyMode"]},
		{name: "static_config", value: static(s.Static())},
		{name: "version", value: s.Version},
		{name: "vips", members: eachOf(portsAt(v), func(_ string, p servicePort) any { return p.endpoints(v) })},
		{name: "workload_to_vip", members: eachOf(at, func(_ string, all []*workload.Workload) any { return legacyVIPs(v, all) })},
		{name: "workloads", members: eachOf(at, func(ip string, all []*workload.Workload) any { return legacyWorkload(all[len(all)-1], ip) })},
	}
}

// workloadsAt are the workloads of each address.
func workloadsAt(v *workload.View) map[string][]*workload.Workload {
	at := make(map[string][]*workload.Workload)
	for _, w := range v.Workloads() {
		for _, ip := range w.Addresses {
			at[ip.String()] = append(at[ip.String()], w)
		}
	}
	return at
}

// servicePort is one port of a service.
type servicePort struct {
	service *workload.Service
	port    workload.Port
}

// portsAt are the ports of services by address and port.
func portsAt(v *workload.View) map[string]servicePort {
	at := make(map[string]servicePort)
	for _, svc := range v.Services() {
		for _, vip := range svc.VIPs {
			for _, port := range svc.Ports {
				at[hostPort(vip, port)] = servicePort{svc, port}
			}
		}
	}
	return at
}

func hostPort(vip workload.NetworkAddr, port workload.Port) string {
	return net.JoinHostPort(vip.Addr.String(), strconv.Itoa(int(port.Service)))
}

// target is where a workload with ports of its own takes the port.
func (p servicePort) target(own workload.PortMap) uint16 {
	if t, ok := own.Target(p.port.Service); ok {
		return t
	}
	return p.port.Target
}

func (p servicePort) endpoints(v *workload.View) any {
	behind := []any{}
	for _, e := range v.Endpoints(p.service).All() {
		for _, ip := range e.Workload.Addresses {
			behind = append(behind, []any{ip.String(), p.target(e.Ports)})
		}
	}
	return behind
}

// legacyVIPs are the services' addresses that workloads are behind, and their own ports;
// nil where there are none.
func legacyVIPs(v *workload.View, all []*workload.Workload) any {
	var out []any
	for _, w := range all {
		for _, m := range w.Services {
			svc := v.Service(m.Service)
			if svc == nil {
				continue
			}
			for _, vip := range svc.VIPs {
				for _, port := range svc.Ports {
					out = append(out, []any{hostPort(vip, port), servicePort{svc, port}.target(m.Ports)})
				}
			}
		}
	}
	if out == nil {
		return nil
	}
	return out
}

func legacyPolicy(_ string, p *workload.Policy) any {
	j := newPolicy(p)
	return map[string]any{"name": j.Name, "namespace": j.Namespace, "scope": j.Scope, "action": j.Action, "groups": j.Rules}
}

// legacyConfig has the names of that time.
func legacyConfig(config map[string]any) map[string]any {
	old := make(map[string]any)
	for was, now := range map[string]string{
		"window_size": "windowSize", "connection_window_size": "connectionWindowSize", "frame_size": "frameSize", "socks5_addr": "socks5Addr",
		"admin_addr": "adminAddr", "stats_addr": "statsAddr", "readiness_addr": "readinessAddr", "inbound_addr": "inboundAddr",
		"inbound_plaintext_addr": "inboundPlaintextAddr", "outbound_addr": "outboundAddr", "local_node": "localNode", "proxy_mode": "proxyMode",
		"local_ip": "instanceIp", "cluster_id": "clusterId", "ca_address": "caAddress", "ca_root_cert": "caRootCert", "xds_address": "xdsAddress",
		"xds_root_cert": "xdsRootCert", "xds_on_demand": "xdsOnDemand", "fake_ca": "fakeCa", "termination_grace_period": "selfTerminationDeadline",
		"proxy_metadata": "proxyMetadata", "num_worker_threads": "numWorkerThreads", "enable_original_source": "requireOriginalSource",
		"proxy_args": "proxyArgs",
	} {
		old[was] = legacyAddr(config[now])
	}
	return old
}

// legacyAddr is an address to listen on as it was then: one.
func legacyAddr(v any) any {
	m, _ := v.(map[string]any)
	if a, ok := m["SocketAddr"]; ok {
		return a
	}
	if l, ok := m["Localhost"].([]any); ok && len(l) == 2 {
		return fmt.Sprintf("127.0.0.1:%v", l[1])
	}
	return v
}

func legacyWorkload(w *workload.Workload, ip string) map[string]any {
	waypoints := []string{}
	if w.Waypoint != nil {
		waypoints = append(waypoints, w.Waypoint.String())
	}
	var gateway any
	if w.NetworkGateway != nil {
		gateway = w.NetworkGateway.String()
	}
	return map[string]any{
		"workloadIp": ip, "waypointAddresses": waypoints, "gatewayAddress": gateway, "protocol": w.Protocol.String(),
		"name": w.Name, "namespace": w.Namespace, "trustDomain": w.TrustDomain, "serviceAccount": w.ServiceAccount,
		"workloadName": w.WorkloadName, "workloadType": w.Type.String(), "canonicalName": w.CanonicalName,
		"canonicalRevision": w.CanonicalRevision, "node": w.Node, "nativeHbone": w.NativeTunnel,
		"authorizationPolicies": list(w.Policies), "status": w.Status.String(), "clusterId": w.ClusterID,
	}
}

type legacyCert struct {
	Expires time.Time `json:"expiration_time"`
	PEM     string    `json:"pem"` // as it is
	Serial  string    `json:"serial_number"`
	From    time.Time `json:"valid_from"`
}

func legacyCerts(states []svid.State) any {
	out := []any{}
	for _, s := range states {
		own, issuers := []legacyCert{}, []legacyCert{}
		if s.Identity != nil {
			chain := s.Identity.Chain()
			own, issuers = legacyChain(chain[:1]), legacyChain(append(chain[1:], s.Identity.Roots()...))
		}
		out = append(out, map[string]any{"identity": s.ID.String(), "state": s.Text(), "ca_cert": own, "cert_chain": issuers})
	}
	return out
}

func legacyChain(chain []*x509.Certificate) []legacyCert {
	out := make([]legacyCert, 0, len(chain))
	for _, c := range chain {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		out = append(out, legacyCert{Expires: c.NotAfter.UTC(), PEM: string(text), Serial: c.SerialNumber.String(), From: c.NotBefore.UTC()})
	}
	return out
}

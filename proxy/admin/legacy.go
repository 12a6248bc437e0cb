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
func (s Source) legacy(v *workload.View) any {
	workloads, vips, byNamespace, policies := map[string]any{}, map[string]any{}, map[string][]string{}, map[string]any{}
	backends := map[string][]any{} // workload address → the services' addresses and its own ports
	for _, w := range v.Workloads() {
		for _, ip := range w.Addresses {
			workloads[ip.String()] = legacyWorkload(w, ip.String())
		}
	}
	for _, svc := range v.Services() {
		for _, vip := range svc.VIPs {
			for _, port := range svc.Ports {
				addr := net.JoinHostPort(vip.Addr.String(), strconv.Itoa(int(port.Service)))
				behind := []any{}
				for _, e := range v.Endpoints(svc).All() {
					target := port.Target
					if own, ok := e.Ports.Target(port.Service); ok {
						target = own
					}
					for _, ip := range e.Workload.Addresses {
						behind = append(behind, []any{ip.String(), target})
						backends[ip.String()] = append(backends[ip.String()], []any{addr, target})
					}
				}
				vips[addr] = behind
			}
		}
	}
	for _, p := range v.Policies() {
		j := newPolicy(p)
		policies[p.ResourceName()] = map[string]any{
			"name": j.Name, "namespace": j.Namespace, "scope": j.Scope, "action": j.Action, "groups": j.Rules,
		}
		byNamespace[p.Namespace] = append(byNamespace[p.Namespace], p.ResourceName())
	}
	config := s.Config()
	return map[string]any{
		"certificates": legacyCerts(s.Certs()), "workloads": workloads, "workload_to_vip": backends, "vips": vips,
		"policies_by_namespace": byNamespace, "policies": policies, "local_node": config["localNode"],
		"proxy_mode": config["proxyMode"], "static_config": static(s.Static()), "version": s.Version, "config": legacyConfig(config),
	}
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

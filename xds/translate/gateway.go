package translate

import (
	"fmt"
	"net/netip"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

// Classes of the Gateways that stand at the edge of a network.
const (
	classRemote   = "istio-remote"    // one of another network, under its address
	classEastWest = "istio-east-west" // one that runs here

	annotationGatewayAccount = "gateway.istio.io/service-account"
)

// networkGateways finds out through which gateway each network is reached, and makes the
// workloads that these gateways are. Of several for one network the first by name counts.
func (b *builder) networkGateways(list []*gatewayv1.Gateway) []*workload.Workload {
	b.gateways = make(map[string]*workload.GatewayAddress)
	seen := make(map[string]bool)
	var out []*workload.Workload
	for _, g := range sorted(list) {
		network := g.Labels[labelNetwork]
		class := string(g.Spec.GatewayClassName)
		if class != classRemote && (class != classEastWest || network == b.network) {
			continue // the way into our own network is for others
		}
		report := b.reporter("Gateway", g.Namespace, g.Name)
		l := hboneListener(g)
		switch {
		case network == "":
			report(labelField(labelNetwork), "the network behind the gateway is not named: it is not used")
			continue
		case l == nil || !isPort(l.Port):
			report("spec.listeners", fmt.Sprintf("no listener with protocol %s and a port: the gateway is not used", protocolHBONE))
			continue
		}
		addresses := b.gatewayAddresses(g, network, uint16(l.Port), report)
		if len(addresses) == 0 {
			report("status.addresses", "no address, neither here nor in spec.addresses: the gateway is not used")
		}
		account, err := b.gatewayAccount(g)
		if err != nil {
			report(annotationField(annotationGatewayAccount), fmt.Sprintf("the gateway cannot have an identity and is not used: %v", err))
			continue
		}
		for _, a := range addresses {
			if b.gateways[network] == nil {
				b.gateways[network] = a
			}
			if w := b.gatewayWorkload(g.Namespace, account, network, a); !seen[w.UID] {
				seen[w.UID] = true
				out = append(out, w)
			}
		}
	}
	return out
}

// gatewayAddresses are those that a controller has found, or else those that were asked
// for: a remote gateway needs no controller.
func (b *builder) gatewayAddresses(g *gatewayv1.Gateway, network string, port uint16, report reporter) []*workload.GatewayAddress {
	list, field := g.Status.Addresses, "status.addresses"
	if len(list) == 0 {
		field = "spec.addresses"
		for _, a := range g.Spec.Addresses {
			list = append(list, gatewayv1.GatewayStatusAddress(a))
		}
	}
	var out []*workload.GatewayAddress
	for i, a := range list {
		kind := addressType(a.Type)
		if kind != gatewayv1.IPAddressType && kind != gatewayv1.HostnameAddressType {
			continue
		}
		at, err := reachedAt(g.Namespace, a.Value, network, kind)
		if err != nil {
			report(fmt.Sprintf("%s[%d]", field, i), err.Error())
			continue
		}
		at.HBONEPort = port
		out = append(out, at)
	}
	return out
}

// gatewayAccount is the service account that a gateway runs as.
func (b *builder) gatewayAccount(g *gatewayv1.Gateway) (string, error) {
	account := g.Annotations[annotationGatewayAccount]
	if account == "" {
		account = g.Name
		if string(g.Spec.GatewayClassName) == classRemote {
			account += "-" + classRemote
		}
	}
	_, err := workload.NewIdentity(b.opts.TrustDomain, g.Namespace, account)
	return account, err
}

// gatewayWorkload is what a gateway's address leads to; its identity is who must answer.
func (b *builder) gatewayWorkload(namespace, account, network string, a *workload.GatewayAddress) *workload.Workload {
	w := &workload.Workload{Namespace: namespace, ServiceAccount: account, Network: network, TrustDomain: b.opts.TrustDomain, Hostname: a.Hostname.Hostname}
	at := w.Hostname
	if ip := a.Address.Addr; ip.IsValid() {
		w.Addresses, at = []netip.Addr{ip}, ip.String()
	}
	w.UID = fmt.Sprintf("NetworkGateway/%s/%s/%d", network, at, a.HBONEPort)
	w.Name = w.UID
	return w
}

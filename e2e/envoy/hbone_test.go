//go:build envoy

package envoy

import (
	"fmt"
	"net/netip"
)

const (
	hcmType       = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	tcpProxyType  = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
	routerType    = "envoy.extensions.filters.http.router.v3.Router"
	stateType     = "envoy.extensions.filters.http.set_filter_state.v3.Config"
	internalType  = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport"
	rawBufferType = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
	httpOptions   = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	originalDst   = "envoy.filters.listener.original_dst"
)

// tls is a transport socket by which each side proves itself to the other.
func (c credentials) tls(side string) object {
	context := object{"common_tls_context": object{
		"alpn_protocols":   []string{"h2"},
		"tls_params":       object{"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
		"tls_certificates": []object{{"certificate_chain": object{"inline_string": c.chain}, "private_key": object{"inline_string": c.key}}},
		"validation_context": object{
			"trusted_ca":                    object{"inline_string": c.root},
			"match_typed_subject_alt_names": []object{{"san_type": "URI", "matcher": object{"prefix": "spiffe://cluster.local/"}}},
		},
	}}
	if side == "Downstream" {
		context["require_client_certificate"] = true
	}
	return typed("tls", "envoy.extensions.transport_sockets.tls.v3."+side+"TlsContext", context)
}

func socketAddress(a netip.AddrPort) object {
	return object{"socket_address": object{"address": a.Addr().String(), "port_value": a.Port()}}
}

// terms are what Envoy says of itself to who opens tunnels to it: SETTINGS, when it ends a
// connection, and what is answered at once, by authority.
type terms struct {
	http2    object
	requests int
	status   map[string]int
}

// terminate takes HBONE on the pod's 15008 and hands what each CONNECT carries to the
// internal listener main, with the authority as its destination.
func (e *envoy) terminate(c credentials, say terms) object {
	return object{
		"name": "connect_terminate", "address": socketAddress(netip.AddrPortFrom(e.IP4(), 15008)),
		"filter_chains": []object{{"transport_socket": c.tls("Downstream"), "filters": []object{typed("hcm", hcmType, object{
			"stat_prefix": "terminate", "codec_type": "HTTP2", "access_log": []object{e.accessLog(connects)},
			"http2_protocol_options": with(say.http2, "allow_connect", true), "common_http_protocol_options": say.common(), "upgrade_configs": []object{{"upgrade_type": "CONNECT"}},
			"http_filters": []object{
				typed("authority", stateType, object{"on_request_headers": []object{
					state(originalDst+".local_ip", "%REQ(:AUTHORITY)%"), state(originalDst+".remote_ip", "%DOWNSTREAM_REMOTE_ADDRESS%"),
				}}),
				typed("router", routerType, object{}),
			},
			"route_config": object{"virtual_hosts": say.hosts(object{
				"match": object{"connect_matcher": object{}},
				"route": object{"cluster": "main", "timeout": "0s", "upgrade_configs": []object{{"upgrade_type": "CONNECT", "connect_config": object{}}}},
			})},
		})}}},
	}
}

func (s terms) common() object {
	if s.requests == 0 {
		return object{}
	}
	return object{"max_requests_per_connection": s.requests}
}

func (s terms) hosts(route object) []object {
	all := []object{{"name": "all", "domains": []string{"*"}, "routes": []object{route}}}
	for authority, status := range s.status {
		all = append(all, object{"name": authority, "domains": []string{authority}, "routes": []object{
			{"match": object{"connect_matcher": object{}}, "direct_response": object{"status": status}},
		}})
	}
	return all
}

func state(key, value string) object {
	return object{"object_key": key, "format_string": object{"text_format_source": object{"inline_string": value}}, "shared_with_upstream": "ONCE"}
}

func routes(all ...object) object {
	return object{"virtual_hosts": []object{{"name": "all", "domains": []string{"*"}, "routes": all}}}
}

// destination is where clients want to go, and the endpoint that it is sent to.
type destination struct {
	name     string
	asked    netip.AddrPort
	endpoint netip.AddrPort
	tcp      bool // no requests are read
}

// main is the internal listener that knows requests: each is marked and sent on.
func main(all ...destination) object {
	var chains []object
	for _, d := range all {
		chains = append(chains, object{
			"filter_chain_match": object{
				"prefix_ranges": []object{{"address_prefix": d.asked.Addr().String(), "prefix_len": d.asked.Addr().BitLen()}}, "destination_port": d.asked.Port(),
			},
			"filters": []object{d.filter()},
		})
	}
	return object{
		"name": "main", "internal_listener": object{}, "filter_chains": chains,
		"listener_filters": []object{typed(originalDst, "envoy.extensions.filters.listener.original_dst.v3.OriginalDst", object{})},
	}
}

func (d destination) filter() object {
	if d.tcp {
		return typed("tcp", tcpProxyType, object{"stat_prefix": d.name, "cluster": d.name})
	}
	return typed("hcm", hcmType, object{
		"stat_prefix": d.name, "http_filters": []object{typed("router", routerType, object{})},
		"route_config": routes(object{
			"match": object{"prefix": "/"}, "route": object{"cluster": d.name, "timeout": "0s"},
			"request_headers_to_add": []object{{"header": object{"key": "x-waypoint", "value": d.name}}},
		}),
	})
}

// originate is the internal listener that sends what it is given in a CONNECT to the
// endpoint's own 15008.
func originate(cluster string) object {
	return object{
		"name": "originate", "internal_listener": object{},
		"listener_filters": []object{typed(originalDst, "envoy.extensions.filters.listener.original_dst.v3.OriginalDst", object{})},
		"filter_chains": []object{{"filters": []object{typed("tcp", tcpProxyType, object{
			"stat_prefix": "originate", "cluster": cluster, "tunneling_config": object{"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"},
		})}}},
	}
}

// toInternal is a cluster whose only endpoint is an internal listener. tunnel is what that
// one takes as the destination; empty where the filter state says it.
func toInternal(name, listener, tunnel string) object {
	endpoint := object{"endpoint": object{"address": object{"envoy_internal_address": object{"server_listener_name": listener, "endpoint_id": tunnel}}}}
	passed := object{"transport_socket": typed("raw_buffer", rawBufferType, object{})}
	if tunnel != "" {
		endpoint["metadata"] = object{"filter_metadata": object{originalDst: object{"local": tunnel}}}
		passed["passthrough_metadata"] = []object{{"name": originalDst, "kind": object{"host": object{}}}}
	}
	return object{
		"name": name, "load_assignment": object{"cluster_name": name, "endpoints": []object{{"lb_endpoints": []object{endpoint}}}},
		"transport_socket": typed("internal_upstream", internalType, passed),
	}
}

// toHBONE is the cluster of all endpoints' own 15008.
func toHBONE(c credentials, http2 object) object {
	return object{
		"name": "hbone", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "2s",
		"original_dst_lb_config": object{"upstream_port_override": 15008}, "transport_socket": c.tls("Upstream"),
		"typed_extension_protocol_options": object{httpOptions: object{
			"@type": "type.googleapis.com/" + httpOptions, "explicit_http_config": object{"http2_protocol_options": with(http2, "allow_connect", true)},
		}},
	}
}

// waypoint is the configuration of a waypoint for those destinations. say is what else
// it says of itself.
func (e *envoy) waypoint(c credentials, say terms, all ...destination) (listeners, clusters []object) {
	listeners = []object{e.terminate(c, say), main(all...), originate("hbone")}
	clusters = []object{toInternal("main", "main", ""), toHBONE(c, object{})}
	for _, d := range all {
		clusters = append(clusters, toInternal(d.name, "originate", d.endpoint.String()))
	}
	return listeners, clusters
}

func identity(account string) string {
	return fmt.Sprintf("spiffe://cluster.local/ns/app/sa/%s", account)
}

package proxy

import (
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy/sockopt"
)

// configAttrs is the configuration for the log, without secrets.
func configAttrs(c Config) []slog.Attr {
	m := configMap(c)
	var list []slog.Attr
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if text, ok := m[k].(string); ok {
			list = append(list, slog.String(k, text))
			continue
		}
		b, err := json.Marshal(m[k])
		if err != nil {
			b = []byte(err.Error())
		}
		list = append(list, slog.String(k, string(b)))
	}
	return list
}

// configMap is the effective configuration under ztunnel's names and in its shapes,
// and what we have beside. What may hold a secret is told by where it comes from, or
// not at all.
func configMap(c Config) map[string]any {
	m := map[string]any{
		"proxy": !c.DNSOnly, "proxyMode": modeText(c), "proxyArgs": "proxy ztunnel", "localNode": orNull(c.NodeName), "network": c.Network,
		"clusterId": c.ClusterID, "clusterDomain": c.ClusterDomain, "trustDomain": c.TrustDomain, "instanceIp": c.InstanceIP,
		"proxyMetadata": c.Metadata, "secretTtl": duration(c.SecretTTL), "selfTerminationDeadline": duration(c.DrainDeadline),
		"inpodUds": c.ZDSPath, "ipv6Enabled": c.IPv6, "sameNode": c.SameNode, "connectRetries": c.ConnectRetries, "enableEnhancedBaggage": c.ResponseBaggage,
		"localhostAppTunnel": c.LocalhostTunnel, "numWorkerThreads": c.Threads, "memoryLimit": c.MemoryLimit, "logLevel": c.Log.Filter, "logJson": c.Log.JSON,
		"windowSize": c.HBONE.StreamWindow, "connectionWindowSize": c.HBONE.ConnWindow, "frameSize": c.HBONE.MaxFrame,
		"poolMaxStreamsPerConn": c.HBONE.PoolStreams, "poolUnusedReleaseTimeout": duration(c.HBONE.IdleRelease),
		"proxyWorkloadInformation": nil, "ztunnelIdentity": nil, "ztunnelWorkload": nil,
	}
	if c.Dedicated {
		m["proxyWorkloadInformation"] = workloadInfo(c.Pod)
	}
	if id, info, ok := c.self(); ok {
		m["ztunnelIdentity"], m["ztunnelWorkload"] = id.String(), workloadInfo(info)
	}
	for _, part := range []map[string]any{c.upstreamMap(), c.socketMap(), c.listenerMap(), c.dnsMap()} {
		maps.Copy(m, part)
	}
	return m
}

func (c Config) upstreamMap() map[string]any {
	return map[string]any{
		"caAddress": orNull(c.CA.Address), "caRootCert": rootText(c.CA.RootCA), "altCaHostname": orNull(c.CA.AltName), "caHeaders": headerNames(c.CA.Headers),
		"xdsAddress": orNull(c.XDS.Address), "xdsRootCert": rootText(c.XDS.RootCA), "altXdsHostname": orNull(c.XDS.AltName), "xdsHeaders": headerNames(c.XDS.Headers),
		"authToken": c.Token.String(), "localXdsPath": c.LocalXDS, "xdsOnDemand": c.OnDemand, "fakeCa": c.FakeCA, "fakeSelfInbound": false, "crlPath": orNull(c.CRLPath),
	}
}

func (c Config) socketMap() map[string]any {
	var mark any
	if c.Sockets.Mark != 0 {
		mark = c.Sockets.Mark
	}
	return map[string]any{
		"inpodPortReuse": c.Sockets.ReusePort, "packetMark": mark, "requireOriginalSource": original(c.Sockets.Transparent),
		"socketConfig": map[string]any{
			"keepaliveTime": duration(c.Sockets.Keepalive.Idle), "keepaliveInterval": duration(c.Sockets.Keepalive.Interval),
			"keepaliveRetries": c.Sockets.Keepalive.Count, "keepaliveEnabled": c.Sockets.Keepalive != sockopt.Keepalive{},
			"userTimeoutEnabled": c.Sockets.UserTimeout > 0,
		},
	}
}

func (c Config) listenerMap() map[string]any {
	illegal := []int{OutboundPort, PlaintextPort, HBONEPort}
	var socks any
	if c.SOCKS5 {
		socks = "127.0.0.1:" + itoa(SOCKS5Port)
		illegal = append(illegal, SOCKS5Port)
	}
	wildcard := func(port int) string {
		if c.IPv6 {
			return "[::]:" + itoa(port)
		}
		return "0.0.0.0:" + itoa(port)
	}
	admin := socketAddr(c.Admin.String())
	if c.Admin.Addr().IsLoopback() {
		admin = localhost(c.IPv6, int(c.Admin.Port()))
	}
	return map[string]any{
		"adminAddr": admin, "statsAddr": socketAddr(c.Stats.String()), "readinessAddr": socketAddr(c.Ready.String()),
		"inboundAddr": wildcard(HBONEPort), "inboundPlaintextAddr": wildcard(PlaintextPort), "outboundAddr": wildcard(OutboundPort),
		"socks5Addr": socks, "illegalPorts": illegal,
	}
}

func (c Config) dnsMap() map[string]any {
	return map[string]any{
		"dnsProxy": c.DNS, "dnsProxyAddr": localhost(c.IPv6, DNSPort), "preferedServiceNamespace": orNull(c.PreferNamespace),
		"dnsResolverCfg": map[string]any{"resolvConf": c.ResolvConf}, "dnsResolverOpts": map[string]any{},
	}
}

// localhost and socketAddr are the two kinds of address to listen on.
func localhost(ipv6 bool, port int) any { return map[string]any{"Localhost": []any{ipv6, port}} }
func socketAddr(a string) any           { return map[string]any{"SocketAddr": a} }

func duration(d time.Duration) map[string]any {
	return map[string]any{"secs": int64(d / time.Second), "nanos": int64(d % time.Second)}
}

func workloadInfo(i zds.Info) any {
	return map[string]string{"name": i.Name, "namespace": i.Namespace, "serviceAccount": i.ServiceAccount}
}

// orNull is a text, or null where there is none.
func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func modeText(c Config) string {
	if c.Dedicated {
		return "Dedicated"
	}
	return "Shared"
}

func original(m sockopt.Mode) any {
	switch m {
	case sockopt.On:
		return true
	case sockopt.Off:
		return false
	}
	return nil
}

func rootText(s string) any {
	switch {
	case s == "SYSTEM":
		return "Default"
	case strings.Contains(s, "-----BEGIN"):
		return "Static"
	}
	return map[string]string{"File": s}
}

// headerNames leaves the values out: headers are where tokens go.
func headerNames(h [][2]string) [][2]string {
	out := [][2]string{}
	for _, kv := range h {
		out = append(out, [2]string{kv[0], "(not shown)"})
	}
	return out
}

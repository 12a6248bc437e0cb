package proxy

import (
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

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

// configMap is the effective configuration under ztunnel's names. What may hold
// a secret is told by where it comes from, or not at all.
func configMap(c Config) map[string]any {
	duration := func(d time.Duration) map[string]any {
		return map[string]any{"secs": int64(d / time.Second), "nanos": int64(d % time.Second)}
	}
	listen := func(port int) string {
		if c.IPv6 {
			return "[::]:" + itoa(port)
		}
		return "0.0.0.0:" + itoa(port)
	}
	return map[string]any{
		"proxy": true, "dnsProxy": false, "proxyMode": "Shared", "localNode": c.NodeName, "network": c.Network,
		"clusterId": c.ClusterID, "clusterDomain": c.ClusterDomain, "trustDomain": c.TrustDomain,
		"windowSize": c.HBONE.StreamWindow, "connectionWindowSize": c.HBONE.ConnWindow, "frameSize": c.HBONE.MaxFrame,
		"poolMaxStreamsPerConn": c.HBONE.PoolStreams, "poolUnusedReleaseTimeout": duration(c.HBONE.IdleRelease),
		"adminAddr": c.Admin.String(), "statsAddr": c.Stats.String(), "readinessAddr": c.Ready.String(),
		"inboundAddr": listen(HBONEPort), "inboundPlaintextAddr": listen(PlaintextPort), "outboundAddr": listen(OutboundPort),
		"illegalPorts": []int{OutboundPort, PlaintextPort, HBONEPort},
		"caAddress":    c.CA.Address, "caRootCert": rootText(c.CA.RootCA), "altCaHostname": c.CA.AltName, "caHeaders": headerNames(c.CA.Headers),
		"xdsAddress": c.XDS.Address, "xdsRootCert": rootText(c.XDS.RootCA), "altXdsHostname": c.XDS.AltName, "xdsHeaders": headerNames(c.XDS.Headers),
		"authToken": c.Token.String(), "localXdsPath": c.LocalXDS, "xdsOnDemand": false, "fakeCa": c.FakeCA,
		"secretTtl": duration(c.SecretTTL), "selfTerminationDeadline": duration(c.DrainDeadline), "inpodUds": c.ZDSPath,
		"inpodPortReuse": c.Sockets.ReusePort, "packetMark": c.Sockets.Mark, "requireOriginalSource": original(c.Sockets.Transparent),
		"socketConfig": map[string]any{
			"keepaliveTime": duration(c.Sockets.Keepalive.Idle), "keepaliveInterval": duration(c.Sockets.Keepalive.Interval),
			"keepaliveRetries": c.Sockets.Keepalive.Count, "keepaliveEnabled": c.Sockets.Keepalive != sockopt.Keepalive{},
			"userTimeoutEnabled": c.Sockets.UserTimeout > 0,
		},
		"ipv6Enabled": c.IPv6, "sameNode": c.SameNode, "enableEnhancedBaggage": c.ResponseBaggage, "proxyMetadata": c.Metadata,
		"numWorkerThreads": c.Threads, "memoryLimit": c.MemoryLimit, "logLevel": c.Log.Filter, "logJson": c.Log.JSON,
	}
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
func headerNames(h [][2]string) []string {
	out := []string{}
	for _, kv := range h {
		out = append(out, kv[0])
	}
	return out
}

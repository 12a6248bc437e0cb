package proxy

import (
	"net/netip"
	"strings"

	"github.com/warren-mesh/warren/nodeagent/zds"
)

// mode is whose proxy it is, and who may see whether it is ready.
func (e *environ) mode(c *Config) {
	switch m := e.text("PROXY_MODE", "shared"); {
	case strings.EqualFold(m, "shared"):
	case strings.EqualFold(m, "dedicated"):
		c.Dedicated = true
		if _, ok := e.vars["PACKET_MARK"]; !ok {
			c.Sockets.Mark = 0 // nobody has to tell our sockets from a pod's
		}
		if info := e.text("PROXY_WORKLOAD_INFO", ""); info != "" {
			parts := strings.Split(info, "/")
			if len(parts) != 3 {
				e.bad("PROXY_WORKLOAD_INFO", "%q: want namespace/name/serviceaccount", info)
				break
			}
			c.Pod = zds.Info{Namespace: parts[0], Name: parts[1], ServiceAccount: parts[2]}
		}
	default:
		e.bad("PROXY_MODE", "%q is neither shared nor dedicated", m)
	}
	c.Ready = e.listener("READINESS_ADDR", c.Ready)
}

// listener is an address to listen on, with or without a port.
func (e *environ) listener(name string, def netip.AddrPort) netip.AddrPort {
	text := e.text(name, "")
	if text == "" {
		return def
	}
	if a, err := netip.ParseAddrPort(text); err == nil && a.Port() != 0 {
		return a
	}
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	if err != nil {
		e.bad(name, "%q: want an IP address to listen on, with a port or without, such as 127.0.0.1", text)
		return def
	}
	return netip.AddrPortFrom(a, def.Port())
}

// names is who answers for them.
func (e *environ) names(c *Config) {
	switch v, ok := c.Metadata["DNS_CAPTURE"]; {
	case !ok:
		c.DNS = !c.OnDemand // then we know too few names
	case strings.EqualFold(v, "true"):
	case v == "" || strings.EqualFold(v, "false"):
		c.DNS = false
	default:
		e.bad("ISTIO_META_DNS_CAPTURE", "%q is neither true nor false", v)
	}
	c.PreferNamespace = e.text("PREFERED_SERVICE_NAMESPACE", "")
	c.SOCKS5 = e.boolean("UNSTABLE_ENABLE_SOCKS5", false)
}

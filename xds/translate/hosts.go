package translate

import (
	"fmt"
	"strings"

	"github.com/warren-mesh/warren/xds/workload"
)

// maxHostname is the length of a DNS name.
const maxHostname = 253

// hosts knows whose each host is: in a namespace that of a Service, else of the oldest
// ServiceEntry. Over all namespaces one owner is canonical, by the same rule.
type hosts struct {
	owners    map[workload.NamespacedHostname]string
	canonical map[string]bool // hosts that have a canonical owner
}

func newHosts() *hosts {
	return &hosts{owners: make(map[workload.NamespacedHostname]string), canonical: make(map[string]bool)}
}

// service notes the host of a Service. All Services come before the first ServiceEntry.
func (h *hosts) service(key workload.NamespacedHostname, name string) {
	h.owners[key] = "Service " + name
	h.canonical[key.Hostname] = true
}

// claim notes a host of a ServiceEntry. ServiceEntries come oldest first.
func (h *hosts) claim(key workload.NamespacedHostname, name string) error {
	owner := h.owners[key]
	if owner == "ServiceEntry "+name {
		return fmt.Errorf("%s comes twice: left out", key.Hostname)
	}
	if owner != "" {
		return fmt.Errorf("%s is that of %s, which counts: left out", key.Hostname, owner)
	}
	h.owners[key] = "ServiceEntry " + name
	return nil
}

// first reports whether an owner is the canonical one, if it may be. It is asked once for
// each owner, oldest first.
func (h *hosts) first(host string, public bool) bool {
	if !public || h.canonical[host] {
		return false
	}
	h.canonical[host] = true
	return true
}

// hostname reads a DNS name, without a dot at its end and in lower case. Names with
// underscores are none of hosts and yet in use.
func hostname(text string) (string, error) {
	host := strings.ToLower(strings.TrimSuffix(text, "."))
	if host == "" || len(host) > maxHostname {
		return "", fmt.Errorf("%.300q is not a DNS name: left out", text)
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, notInLabel) {
			return "", fmt.Errorf("%.300q is not a DNS name: left out", text)
		}
	}
	return host, nil
}

func notInLabel(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// wildcard reports whether a host stands for all below a name.
func wildcard(host string) bool { return strings.HasPrefix(host, "*.") }

// hostPattern reads a hostname or *.hostname.
func hostPattern(text string) (string, error) {
	if rest, ok := strings.CutPrefix(text, "*."); ok && len(text) <= maxHostname {
		host, err := hostname(rest)
		return "*." + host, err
	}
	return hostname(text)
}

package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Finding is something that a user of this node should know.
type Finding struct {
	Name   string // one of the constants below, for metrics and tests
	Broken bool   // probes of pods in the mesh fail; otherwise only a warning
	What   string // what is the matter
	Fix    string // what to set
}

// What SelfTest may find.
const (
	FoundNoRules     = "no-rules"      // the rules or sets cannot be put in place
	FoundNoIPSet     = "no-ipset"      // the kernel has no ipset
	FoundNoIP6Tables = "no-ip6tables"  // the node has IPv6, but no ip6tables
	FoundWide        = "wide"          // more than kubelet is let through
	FoundSource      = "wrong-source"  // somebody else translates the source
	FoundNoAnswer    = "no-answer"     // answers to the translated source are lost
	FoundUnreachable = "unreachable"   // the node cannot reach the pod at all
	FoundRPFilter    = "pod-rp-filter" // the pod drops the source
	FoundNotTested   = "not-tested"    // no connection could be tried
)

func (f Finding) String() string {
	return f.Name + ": " + f.What + ". " + f.Fix
}

// facts is what was read of the node.
type facts struct {
	limit   Limit
	asked   string // Config.Limit
	v4, v6  bool   // the node has addresses of the family
	no6     string // why there is no ip6tables
	setup   error  // of putting the rules in place
	earlier []string
	plugin  plugin
}

// plugin is what the node's interfaces and rules tell of the network plugin.
type plugin struct {
	cilium    bool
	ciliumBPF bool // it translates sources in BPF, not in iptables
	calicoBPF bool
	awsBranch bool // security groups for pods: pods have branch interfaces
}

// result is what became of connections to one address of a pod.
type result struct {
	pod     string
	addr    netip.Addr
	want    netip.Addr // the source that the pod should see
	from    netip.Addr // the one that it saw
	err     error      // of the connection with our source
	control error      // of one without it; only tried after an error
	filter  string     // what is odd about the pod's rp_filter
	untried error      // why there was no connection
}

// judge puts into words what was read and tried.
func judge(f facts, rs []result) (all []Finding) {
	add := func(name string, broken bool, what, fix string) {
		all = append(all, Finding{name, broken, what, fix})
	}
	switch {
	case errors.Is(f.setup, errNoIPSet):
		add(FoundNoIPSet, true, "kubelet's probes reach no pod with strict mTLS: "+f.setup.Error(),
			"Load the kernel modules ip_set, ip_set_hash_ip and xt_set on the node (modprobe, /etc/modules-load.d), or run the agent with the nftables backend")
	case f.setup != nil:
		add(FoundNoRules, true, "the rules for kubelet's probes cannot be put in place: "+f.setup.Error(),
			"The agent goes on trying; it needs CAP_NET_ADMIN in the host's network namespace and, with iptables, the host's /run/xtables.lock")
	}
	if f.no6 != "" && f.v6 {
		add(FoundNoIP6Tables, true, "the node has IPv6 addresses, but probes to pods' IPv6 addresses get no exemption: "+f.no6,
			"Install ip6tables beside iptables, or run the agent with the nftables backend, or turn IPv6 off for pods")
	}
	if f.limit.Kind != ByCgroup && f.asked != WholeHost {
		add(FoundWide, false, "the exemption for kubelet's probes is open to "+f.limit.String()+": they reach every port of every pod of this node that is in the mesh, past its policies",
			"Run kubelet in a cgroup (version 2) of its own, as systemd does, and give the agent the host's PID namespace; keep hostNetwork for pods that you trust as you trust the node")
	}
	for _, r := range rs {
		all = append(all, judgeOne(f, r)...)
	}
	return all
}

func judgeOne(f facts, r result) (all []Finding) {
	who := fmt.Sprintf("a probe of the node's to %s (%s)", r.addr, r.pod)
	switch {
	case r.untried != nil:
		return []Finding{{FoundNotTested, false, fmt.Sprintf("whether probes reach %s (%s) could not be tried: %v", r.addr, r.pod, r.untried), "Nothing needs to be set, unless pods turn unready"}}
	case errors.Is(r.err, errUnseen):
		return []Finding{{FoundSource, true, who + " did not arrive from " + r.want.String() + ": the pod's own rules took it for plaintext of a stranger's" + earlier(f), fixSource(f, r)}}
	case r.err == nil && r.from == r.want:
		return nil
	case r.err == nil:
		return []Finding{{FoundSource, true, fmt.Sprintf("%s arrived from %s, not from %s: something else translates its source first%s", who, r.from, r.want, earlier(f)), fixSource(f, r)}}
	case r.control != nil:
		return []Finding{{FoundUnreachable, true, fmt.Sprintf("%s gets no answer, whatever its source (%v)", who, r.control), "This is not the mesh's doing: look at the network plugin, its policies and the node's firewall"}}
	case r.filter != "":
		return []Finding{{FoundRPFilter, true, who + " is dropped by the pod: " + r.filter, fmt.Sprintf("Set net.ipv4.conf.all.rp_filter and that of the interface to 2 (loose) in the pod, or give it a route to %s through the interface that it is reached by", r.want)}}
	}
	return []Finding{{FoundNoAnswer, true, fmt.Sprintf("%s gets no answer (%v) once its source is %s; with the node's own source it does", who, r.err, r.want), fixAnswer(f, r)}}
}

// earlier names what has a chance to translate before us.
func earlier(f facts) string {
	if len(f.earlier) == 0 {
		return ""
	}
	return " (before ours come " + short(strings.Join(f.earlier, ", ")) + ")"
}

func fixSource(f facts, r result) string {
	if f.plugin.ciliumBPF {
		return "Set bpf.masquerade=false in Cilium's Helm values: it translates the node's connections in BPF"
	}
	return fmt.Sprintf("Exempt what goes from the node to pods of this node from that rule, or the source %s", r.want)
}

func fixAnswer(f facts, r result) string {
	policy := fmt.Sprintf("If a NetworkPolicy applies to the pod, let %s in by one more", r.want)
	switch {
	case f.plugin.cilium:
		return fmt.Sprintf("Cilium's BPF host routing has no route to that source: set bpf.hostLegacyRouting=true and bpf.masquerade=false in its Helm values, "+
			"or, with kube-proxy replacement, give agent and pods a source that is routed, such as the node's own address. "+
			"Policies of Cilium's take the source for a stranger: allow %s/%d by a CiliumClusterwideNetworkPolicy", r.want, r.want.BitLen())
	case f.plugin.calicoBPF:
		return "Calico's BPF data plane before 3.29 drops answers to that source: use a later one. " + policy
	case f.plugin.awsBranch:
		return "The VPC CNI sends the answers of pods with security groups out through the branch interface: set POD_SECURITY_GROUP_ENFORCING_MODE=standard on aws-node and make the pods anew. " + policy
	}
	return policy + ". Else the network plugin drops answers to an address that it has no route to: let it hand them to the node's stack, or configure another source"
}

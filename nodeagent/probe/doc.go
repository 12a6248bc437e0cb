// Package probe lets kubelet's probes reach pods in the mesh: on the host, the
// source of packets to those pods becomes an address (169.254.7.127 and
// fd16:9254:7127:1337:ffff:ffff:ffff:ffff) that the rules in the pods let
// straight through to the application.
//
//	kubelet ─ connect 10.244.1.7:8080 ─ POSTROUTING ─ veth ─ pod's PREROUTING ─ app
//	                                    │ to a pod in the set? kubelet's socket?
//	                                    └ source becomes 169.254.7.127
//
// # Two backends
//
// As for pods, it is the one that the host's own rules are in. With iptables
// (either variant) the addresses are in the ipsets warren-probes-v4 and -v6, kept
// over netlink, and the rules in the chain WARREN_POSTRT of nat, to which the
// first rule of POSTROUTING jumps. With nftables they are in the table
// inet warren-probes, whose chain comes before everybody else's translation of
// sources by its priority. Nothing is ever flushed: what is there when the agent
// starts stays, and only the differences are made, so that no probe fails while
// an agent restarts or is replaced. [Probe.Run] puts back what others remove,
// and the jump to the first place when others take it.
//
// # Whose packets
//
// The exemption is for kubelet. It is told from others of the host by the
// narrowest of what there is ([Limit]; the choice is in the log and in the
// agent's status):
//
//   - its cgroup (v2), where it has one of its own, as it does under systemd:
//     iptables-nft matches the path, nftables the ID, in the output hook, and
//     notes the connection for the chain that translates. Both are looked up
//     again when kubelet restarts. With iptables-legacy it is the slice around it
//     (system.slice), if no pods are in there: any change of anybody's to the
//     table checks all paths in it, and would be refused while kubelet is down.
//     That the kernel matches as expected is tried out in a namespace of our own
//     first, with the agent's own cgroup;
//   - or else its user: where cgroups are of version 1 (or hybrid), where kubelet
//     is in the root, or where the path cannot be had (no access to the host's
//     /proc/1/ns/cgroup);
//   - or else nothing: no kubelet was found.
//
// What that means for security: whoever passes reaches every port of every pod
// of the node that is in the mesh, in plaintext and past its policies, as kubelet
// does. By cgroup these are kubelet alone (with K3s and MicroK8s: its one
// process; with iptables-legacy: the services of the host). By user they are all
// processes of the host's network that run as that user, root as a rule, pods
// with hostNetwork included; by nothing, all processes of the host's network.
// A process in a pod's own network never passes, whatever its address: its
// packets have no socket here.
//
// # Addresses
//
// They are keyed by pod: an address stays as long as one pod claims it, so that
// the late end of a dead pod takes nothing from the new pod that has its address.
// Addresses that cannot be a pod's are refused by name, the node's own first of
// all; the others of the same pod go on.
//
// # Self-test
//
// A network plugin can break this path: it may translate sources before us,
// drop answers to an address that it has no route to, or hold our packets for
// foreign ones and apply its policies. [Probe.SelfTest] makes connections, into
// pods that it is given or a namespace of its own, looks at their source, and
// says what is broken and what to set.
//
// Kind: adapter. Used by nodeagent, in the host's network namespace or with a
// file of it. It needs CAP_NET_ADMIN and CAP_SYS_ADMIN, CAP_SYS_PTRACE to know
// kubelet's network, the host's /proc, and with iptables the host's
// /run/xtables.lock.
package probe

package bench

import (
	"fmt"
	"strings"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// world is the pods of a bed in the static format that proxies read from
// LOCAL_XDS_PATH.
func world(pods []*onehost.Pod, meshed func(*onehost.Pod) bool, more map[*onehost.Pod][]string) []byte {
	var b strings.Builder
	b.WriteString("workloads:\n")
	for _, p := range pods {
		protocol := "TCP"
		if meshed(p) {
			protocol = "HBONE"
		}
		ips := []string{fmt.Sprintf("%q", p.IP4())}
		for _, ip := range more[p] {
			ips = append(ips, fmt.Sprintf("%q", ip))
		}
		fmt.Fprintf(&b, "- {uid: Kubernetes//Pod/%[1]s/%[2]s, name: %[2]s, namespace: %[1]s, serviceAccount: %[3]s, workloadIps: [%[4]s], protocol: %[5]s, trustDomain: cluster.local, node: %[6]s, network: \"\", services: {}}\n",
			p.Spec.Namespace, p.Spec.Name, p.Spec.ServiceAccount, strings.Join(ips, ", "), protocol, p.Node().Name)
	}
	b.WriteString("services: []\npolicies: []\n")
	return []byte(b.String())
}

package manifests_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every option is rendered, and what comes out is what Kubernetes knows.
func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		set   string   // values, separated by spaces
		more  []string // objects that come by it
		fewer []string // and those that go
	}{
		{set: ""},
		{set: "namespace.create=true", more: []string{"Namespace//warren-system"}},
		{set: "image.registry=registry.example/mesh image.tag=v1 image.pullPolicy=Always image.pullSecrets[0].name=s"},
		{set: "networkPolicies.enabled=false", fewer: []string{"NetworkPolicy/warren-system/warren-controlplane", "NetworkPolicy/warren-system/ztunnel"}},
		{set: "networkPolicies.metricsFrom[0].namespaceSelector.matchLabels.a=b"},
		{set: "podMonitors.enabled=true podMonitors.labels.release=prom", more: []string{
			"PodMonitor/warren-system/warren-controlplane", "PodMonitor/warren-system/warren-nodeagent", "PodMonitor/warren-system/ztunnel",
		}},
		{set: "dashboard.enabled=true dashboard.annotations.folder=mesh", more: []string{"ConfigMap/warren-system/warren-dashboard"}},
		{set: "resourceQuota.enabled=true", more: []string{"ResourceQuota/warren-system/warren-critical-pods"}},
		{set: "openshift.enabled=true", more: []string{
			"Role/warren-system/warren-nonroot", "Role/warren-system/warren-privileged", "RoleBinding/warren-system/warren-nonroot", "RoleBinding/warren-system/warren-privileged",
		}},
		{set: "nodeagent.admissionPolicy=false", fewer: []string{
			"ValidatingAdmissionPolicy//warren-nodeagent-warren-system", "ValidatingAdmissionPolicyBinding//warren-nodeagent-warren-system",
		}},
		{set: "nodeagent.removeTaints[0]=cni.istio.io/not-ready", more: []string{
			"ValidatingAdmissionPolicy//warren-nodeagent-taints-warren-system", "ValidatingAdmissionPolicyBinding//warren-nodeagent-taints-warren-system",
		}},
		{set: "controlPlane.podDisruptionBudget=false", fewer: []string{"PodDisruptionBudget/warren-system/warren-controlplane"}},
		{set: "controlPlane.policyStatus=false controlPlane.waypointStatus=false controlPlane.allocateAddresses=false controlPlane.extraHosts[0]=mesh.example controlPlane.trustedNodeAccounts[0]=istio-system/ztunnel"},
		{set: "controlPlane.enabled=false controlPlane.address=istiod.istio-system.svc:15012", fewer: []string{
			"ClusterRole//warren-controlplane-warren-system", "ClusterRoleBinding//warren-controlplane-warren-system",
			"Deployment/warren-system/warren-controlplane", "NetworkPolicy/warren-system/warren-controlplane",
			"PodDisruptionBudget/warren-system/warren-controlplane", "Role/warren-system/warren-controlplane",
			"RoleBinding/warren-system/warren-controlplane", "Service/warren-system/warren-controlplane", "ServiceAccount/warren-system/warren-controlplane",
		}},
		{set: "proxy.name=warren-proxy proxy.serviceAccountName=ztunnel", more: []string{"DaemonSet/warren-system/warren-proxy"}, fewer: []string{"DaemonSet/warren-system/ztunnel"}},
		{set: "proxy.env.SAME_NODE=mtls proxy.env.PACKET_MARK=1337 proxy.logFormat=json proxy.seLinuxOptions.type=spc_t proxy.socketDir=/run/warren-proxy"},
		{set: "proxy.hostNetwork=true"},
		{set: "proxy.metricsByHBONE=true"},
		{set: "proxy.crl.configMap=crls proxy.crl.key=x.pem proxy.compliancePolicy=pqc proxy.tls12=true mesh.tokenAudience=mesh controlPlane.caRate=7 controlPlane.caBurst=9 controlPlane.caOverlap=0s"},
		{set: "proxy.crl.secret=crls proxy.identity.configMap=svids"},
		{set: "proxy.identity.source=broker proxy.identity.sockets.broker=/run/a/b.sock proxy.identity.sockets.workloadAPI=/run/a/w.sock proxy.identity.agentID=spiffe://x/agent proxy.identity.selfID=spiffe://x/ztunnel"},
		{set: "proxy.identity.source=delegated proxy.identity.sockets.admin=/run/spire/admin/admin.sock proxy.identity.reuse=confirm"},
		{set: "mesh.network=n1 mesh.ipv6=false mesh.enablementSelectors[0].podSelector.matchLabels.mesh=on"},
		{set: "nodeagent.appArmorProfile= nodeagent.seLinuxOptions.type=spc_t nodeagent.maxUnavailable=10% nodeagent.healthPort=8001"},
		{set: "nodeagent.resources.limits.memory=1Gi controlPlane.resources.limits.memory=1Gi proxy.resources.limits.cpu=2"},
		{set: "nodeagent.podLabels.a=b nodeagent.podAnnotations.c=d nodeagent.nodeSelector.e=f controlPlane.podLabels.a=b controlPlane.podAnnotations.c=d controlPlane.nodeSelector.e=f proxy.podLabels.a=b proxy.podAnnotations.c=d proxy.nodeSelector.e=f"},
	} {
		t.Run(tt.set, func(t *testing.T) {
			want := names(installed(t))
			want = slices.DeleteFunc(append(want, tt.more...), func(n string) bool { return slices.Contains(tt.fewer, n) })
			slices.Sort(want)
			if d := cmp.Diff(want, names(installed(t, strings.Fields(tt.set)...))); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func names(list []object) (names []string) {
	for _, o := range list {
		names = append(names, o.name)
	}
	slices.Sort(names)
	return names
}

// What the schema or the chart itself refuses is refused by name.
func TestRefusedValues(t *testing.T) {
	for set, want := range map[string]string{
		"proxy.nmae=x":                              "nmae",
		"platform=windows":                          "platform",
		"nodeagent.redirect=ebpf":                   "redirect",
		"nodeagent.cni.confDir=relative":            "confDir",
		"nodeagent.cni.withoutAgent=maybe":          "withoutAgent",
		"proxy.socketDir=/a/":                       "socketDir",
		"nodeagent.healthPort=70000":                "healthPort",
		"mesh.excludeNamespaces[0]=Not_A_Namespace": "excludeNamespaces",
		"controlPlane.address=https://x":            "address",
		"controlPlane.enabled=false":                "controlPlane.address is empty",
		"controlPlane.trustedNodeAccounts[0]=x":     "trustedNodeAccounts",
		"image.tag=a b":                             "tag",
		"proxy.metricsByHBONE=1":                    "metricsByHBONE",
		"proxy.logFormat=xml":                       "logFormat",
		"proxy.identity.source=spire":               "source",
		"proxy.identity.source=broker":              "sockets.broker is empty",
		"proxy.identity.source=delegated":           "sockets.admin is empty",
		"proxy.identity.source=workload-api":        "sockets.workloadAPI is empty",
		"proxy.identity.reuse=local":                "proxy.identity.reuse is local",
		"proxy.identity.sockets.admin=admin.sock":   "admin",
		"proxy.identity.sockets.admin=/admin.sock":  "admin",
		"proxy.identity.agentID=x":                  "agentID",
		"proxy.identity.agentUID=spire":             "agentUID",
		"proxy.identity.agentUID=-1":                "agentUID",
		"proxy.compliancePolicy=fips":               "compliancePolicy",
		"proxy.crl.configMap=A_b":                   "configMap",
		"controlPlane.caRate=0":                     "caRate",
		"controlPlane.caBurst=0":                    "caBurst",
		"controlPlane.caOverlap=23h59m":             "less than controlPlane.certificateTTL 24h",
	} {
		if _, err := tryRender(t, "chart", "-set", set, chart); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q named", set, err, want)
		}
	}
}

// The chart is not installed over what belongs to others, and is upgraded over
// what is its own.
func TestOtherDaemonSets(t *testing.T) {
	// Istio's, as its charts make them: app=ztunnel whatever it is called, and a folder on the node.
	const ztunnel = "spec:\n  template:\n    metadata: {labels: {app: ztunnel}}\n"
	folder := func(path string) string {
		return "    spec: {volumes: [{name: token, secret: {secretName: x}}, {name: sock, hostPath: {path: " + path + "}}]}\n"
	}
	daemonSet := func(namespace, name, release string) string {
		text := "apiVersion: apps/v1\nkind: DaemonSet\nmetadata:\n  name: " + name + "\n  namespace: " + namespace + "\n"
		if release != "" {
			text += "  annotations: {meta.helm.sh/release-name: " + release + ", meta.helm.sh/release-namespace: " + namespace + "}\n"
		}
		return text
	}
	for what, tt := range map[string]struct {
		existing string
		set      string
		refused  string // empty: it is not
	}{
		"nothing":                    {existing: ""},
		"others":                     {existing: daemonSet("kube-system", "kube-proxy", "")},
		"ours":                       {existing: daemonSet("warren-system", "ztunnel", "warren") + "---\n" + daemonSet("warren-system", "warren-nodeagent", "warren")},
		"Istio's":                    {existing: daemonSet("warren-system", "ztunnel", "istio-ztunnel"), refused: "DaemonSet warren-system/ztunnel is there"},
		"one by hand":                {existing: daemonSet("warren-system", "ztunnel", ""), refused: "DaemonSet warren-system/ztunnel is there"},
		"an agent by hand":           {existing: daemonSet("warren-system", "warren-nodeagent", ""), refused: "warren-system/warren-nodeagent is there"},
		"both by hand, renamed":      {existing: daemonSet("warren-system", "warren-nodeagent", ""), set: "proxy.name=x", refused: "remove it first"},
		"one under another name":     {existing: daemonSet("warren-system", "ztunnel", ""), set: "proxy.name=warren-proxy", refused: "Remove it first, or install into another namespace"},
		"likewise, with leave":       {existing: daemonSet("warren-system", "ztunnel", ""), set: "proxy.name=x,proxy.allowOtherZtunnel=true,proxy.socketDir=/run/x", refused: "install into another namespace"},
		"Istio's, renamed":           {existing: daemonSet("warren-system", "istio-ztunnel", "x") + ztunnel, refused: "DaemonSet warren-system/istio-ztunnel is there"},
		"renamed, elsewhere":         {existing: daemonSet("istio-system", "mesh-proxy", "x") + ztunnel, refused: "DaemonSet istio-system/mesh-proxy"},
		"one in another namespace":   {existing: daemonSet("istio-system", "ztunnel", "x"), refused: "DaemonSet istio-system/ztunnel"},
		"one that may be there":      {existing: daemonSet("istio-system", "ztunnel", "x"), set: "proxy.allowOtherZtunnel=true"},
		"with folders of their own":  {existing: daemonSet("istio-system", "ztunnel", "x") + ztunnel + folder("/var/run/ztunnel"), set: "proxy.allowOtherZtunnel=true,proxy.socketDir=/var/run/warren-proxy"},
		"with one folder":            {existing: daemonSet("istio-system", "ztunnel", "x") + ztunnel + folder("/var/run/ztunnel"), set: "proxy.allowOtherZtunnel=true", refused: "set proxy.socketDir to another folder"},
		"with one, by another path":  {existing: daemonSet("istio-system", "ztunnel", "x") + ztunnel + folder("/run/ztunnel/"), set: "proxy.allowOtherZtunnel=true", refused: "set proxy.socketDir to another folder"},
		"Istio's agent":              {existing: daemonSet("istio-system", "istio-cni-node", "x") + "spec:\n  template:\n" + folder("/var/run/ztunnel"), refused: "istio-cni-node is not of this release"},
		"somebody with more":         {existing: daemonSet("logging", "logs", "x") + "spec:\n  template:\n" + folder("/var/run")},
		"ours by name, not by place": {existing: daemonSet("other", "ztunnel", "warren"), refused: "DaemonSet other/ztunnel"},
	} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "existing.yaml")
			if err := os.WriteFile(path, []byte(tt.existing), 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{"chart", "-existing", path}
			for _, set := range strings.FieldsFunc(tt.set, func(r rune) bool { return r == ',' }) {
				args = append(args, "-set", set)
			}
			_, err := tryRender(t, append(args, chart)...)
			if (err != nil) != (tt.refused != "") || err != nil && !strings.Contains(err.Error(), tt.refused) {
				t.Errorf("%v, want %q", err, tt.refused)
			}
		})
	}
}

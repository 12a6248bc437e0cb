package manifests_test

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/warren-mesh/warren/proxy"
)

// workloads are the pods that are rendered, by their owners' names.
func workloads(list []object) map[string]*corev1.PodTemplateSpec {
	out := map[string]*corev1.PodTemplateSpec{}
	for _, o := range list {
		switch w := o.Object.(type) {
		case *appsv1.DaemonSet:
			out[w.Name] = &w.Spec.Template
		case *appsv1.Deployment:
			out[w.Name] = &w.Spec.Template
		}
	}
	return out
}

// Each container has what it needs and no more.
func TestPrivileges(t *testing.T) {
	needs := map[string][]corev1.Capability{
		"warren-nodeagent":    {"SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE"},
		"ztunnel":             {"SYS_ADMIN", "NET_ADMIN"},
		"warren-controlplane": nil,
	}
	pods := workloads(installed(t))
	if len(pods) != len(needs) {
		t.Errorf("%d workloads, want %d", len(pods), len(needs))
	}
	for name, pod := range pods {
		if s := pod.Spec.SecurityContext; s == nil || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s: seccomp is not the runtime's default", name)
		}
		if !strings.HasPrefix(pod.Spec.PriorityClassName, "system-") {
			t.Errorf("%s: priority class %q", name, pod.Spec.PriorityClassName)
		}
		if agent := name == "warren-nodeagent"; pod.Spec.HostNetwork != agent || pod.Spec.HostPID != agent || pod.Spec.HostIPC {
			t.Errorf("%s: network %v, PIDs %v, IPC %v of the host", name, pod.Spec.HostNetwork, pod.Spec.HostPID, pod.Spec.HostIPC)
		}
		if len(pod.Spec.Containers) != 1 || len(pod.Spec.InitContainers) != 0 {
			t.Fatalf("%s: %d containers", name, len(pod.Spec.Containers))
		}
		c := pod.Spec.Containers[0]
		s := c.SecurityContext
		if s == nil || s.Capabilities == nil || !isTrue(s.ReadOnlyRootFilesystem) || !isFalse(s.Privileged) || !isFalse(s.AllowPrivilegeEscalation) {
			t.Fatalf("%s: %+v", name, s)
		}
		if d := cmp.Diff(needs[name], s.Capabilities.Add); d != "" || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("%s: drops %v; adds (-want +got):\n%s", name, s.Capabilities.Drop, d)
		}
		if root := len(needs[name]) > 0; s.RunAsUser == nil || (*s.RunAsUser == 0) != root || isTrue(s.RunAsNonRoot) == root {
			t.Errorf("%s: runs as %v", name, s.RunAsUser)
		}
		if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() {
			t.Errorf("%s: requests %v", name, c.Resources.Requests)
		}
		for what, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
			if p == nil || p.HTTPGet == nil {
				t.Errorf("%s: no %s probe", name, what)
			}
		}
	}
}

// In the node's network the proxy says to nobody but the node whether it is ready: a
// pod, in the mesh or not, reaches every other address of the node.
func TestReadinessOnTheNode(t *testing.T) {
	pod := workloads(installed(t, "proxy.hostNetwork=true"))["ztunnel"].Spec
	c := pod.Containers[0]
	if !pod.HostNetwork || pod.DNSPolicy != corev1.DNSClusterFirstWithHostNet || !slices.Contains(c.Env, corev1.EnvVar{Name: "READINESS_ADDR", Value: "127.0.0.1"}) {
		t.Errorf("network of the node %v, DNS %s, environment %v", pod.HostNetwork, pod.DNSPolicy, c.Env)
	}
	if slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.ContainerPort == proxy.HBONEPort }) {
		t.Error("HBONE is said to be taken on the node's own addresses")
	}
	for _, p := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
		if p.HTTPGet.Host != "127.0.0.1" {
			t.Errorf("%s is asked of %q", p.HTTPGet.Path, p.HTTPGet.Host)
		}
	}
	for _, p := range []*corev1.Probe{workloads(installed(t))["ztunnel"].Spec.Containers[0].ReadinessProbe} {
		if p.HTTPGet.Host != "" {
			t.Errorf("in a pod of its own, %s is asked of %q", p.HTTPGet.Path, p.HTTPGet.Host)
		}
	}
}

func isTrue(b *bool) bool  { return b != nil && *b }
func isFalse(b *bool) bool { return b != nil && !*b }

// The proxy has no way to the API server.
func TestProxyHasNoToken(t *testing.T) {
	list := installed(t)
	pod := workloads(list)["ztunnel"].Spec
	if !isFalse(pod.AutomountServiceAccountToken) || !isFalse(find[*corev1.ServiceAccount](t, list, "ztunnel").AutomountServiceAccountToken) {
		t.Error("the proxy has a token of the API server's")
	}
	for _, o := range list {
		if strings.Contains(o.name, "RoleBinding") && strings.Contains(strings.ToLower(o.name), "ztunnel") {
			t.Errorf("%s gives the proxy rights", o.name)
		}
	}
}

// Every rule, capability and folder of the host has its reason above it.
func TestReasons(t *testing.T) {
	templates, err := filepath.Glob(chart + "/templates/*.yaml")
	if err != nil || len(templates) < 10 {
		t.Fatal(templates, err)
	}
	reasonable := regexp.MustCompile(`^\s*(- apiGroups: |- [A-Z]+_[A-Z]+$|- name: \S+$)`)
	hostPath := regexp.MustCompile(`^\s*hostPath:`)
	found := 0
	for _, path := range templates {
		lines := strings.Split(read(t, path), "\n")
		for i, line := range lines {
			if !reasonable.MatchString(line) || strings.Contains(line, "name:") && (i+1 >= len(lines) || !hostPath.MatchString(lines[i+1])) {
				continue
			}
			if strings.Contains(path, "admission") || strings.HasSuffix(path, "openshift.yaml") { // the policy is the reason
				continue
			}
			found++
			above := i - 1
			for above > 0 && strings.HasPrefix(strings.TrimSpace(lines[above]), "{{") {
				above--
			}
			if above < 0 || !strings.HasPrefix(strings.TrimSpace(lines[above]), "#") {
				t.Errorf("%s:%d: %s has no reason above it", path, i+1, strings.TrimSpace(line))
			}
		}
	}
	if found < 25 {
		t.Errorf("only %d things were looked at", found)
	}
}

// Updates: of the proxy one is always there; two agents never are.
func TestUpdates(t *testing.T) {
	list := installed(t)
	proxy := find[*appsv1.DaemonSet](t, list, "ztunnel").Spec.UpdateStrategy.RollingUpdate
	if proxy.MaxSurge.IntValue() != 1 || proxy.MaxUnavailable.IntValue() != 0 {
		t.Errorf("proxy: %+v", proxy)
	}
	agent := find[*appsv1.DaemonSet](t, list, "warren-nodeagent").Spec.UpdateStrategy.RollingUpdate
	if agent.MaxSurge.IntValue() != 0 || agent.MaxUnavailable.IntValue() != 1 {
		t.Errorf("agent: %+v", agent)
	}
	cp := find[*appsv1.Deployment](t, list, "warren-controlplane").Spec.Strategy.RollingUpdate
	if cp.MaxSurge.IntValue() != 1 || cp.MaxUnavailable.IntValue() != 0 {
		t.Errorf("control plane: %+v", cp)
	}
	// A surge needs ports that no other pod of the node has.
	for _, p := range workloads(list)["ztunnel"].Spec.Containers[0].Ports {
		if p.HostPort != 0 {
			t.Errorf("the proxy takes the node's port %d", p.HostPort)
		}
	}
}

// OpenShift admits a pod that says under which user it runs only where its account may use
// constraints that allow it, the pod of helm's hook as well.
func TestOpenShiftConstraints(t *testing.T) {
	args := []string{"chart", "-set", "openshift.enabled=true", chart}
	list := append(rendered(t, args...), rendered(t, append([]string{"chart", "-hooks"}, args[1:]...)...)...)
	uses := map[string][]string{} // constraints, by account
	for _, o := range list {
		b, ok := o.Object.(*rbacv1.RoleBinding)
		if !ok {
			continue
		}
		for _, rule := range find[*rbacv1.Role](t, list, b.RoleRef.Name).Rules {
			for _, s := range b.Subjects {
				if slices.Contains(rule.Resources, "securitycontextconstraints") && slices.Contains(rule.Verbs, "use") {
					uses[s.Name] = append(uses[s.Name], rule.ResourceNames...)
				}
			}
		}
	}
	pods := workloads(list)
	pods["the hook"] = &find[*batchv1.Job](t, list, "warren-leave").Spec.Template
	for name, pod := range pods {
		want := "nonroot-v2"
		if s := pod.Spec.Containers[0].SecurityContext; pod.Spec.HostNetwork || len(s.Capabilities.Add) > 0 || !isTrue(s.RunAsNonRoot) {
			want = "privileged"
		}
		if got := uses[pod.Spec.ServiceAccountName]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s: its account %s may use %q, it needs %s", name, pod.Spec.ServiceAccountName, got, want)
		}
		for _, v := range pod.Spec.Volumes {
			if want == "nonroot-v2" && (v.HostPath != nil || v.Secret == nil && v.ConfigMap == nil && v.EmptyDir == nil && v.Projected == nil) {
				t.Errorf("%s: %s does not admit the volume %s", name, want, v.Name)
			}
		}
	}
}

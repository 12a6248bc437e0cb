package manifests_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/proxy"
)

// proxyPod is the proxy's with values.
func proxyPod(t *testing.T, set ...string) corev1.PodSpec {
	t.Helper()
	return workloads(installed(t, set...))["ztunnel"].Spec
}

// extra is what values add to a pod: environment, mounts and volumes, as text.
func extra(before, after corev1.PodSpec) (out []string) {
	list := func(p corev1.PodSpec) (all []string) {
		c := p.Containers[0]
		for _, e := range c.Env {
			all = append(all, e.Name+"="+e.Value)
		}
		for _, m := range c.VolumeMounts {
			i := slices.IndexFunc(p.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
			from := "nowhere"
			switch v := p.Volumes[i].VolumeSource; {
			case v.HostPath != nil:
				from = "node " + v.HostPath.Path + " " + string(*v.HostPath.Type)
			case v.ConfigMap != nil:
				from = "configmap " + v.ConfigMap.Name
			case v.Secret != nil:
				from = "secret " + v.Secret.SecretName
			case v.Projected != nil:
				from = "token for " + v.Projected.Sources[0].ServiceAccountToken.Audience
			}
			if !m.ReadOnly {
				from += " (written)"
			}
			all = append(all, m.MountPath+" <- "+from)
		}
		for _, c := range c.SecurityContext.Capabilities.Add {
			all = append(all, "capability "+string(c))
		}
		if p.HostPID {
			all = append(all, "the node's processes")
		}
		return all
	}
	was := list(before)
	for _, s := range list(after) {
		if !slices.Contains(was, s) {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

// Each source of identities comes with the sockets and rights that it needs, and no more.
func TestIdentityValues(t *testing.T) {
	plain := proxyPod(t)
	for name, tt := range map[string]struct {
		set  []string
		want []string
	}{
		"broker": {
			[]string{"proxy.identity.source=broker", "proxy.identity.sockets.broker=/run/a/b.sock", "proxy.identity.sockets.workloadAPI=/run/a/w.sock", "proxy.identity.agentID=spiffe://x/agent", "proxy.identity.selfID=spiffe://x/z"},
			[]string{"/run/a <- node /run/a Directory", "SPIFFE_BROKER_SOCKET=unix:///run/a/b.sock", "SPIFFE_ENDPOINT_SOCKET=unix:///run/a/w.sock", "SPIFFE_ID=spiffe://x/z", "SPIRE_AGENT_ID=spiffe://x/agent", "SVID_SOURCE=broker"},
		},
		"SPIRE, by process": {
			[]string{"proxy.identity.source=delegated", "proxy.identity.sockets.admin=/run/spire/admin/admin.sock", "proxy.identity.reuse=confirm"},
			[]string{"/run/spire/admin <- node /run/spire/admin Directory", "SPIRE_ADMIN_SOCKET=unix:///run/spire/admin/admin.sock", "SPIRE_ATTEST=pid", "SVID_REUSE=confirm", "SVID_SOURCE=delegated", "capability SYS_PTRACE", "the node's processes"},
		},
		"SPIRE, by selectors": {
			[]string{"proxy.identity.source=delegated", "proxy.identity.sockets.admin=/run/spire/admin/admin.sock", "proxy.identity.attest=selectors"},
			[]string{"/run/spire/admin <- node /run/spire/admin Directory", "SPIRE_ADMIN_SOCKET=unix:///run/spire/admin/admin.sock", "SPIRE_ATTEST=selectors", "SVID_SOURCE=delegated"},
		},
		"Workload API": {
			[]string{"proxy.identity.source=workload-api", "proxy.identity.sockets.workloadAPI=/run/a/w.sock"},
			[]string{"/run/a <- node /run/a Directory", "SPIFFE_ENDPOINT_SOCKET=unix:///run/a/w.sock", "SVID_SOURCE=workload-api"},
		},
		"an agent that is not root": {
			[]string{"proxy.identity.source=workload-api", "proxy.identity.sockets.workloadAPI=/run/a/w.sock", "proxy.identity.agentUID=1000650000"},
			[]string{"/run/a <- node /run/a Directory", "SPIFFE_ENDPOINT_SOCKET=unix:///run/a/w.sock", "SPIFFE_SOCKET_UID=1000650000", "SVID_SOURCE=workload-api"},
		},
		"changed at run time": {
			[]string{"proxy.identity.configMap=svids"},
			[]string{"/etc/warren/identity <- configmap svids", "SVID_CONFIG=/etc/warren/identity/svid.env"},
		},
		"revocation in a ConfigMap": {
			[]string{"proxy.crl.configMap=crls"},
			[]string{"/etc/warren/crl <- configmap crls", "CRL_PATH=/etc/warren/crl/ca-crl.pem"},
		},
		"revocation in a Secret": {
			[]string{"proxy.crl.secret=crls", "proxy.crl.key=x.pem"},
			[]string{"/etc/warren/crl <- secret crls", "CRL_PATH=/etc/warren/crl/x.pem"},
		},
		"TLS":      {[]string{"proxy.compliancePolicy=pqc", "proxy.tls12=true"}, []string{"COMPLIANCE_POLICY=pqc", "TLS12_ENABLED=true"}},
		"audience": {[]string{"mesh.tokenAudience=mesh"}, []string{"/var/run/secrets/tokens <- token for mesh"}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, extra(plain, proxyPod(t, tt.set...))); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// The proxy reads all of it.
func TestIdentityIsRead(t *testing.T) {
	pod := proxyPod(t, "proxy.identity.source=broker", "proxy.identity.sockets.workloadAPI=/run/a/w.sock", "proxy.identity.sockets.broker=/run/a/b.sock",
		"proxy.identity.sockets.admin=/run/a/a.sock", "proxy.identity.attest=selectors", "proxy.identity.agentID=spiffe://x/agent",
		"proxy.identity.selfID=spiffe://x/z", "proxy.identity.agentUID=1000650000", "proxy.identity.configMap=svids")
	got := proxyConfig(t, pod)
	want := proxy.SVIDs{
		Source: "broker", Reuse: svid.Strict, Endpoint: "unix:///run/a/w.sock", Broker: "unix:///run/a/b.sock", Admin: "unix:///run/a/a.sock",
		Attest: "selectors", Proc: "/proc", Self: "spiffe://x/z", Agent: "spiffe://x/agent", AgentUID: 1000650000, Overlap: 24 * time.Hour,
	}
	if d := cmp.Diff(want, got.SVIDs); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Proxies and the control plane agree on the audience of tokens.
func TestTokenAudience(t *testing.T) {
	args := workloads(installed(t, "mesh.tokenAudience=mesh"))["warren-controlplane"].Spec.Containers[0].Args
	if !slices.Contains(args, "--token-audience=mesh") {
		t.Errorf("control plane: %q", args)
	}
}

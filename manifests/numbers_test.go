package manifests_test

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/warren-mesh/warren/ca/kubeauth"
	"github.com/warren-mesh/warren/nodeagent"
	"github.com/warren-mesh/warren/nodeagent/install"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/xds/controlplane"
	"github.com/warren-mesh/warren/xds/translate"
)

// agentConfig is what the agent makes of a container's arguments.
func agentConfig(t *testing.T, c corev1.Container) nodeagent.Config {
	t.Helper()
	cmd, rest, err := nodeagent.Command().Find(c.Args)
	if err != nil || cmd.Name() != "run" {
		t.Fatalf("%q: %v", c.Args, err)
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Fatalf("%q: %v", rest, err)
	}
	cfg := nodeagent.Defaults()
	cfg.NodeName = "n" // by the environment
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	cfg.RegisterFlags(fs)
	fs.ParseErrorsAllowlist.UnknownFlags = true // of logs; cmd knows them
	if err := fs.Parse(rest); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Errorf("%q: %v", rest, err)
	}
	return cfg
}

// controlPlaneConfig is the same of the control plane.
func controlPlaneConfig(t *testing.T, c corev1.Container) controlplane.Config {
	t.Helper()
	cfg := controlplane.Defaults()
	fs := pflag.NewFlagSet("controlplane", pflag.ContinueOnError)
	cfg.RegisterFlags(fs)
	fs.String("log-level", "", "the program's own")
	if err := fs.Parse(c.Args); err != nil {
		t.Fatalf("%q: %v", c.Args, err)
	}
	if err := cfg.Validate(); err != nil {
		t.Errorf("%q: %v", c.Args, err)
	}
	return cfg
}

// proxyConfig is the same of the proxy, with its volumes where it finds them: all
// of its paths of secrets are relative to the root of its image.
func proxyConfig(t *testing.T, pod corev1.PodSpec) proxy.Config {
	t.Helper()
	root := t.TempDir()
	c := pod.Containers[0]
	for _, v := range pod.Volumes {
		if v.Projected != nil {
			path := filepath.Join(root, mountOf(t, c, v.Name).MountPath, v.Projected.Sources[0].ServiceAccountToken.Path)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("token"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Chdir(root)
	env := []string{"KUBERNETES_SERVICE_HOST=10.96.0.1"}
	for _, e := range c.Env {
		if e.Value == "" && e.ValueFrom != nil {
			e.Value = "x"
		}
		env = append(env, e.Name+"="+e.Value)
	}
	cfg, err := proxy.FromEnviron(env)
	if err != nil {
		t.Errorf("%q: %v", env, err)
	}
	return cfg
}

func mountOf(t *testing.T, c corev1.Container, volume string) corev1.VolumeMount {
	t.Helper()
	i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == volume })
	if i < 0 {
		t.Fatalf("%s does not mount the volume %s", c.Name, volume)
	}
	return c.VolumeMounts[i]
}

// hostMounts maps paths in a container to those of the node.
func hostMounts(t *testing.T, pod corev1.PodSpec) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			out[mountOf(t, pod.Containers[0], v.Name).MountPath] = v.HostPath.Path
		}
	}
	return out
}

func TestAgentNumbers(t *testing.T) {
	pod := workloads(installed(t))["warren-nodeagent"].Spec
	c := pod.Containers[0]
	cfg, def := agentConfig(t, c), nodeagent.Defaults()
	if !cfg.Kubernetes || cfg.OwnNamespace != "warren-system" || cfg.DaemonSet != "warren-nodeagent" || cfg.OnExit != nodeagent.OnExitAuto {
		t.Errorf("%+v", cfg)
	}
	if def.OwnNamespace != "warren-system" || !strings.HasSuffix(def.MetricsListen, ":15014") || !strings.HasSuffix(def.HealthListen, ":8000") {
		t.Errorf("the agent's own defaults are %+v", def)
	}
	if cfg.MetricsListen != def.MetricsListen || cfg.HealthListen != "127.0.0.1"+def.HealthListen {
		t.Errorf("listens at %s and %s", cfg.MetricsListen, cfg.HealthListen)
	}
	if d := gocmp.Diff([]string{portOf(def.MetricsListen)}, ports(c)); d != "" {
		t.Errorf("ports (-want +got):\n%s", d)
	}
	for path, p := range map[string]*corev1.Probe{"/healthz": c.LivenessProbe, "/readyz": c.ReadinessProbe} {
		if p.HTTPGet.Path != path || p.HTTPGet.Host+":"+p.HTTPGet.Port.String() != cfg.HealthListen {
			t.Errorf("%s is asked at %+v", path, p.HTTPGet)
		}
	}
	mounts := hostMounts(t, pod)
	for _, dir := range []string{def.RunDir, def.StateDir, filepath.Dir(zds.DefaultPath)} { // what plugin and proxy find by the same path
		if mounts[dir] != dir {
			t.Errorf("%s is the node's %q", dir, mounts[dir])
		}
	}
	if cfg.ZDSSocket != zds.DefaultPath || cfg.RunDir != def.RunDir || cfg.StateDir != def.StateDir {
		t.Errorf("%+v", cfg)
	}
	for in, on := range mounts {
		if under, ok := strings.CutPrefix(in, cfg.HostRoot); ok && under != on {
			t.Errorf("%s shows the node's %s", in, on)
		}
	}
	// Where Istio's agent is looked for, which must not be changed.
	if dir := filepath.Dir(nodeagent.IstioSocket); mounts[filepath.Join(cfg.HostRoot, dir)] != dir || !mountOf(t, c, "istio").ReadOnly {
		t.Errorf("%s cannot be looked at: %v", nodeagent.IstioSocket, mounts)
	}
	if m := mountOf(t, c, "netns"); m.MountPropagation == nil || *m.MountPropagation != corev1.MountPropagationHostToContainer {
		t.Error("namespaces that are made later do not show")
	}
}

func portOf(listen string) string { return listen[strings.LastIndex(listen, ":")+1:] }

func ports(c corev1.Container) (list []string) {
	for _, p := range c.Ports {
		list = append(list, fmt.Sprint(p.ContainerPort))
	}
	return list
}

// TestAgentKnowsItsTime: what the agent takes for a clean leave is what kubelet gives it.
func TestAgentKnowsItsTime(t *testing.T) {
	for name, list := range map[string][]object{"as it is": installed(t), "longer": installed(t, "nodeagent.terminationGracePeriodSeconds=300")} {
		pod := workloads(list)["warren-nodeagent"].Spec
		given := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second
		if cfg := agentConfig(t, pod.Containers[0]); cfg.TerminationGracePeriod != given {
			t.Errorf("%s: the agent has %s and takes itself to have %s", name, given, cfg.TerminationGracePeriod)
		}
		if def := nodeagent.Defaults().TerminationGracePeriod; name == "as it is" && given != def {
			t.Errorf("the agent has %s, and %s by its own default", given, def)
		}
	}
}

func TestProxyNumbers(t *testing.T) {
	pod := workloads(installed(t))["ztunnel"].Spec
	c := pod.Containers[0]
	cfg, def := proxyConfig(t, pod), proxy.Defaults()
	if c.Name != "istio-proxy" {
		t.Errorf("istioctl does not find the container %s", c.Name)
	}
	if d := gocmp.Diff([]string{fmt.Sprint(proxy.StatsPort), fmt.Sprint(proxy.ReadyPort), fmt.Sprint(proxy.HBONEPort)}, ports(c)); d != "" {
		t.Errorf("ports (-want +got):\n%s", d)
	}
	readiness := c.Ports[slices.IndexFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == c.ReadinessProbe.HTTPGet.Port.String() })]
	if int(readiness.ContainerPort) != proxy.ReadyPort || c.ReadinessProbe.HTTPGet.Path != "/healthz/ready" || c.LivenessProbe.HTTPGet.Path != "/healthz/live" {
		t.Errorf("%+v", readiness)
	}
	if cfg.ZDSPath != zds.DefaultPath || cfg.ZDSPath != def.ZDSPath || hostMounts(t, pod)[filepath.Dir(cfg.ZDSPath)] != filepath.Dir(zds.DefaultPath) {
		t.Errorf("the agent's socket is looked for at %s", cfg.ZDSPath)
	}
	if cfg.Token.Path == "" {
		t.Error("the token is not where the proxy looks for it")
	}
	if want := filepath.Join("/", def.XDS.RootCA); mountOf(t, c, "root-cert").MountPath != filepath.Dir(want) || cfg.XDS.RootCA != def.XDS.RootCA || filepath.Base(want) != "root-cert.pem" {
		t.Errorf("the root is looked for at %s", want)
	}
	if cfg.ClusterID != def.ClusterID || cfg.TrustDomain != def.TrustDomain || cfg.NodeName == "" || cfg.PodName == "" || cfg.ServiceAccount == "" {
		t.Errorf("%+v", cfg)
	}
	if grace := *pod.TerminationGracePeriodSeconds; int64(cfg.DrainDeadline.Seconds()) >= grace {
		t.Errorf("drains for %s of %d s", cfg.DrainDeadline, grace)
	}
	for _, v := range pod.Volumes {
		if v.Projected != nil {
			if s := v.Projected.Sources[0].ServiceAccountToken; s.Audience != kubeauth.DefaultAudience || *s.ExpirationSeconds != 43200 {
				t.Errorf("%+v", s)
			}
		}
		if v.ConfigMap != nil && v.ConfigMap.Name != controlplane.Defaults().RootConfigMap {
			t.Errorf("the root is that of the ConfigMap %s", v.ConfigMap.Name)
		}
	}
}

func TestControlPlaneNumbers(t *testing.T) {
	list := installed(t)
	pods := workloads(list)
	c := pods["warren-controlplane"].Spec.Containers[0]
	cfg, def := controlPlaneConfig(t, c), controlplane.Defaults()
	if cfg.Listen != def.Listen || cfg.HealthListen != def.HealthListen || cfg.MetricsListen != def.MetricsListen || cfg.PlaintextListen != "" {
		t.Errorf("%+v", cfg)
	}
	if d := gocmp.Diff([]string{portOf(def.Listen), portOf(def.MetricsListen), portOf(def.HealthListen)}, ports(c)); d != "" {
		t.Errorf("ports (-want +got):\n%s", d)
	}
	service := find[*corev1.Service](t, list, "warren-controlplane")
	host := service.Name + "." + service.Namespace + ".svc"
	address := host + ":" + fmt.Sprint(service.Spec.Ports[0].Port)
	px := proxyConfig(t, pods["ztunnel"].Spec)
	if px.XDS.Address != "https://"+address || px.CA.Address != "https://"+address || fmt.Sprint(service.Spec.Ports[0].Port) != portOf(def.Listen) {
		t.Errorf("the proxy asks %s and %s, the service is %s", px.XDS.Address, px.CA.Address, address)
	}
	if !slices.Contains(cfg.Hosts, host) {
		t.Errorf("the serving certificate has %q, not %s", cfg.Hosts, host)
	}
	account := "warren-system/" + pods["ztunnel"].Spec.ServiceAccountName
	if d := gocmp.Diff([]string{account}, cfg.TrustedNodeAccounts); d != "" || !slices.Contains(kubeauth.DefaultTrusted(), account) {
		t.Errorf("trusts (-want +got):\n%s", d)
	}
	if !cfg.Kubernetes || cfg.Namespace != "warren-system" || cfg.ClusterID != px.ClusterID || cfg.TrustDomain != px.TrustDomain || cfg.RootNamespace != def.RootNamespace {
		t.Errorf("%+v", cfg)
	}
	agent := agentConfig(t, pods["warren-nodeagent"].Spec.Containers[0])
	if d := gocmp.Diff(agent.ExcludeNamespaces, cfg.ExcludeNamespaces); d != "" {
		t.Errorf("agent and control plane exclude different namespaces:\n%s", d)
	}
}

// Agent and proxy meet at another socket if they are told to, for a cluster where
// another proxy has the usual one.
func TestSocketDir(t *testing.T) {
	const dir = "/run/warren-proxy"
	pods := workloads(installed(t, "proxy.socketDir="+dir))
	agent, px := pods["warren-nodeagent"].Spec, pods["ztunnel"].Spec
	if a, p := agentConfig(t, agent.Containers[0]).ZDSSocket, proxyConfig(t, px).ZDSPath; a != p || filepath.Dir(p) != dir {
		t.Errorf("the agent waits at %s, the proxy looks for %s", a, p)
	}
	if a, p := hostMounts(t, agent)[dir], hostMounts(t, px)[dir]; a != dir || p != dir {
		t.Errorf("mounted: %q, %q", a, p)
	}
}

// Agent and control plane are told the same of who is in the mesh.
func TestSelectors(t *testing.T) {
	pods := workloads(installed(t, "mesh.enablementSelectors[0].podSelector.matchLabels.mesh=on", "mesh.enablementSelectors[0].namespaceSelector.matchLabels.a=b", "mesh.excludeNamespaces={a,b}"))
	agent := agentConfig(t, pods["warren-nodeagent"].Spec.Containers[0])
	cp := controlPlaneConfig(t, pods["warren-controlplane"].Spec.Containers[0])
	if agent.Selectors == "" || agent.Selectors != cp.Selectors || !slices.Equal(agent.ExcludeNamespaces, []string{"a", "b"}) || !slices.Equal(cp.ExcludeNamespaces, []string{"a", "b"}) {
		t.Errorf("%+v\n%+v", agent, cp)
	}
	if _, err := translate.ParseSelectors(agent.Selectors); err != nil {
		t.Error(err)
	}
}

// What selects pods selects those that it is there for.
func TestSelected(t *testing.T) {
	list := installed(t)
	pods := workloads(list)
	selected := func(s *metav1.LabelSelector) (names []string) {
		sel, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Fatal(err)
		}
		for name, p := range pods {
			if sel.Matches(labels.Set(p.Labels)) {
				names = append(names, name)
			}
		}
		return names
	}
	for _, o := range list {
		var got []string
		switch o := o.Object.(type) {
		case *appsv1.DaemonSet:
			got = selected(o.Spec.Selector)
		case *appsv1.Deployment:
			got = selected(o.Spec.Selector)
		case *networkingv1.NetworkPolicy:
			got = selected(&o.Spec.PodSelector)
		case *policyv1.PodDisruptionBudget:
			got = selected(o.Spec.Selector)
		case *corev1.Service:
			got = selected(&metav1.LabelSelector{MatchLabels: o.Spec.Selector})
		default:
			continue
		}
		if want := o.name[strings.LastIndex(o.name, "/")+1:]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s selects %v", o.name, got)
		}
	}
	for name, p := range pods {
		if p.Labels[translate.LabelDataplaneMode] != "none" || p.Labels["sidecar.istio.io/inject"] != "false" {
			t.Errorf("%s may be in a mesh: %v", name, p.Labels)
		}
	}
	if l := pods["ztunnel"].Labels["app"]; l != "ztunnel" {
		t.Errorf("istioctl does not find the proxy by app=%s", l)
	}
}

// A NetworkPolicy lets in what the program listens on, all of it, whether the chart knows
// of it or not.
func TestNetworkPolicies(t *testing.T) {
	list := installed(t)
	listens := map[string][]string{"ztunnel": {fmt.Sprint(proxy.StatsPort), fmt.Sprint(proxy.ReadyPort), fmt.Sprint(proxy.HBONEPort)}}
	def := controlplane.Defaults()
	for _, addr := range []string{def.Listen, def.HealthListen, def.MetricsListen} {
		listens["warren-controlplane"] = append(listens["warren-controlplane"], addr[strings.LastIndex(addr, ":")+1:])
	}
	for name, pod := range workloads(list) {
		if pod.Spec.HostNetwork {
			continue
		}
		var got []string
		for _, rule := range find[*networkingv1.NetworkPolicy](t, list, name).Spec.Ingress {
			for _, p := range rule.Ports {
				got = append(got, p.Port.String())
			}
		}
		want := listens[name]
		slices.Sort(got)
		slices.Sort(want)
		if d := gocmp.Diff(want, got); d != "" {
			t.Errorf("%s (-listens +let in):\n%s", name, d)
		}
		said := ports(pod.Spec.Containers[0])
		slices.Sort(said)
		if d := gocmp.Diff(want, said); d != "" {
			t.Errorf("%s (-listens +says):\n%s", name, d)
		}
	}
}

// The proxy's own pod is announced as one that takes HBONE when that is asked for.
func TestMetricsByHBONE(t *testing.T) {
	const label = "networking.istio.io/tunnel"
	if l, ok := workloads(installed(t))["ztunnel"].Labels[label]; ok {
		t.Errorf("it is without being asked: %s", l)
	}
	if l := workloads(installed(t, "proxy.metricsByHBONE=true"))["ztunnel"].Labels[label]; l != "http" {
		t.Errorf("%s is %q", label, l)
	}
}

// The chart's table of platforms is the agent's.
func TestPlatforms(t *testing.T) {
	schema := read(t, chart+"/values.schema.json")
	for _, p := range install.Platforms() {
		pod := workloads(installed(t, "platform="+p.Name))["warren-nodeagent"].Spec
		cni := agentConfig(t, pod.Containers[0]).CNI
		if cni.ConfDir != p.CNIConfDir || cni.BinDir != p.CNIBinDir || cni.Chained != p.Chained || cni.KeepBinary != p.KeepBinary {
			t.Errorf("%s: the chart has %+v, the agent %+v", p.Name, cni, p)
		}
		if !strings.Contains(schema, `"`+p.Name+`"`) {
			t.Errorf("the schema does not know the platform %s", p.Name)
		}
	}
}

// What the agent installs into is mounted, under the path that it looks at.
func TestCNI(t *testing.T) {
	for _, tt := range []struct {
		set  string
		want nodeagent.CNIConfig
	}{
		{"platform=default", nodeagent.CNIConfig{ConfDir: "/etc/cni/net.d", BinDir: "/opt/cni/bin", Chained: true}},
		{"platform=k3s nodeagent.cni.confDir=/a/b nodeagent.cni.binDir=/c/d nodeagent.netnsDir=/e/f", nodeagent.CNIConfig{ConfDir: "/a/b", BinDir: "/c/d", Chained: true}},
		{"platform=openshift", nodeagent.CNIConfig{ConfDir: "/etc/kubernetes/cni/net.d", BinDir: "/var/lib/cni/bin", KeepBinary: true}},
		{"platform=openshift nodeagent.cni.chained=true nodeagent.cni.keepBinary=false", nodeagent.CNIConfig{ConfDir: "/etc/kubernetes/cni/net.d", BinDir: "/var/lib/cni/bin", Chained: true}},
		{"nodeagent.cni.chained=false nodeagent.cni.ownConfName=01-x.conflist nodeagent.cni.confName=10-y.conflist nodeagent.cni.withoutAgent=allow nodeagent.cni.logLevel=debug",
			nodeagent.CNIConfig{ConfDir: "/etc/cni/net.d", BinDir: "/opt/cni/bin", OwnConfName: "01-x.conflist", ConfName: "10-y.conflist", WithoutAgent: "allow", LogLevel: "debug"}},
	} {
		pod := workloads(installed(t, strings.Fields(tt.set)...))["warren-nodeagent"].Spec
		cfg, def := agentConfig(t, pod.Containers[0]), nodeagent.Defaults().CNI
		want := tt.want
		want.Plugin, want.OwnConfName = def.Plugin, cmp.Or(want.OwnConfName, def.OwnConfName)
		want.WithoutAgent, want.LogLevel = cmp.Or(want.WithoutAgent, def.WithoutAgent), cmp.Or(want.LogLevel, def.LogLevel)
		if d := gocmp.Diff(want, cfg.CNI); d != "" || !cfg.InstallCNI {
			t.Errorf("%s (-want +got):\n%s", tt.set, d)
		}
		for _, dir := range []string{want.ConfDir, want.BinDir} {
			if m := hostMounts(t, pod); m[cfg.HostRoot+dir] != dir {
				t.Errorf("%s: %s is not mounted: %v", tt.set, dir, m)
			}
		}
	}
	// The plugin is in the image where the agent takes it from.
	if plugin := nodeagent.Defaults().CNI.Plugin; !strings.Contains(read(t, "tools/images/images.go"), `"`+strings.TrimPrefix(plugin, "/")+`"`) {
		t.Errorf("no image has %s", plugin)
	}
	pod := workloads(installed(t, "nodeagent.cni.install=false"))["warren-nodeagent"].Spec
	if m := hostMounts(t, pod); agentConfig(t, pod.Containers[0]).InstallCNI || m["/host/etc/cni/net.d"] != "" {
		t.Errorf("installs nevertheless: %v", m)
	}
	for set, dir := range map[string]string{"platform=minikube": "/var/run/docker/netns", "platform=k3s": "/var/run/netns", "nodeagent.netnsDir=/e/f": "/e/f"} {
		if m := hostMounts(t, workloads(installed(t, set))["warren-nodeagent"].Spec); m["/host"+dir] != dir {
			t.Errorf("%s: %s is not mounted: %v", set, dir, m)
		}
	}
}

// Images are called what `make images` calls them.
func TestImages(t *testing.T) {
	source := read(t, "tools/images/images.go")
	for name, pod := range workloads(installed(t, "image.registry=r.example/x", "image.tag=v1")) {
		image, ok := strings.CutSuffix(strings.TrimPrefix(pod.Spec.Containers[0].Image, "r.example/x/"), ":v1")
		if !ok || !strings.Contains(source, `Name: "`+image+`"`) {
			t.Errorf("%s: no image is called %s", name, pod.Spec.Containers[0].Image)
		}
	}
}

// The dashboard asks for metrics that there are.
func TestDashboard(t *testing.T) {
	list := installed(t, "dashboard.enabled=true")
	text := find[*corev1.ConfigMap](t, list, "warren-dashboard").Data["warren.json"]
	words := regexp.MustCompile(`\b(istio|warren|ztunnel|nodeagent|citadel)_[a-z_]+`).FindAllString(text, -1)
	if len(words) < 10 {
		t.Fatalf("only %q", words)
	}
	for _, w := range words {
		w = strings.TrimSuffix(w, "_bucket")
		if w != "warren_json" && !sourcesContain(t, "proxy", `"`+w+`"`) && !sourcesContain(t, "nodeagent", `"`+w+`"`) && !sourcesContain(t, "xds", `"`+w+`"`) {
			t.Errorf("nothing counts %s", w)
		}
	}
}

// Pods that Prometheus is pointed at by annotation say where to look.
func TestMetricsPaths(t *testing.T) {
	for name, pod := range workloads(installed(t)) {
		a := pod.Annotations
		if a["prometheus.io/scrape"] != "true" || !slices.Contains(ports(pod.Spec.Containers[0]), a["prometheus.io/port"]) || !strings.HasPrefix(a["prometheus.io/path"], "/") {
			t.Errorf("%s: %v", name, a)
		}
	}
}

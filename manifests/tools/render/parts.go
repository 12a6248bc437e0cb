package render

// Part is a kustomize folder that is made of the chart.
type Part struct {
	Dir        string // below the kustomize folder
	About      string
	Component  bool
	Namespace  string   // of the release; empty: warren-system
	Profile    string   // of the chart's profiles; empty: none
	Set        []string // values
	Resources  []string // folders that it builds on
	Components []string
	Files      []string // templates whose objects it adds
	Replace    []string // templates whose objects take the place of those it builds on
}

// Parts are all kustomize folders but overlays/kind.
func Parts() []Part {
	const node, proxy = "nodeagent.yaml", "proxy.yaml"
	part := func(dir, about string) Part { return Part{Dir: dir, About: about, Component: true} }
	platform := func(name, about string) Part {
		return Part{Dir: "overlays/" + name, About: about, Profile: name, Resources: []string{"../../base"}, Replace: []string{node}}
	}
	base := Part{
		Dir: "base", About: "Everything, as the chart installs it without any values.", Set: []string{"namespace.create=true"},
		Files: []string{
			"namespace.yaml", node, "nodeagent-rbac.yaml", "nodeagent-admission.yaml", proxy,
			"controlplane.yaml", "controlplane-rbac.yaml", "networkpolicies.yaml",
		},
	}
	monitors := part("components/podmonitors", "For clusters with the Prometheus operator.")
	monitors.Set, monitors.Files = []string{"podMonitors.enabled=true"}, []string{"podmonitors.yaml"}
	dashboard := part("components/dashboard", "For a Grafana that takes dashboards from ConfigMaps.")
	dashboard.Set, dashboard.Files = []string{"dashboard.enabled=true"}, []string{"dashboard.yaml"}
	quota := part("components/resourcequota", "For clusters that admit the priority system-node-critical by quota only.")
	quota.Set, quota.Files = []string{"resourceQuota.enabled=true"}, []string{"resourcequota.yaml"}
	constraints := part("components/openshift", "The right of each pod to be what it is, on OpenShift.")
	constraints.Set, constraints.Files = []string{"openshift.enabled=true"}, []string{"openshift.yaml"}

	gke := platform("gke", "Google's Kubernetes Engine.")
	gke.Components = []string{"../../components/resourcequota"}
	openshift := platform("openshift", "OpenShift.")
	openshift.Components, openshift.Replace = []string{"../../components/openshift"}, []string{node, proxy}
	return []Part{
		base, monitors, dashboard, quota, constraints,
		{
			Dir: "overlays/istio", About: "Agent and proxy next to an istiod, in its namespace.", Namespace: "istio-system", Profile: "istio",
			Files: []string{node, "nodeagent-rbac.yaml", "nodeagent-admission.yaml", proxy, "networkpolicies.yaml"},
		},
		{Dir: "overlays/default", About: "kubeadm, EKS, AKS, RKE2, k0s and others whose folders are the usual ones.", Resources: []string{"../../base"}},
		gke, openshift,
		platform("k3s", "K3s."), platform("k3d", "K3s in docker."), platform("microk8s", "MicroK8s."), platform("minikube", "minikube, with docker for a runtime."),
	}
}

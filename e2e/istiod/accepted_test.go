//go:build istiod

package istiod

// difference is one that is meant to be there.
type difference struct {
	line      string // matches whole lines of a comparison
	why       string
	sometimes bool // it depends on when objects were made
}

// accepted are the differences between what Warren's control plane and istiod tell a
// proxy about the same objects. A test that no longer sees one fails: it is to be taken
// out then.
var accepted = []difference{
	{line: `workload Kubernetes//Pod/app/unlabelled: workload\.authorizationPolicies here nothing, at istiod \["app/a-selector","app/dry","app/other-labels","app/z-selector","istio-system/root-selector"\]`,
		why: "istiod attaches every policy with a selector to what has no labels: a bug"},
	{line: `workload Kubernetes/networking\.istio\.io/(ServiceEntry/app/(both-ways/10\.0\.3\.1|dns/[ab]\.example\.org)|WorkloadEntry/app/odd): workload\.authorizationPolicies here nothing, at istiod \["app/for-entries","app/for-vms"\]`,
		why: "istiod attaches every policy with a selector to what has no labels, and to ServiceEntries' endpoints by the labels of the ServiceEntry: a bug"},
	{line: `workload Kubernetes//Pod/app/host: aliases here \[\], at istiod \["net1/192\.168\.0\.1"\]`,
		why: "a pod on the host's network is not found by the node's address, which is not its own"},
	{line: `policy app/whole: scope here "NAMESPACE", at istiod "WORKLOAD_SELECTOR"`,
		why: "an empty selector selects the whole namespace, as in all of Kubernetes; sent as a selector's it depends on the list of each workload"},
	{line: `service a/twice\.example: (service\.addresses here \[\{"address":"(CgIABA=="\}\], at istiod \[\{"address":"CgIAAw|CgIAAw=="\}\], at istiod \[\{"address":"CgIABA)=="\}\]|service\.name here ("zz-old", at istiod "young"|"young", at istiod "zz-old")|aliases here \["/10\.2\.0\.[34]"\], at istiod \["/10\.2\.0\.[34]"\])`, sometimes: true,
		why: "of two ServiceEntries of one age the first by name counts here; at istiod the order in which they came"},
	{line: `workload Kubernetes/networking\.istio\.io/ServiceEntry/a/(young|zz-old)/twice\.example: only (here|at istiod)`, sometimes: true,
		why: "as above"},
	{line: `service (b/twice|app/(\*\.pass|private))\.example: service\.visibility here "NAMESPACE", at istiod nothing`,
		why: "exportTo is honoured here; istiod has only the mesh's setting for it"},
	{line: `service app/(\*\.pass|private)\.example: service\.canonical here nothing, at istiod true`,
		why: "who may not be seen from elsewhere does not stand for a hostname there"},
	{line: `service [abc]/(twice|young)\.example: service\.canonical here (true, at istiod nothing|nothing, at istiod true)`, sometimes: true,
		why: "as above: of those that may be seen the oldest counts, and of one age the first by name or the one that came first"},
	{line: `service (c/young|app/hidden)\.example: only at istiod`,
		why: "exportTo ~ is nobody"},
	{line: `service (c/(|\*x\.y|-a\.b|a\.\*\.b|a\.\.b|a/b|ünïcode\.example)|app/\*): only at istiod`,
		why: "not hostnames: proxies could not look them up, and a name with a slash could not be removed; Istio's own webhook refuses them"},
	{line: `workload Kubernetes/networking\.istio\.io/ServiceEntry/app/dns/\*(\.example\.org)?: only at istiod`,
		why: "a wildcard cannot be resolved, so nothing can be behind it"},
	{line: `service app/(also|inline)\.example\.com: only here`,
		why: "for one part that is wrong istiod leaves out the whole ServiceEntry; here only that part"},
	{line: `workload Kubernetes/networking\.istio\.io/ServiceEntry/app/inline/\S+: only here`,
		why: "as above"},
	{line: `workload Kubernetes(//Pod/app/pod|/networking\.istio\.io/WorkloadEntry/app/vm): workload\.services\.app/both\.example here nothing, at istiod \{"ports":\[\{"servicePort":80,"targetPort":(8088|8000)\}\]\}`,
		why: "a ServiceEntry has endpoints or a selector; of one with both, which Istio's webhook refuses, the endpoints count"},
	{line: `workload Kubernetes/networking\.istio\.io/WorkloadEntry/app/nowhere: only at istiod`,
		why: "without an address, a hostname or a network that has a gateway it cannot be reached"},

	{line: `workload Kubernetes/networking\.istio\.io/ServiceEntry/app/mixed/10\.0\.1\.2: (aliases here \["here/10\.0\.1\.2"\], at istiod \["there/10\.0\.1\.2"\]|workload\.network( here "here", at istiod "there"|Gateway here nothing, at istiod \{"address":\{"address":"wAACCQ==","network":"there"\},"hboneMtlsPort":15008\}))`,
		why: "istiod lets the network of one endpoint leak to those after it: a bug"},
	{line: `workload Kubernetes/networking\.istio\.io/WorkloadEntry/app/third: workload\.networkGateway here \{"address":\{"address":"wAACAw==","network":"third"\},"hboneMtlsPort":15008\}, at istiod nothing`,
		why: "a gateway of class istio-east-west that is labelled with another network leads to that network as well"},
	{line: `workload NetworkGateway/(third/192\.0\.2\.3/15008|there/fd00::9/15018): only here`,
		why: "as above; and every gateway of a network is known, not the first alone"},
	{line: `workload Kubernetes/networking\.istio\.io/WorkloadEntry/app/vm: workload\.networkGateway\.(address here \{"address":"wAACAQ==","network":"n2"\}, at istiod nothing|hostname here nothing, at istiod \{"hostname":"GW\.example\.com","namespace":"istio-system"\})`,
		why: "of several addresses of a gateway the first counts here, an IP rather than a name that has to be resolved"},
	{line: `workload NetworkGateway/n2/(192\.0\.2\.1/15009: only here|GW\.example\.com/15009: only at istiod|gw\.example\.com/15009: only here)`,
		why: "hostnames are in lower case here, and each address of a gateway is known"},
	{line: `service app/canary\.app\.svc\.cluster\.local: service\.weightedWaypoints here \[\{"destination":\{"hboneMtlsPort":15008,"hostname":\{"hostname":"wp\.app\.svc\.cluster\.local","namespace":"app"\}\},"weight":80\},\{"destination":\{"address":\{"address":"CgEJAg=="\},"hboneMtlsPort":15020\},"weight":20\}\], at istiod \[\{"destination":\{"hboneMtlsPort":15008,"hostname":\{"hostname":"wp\.app\.svc\.cluster\.local","namespace":"app"\}\},"weight":80\},\{"destination":\{"address":\{"address":"CgEJAg=="\},"hboneMtlsPort":15008\},"weight":20\}\]`,
		why: "of a gateway's addresses the first that is one counts, with its listener's port; istiod sends a waypoint that is nowhere, which proxies refuse"},
	{line: `service app/private\.example: service\.(waypoint here nothing, at istiod \{"hboneMtlsPort":15008,"hostname":\{"hostname":"shared\.infra\.svc\.cluster\.local","namespace":"infra"\}\}|ingressUseWaypoint here nothing, at istiod true)`,
		why: "a waypoint in another namespace could not see what is private to this one"},
	{line: `workload Kubernetes/networking\.istio\.io/ServiceEntry/app/private/10\.3\.0\.1: workload\.waypoint\.hboneMtlsPort here 15020, at istiod 15008`,
		why: "the port of the Gateway's HBONE listener counts; istiod says 15008 of every waypoint"},
	{line: `workload Kubernetes//Pod/app/is-a-managed-waypoint: workload\.waypoint here nothing, at istiod \{"address":\{"address":"CgEJAg=="\},"hboneMtlsPort":15008\}`,
		why: "a pod that says it is a waypoint has none before it, or connections went in a circle; istiod goes by the label with the Gateway's name alone, which pods of its own have as well"},

	{line: `workload Kubernetes/networking\.istio\.io/WorkloadEntry/app/vm: workload\.status here "UNHEALTHY", at istiod nothing`,
		why: "what says of itself that it is not healthy is not; istiod does not look at a WorkloadEntry's status"},
	{line: `service app/web\.app\.svc\.cluster\.local: service\.ports here \[\{"servicePort":53,"targetPort":53\},(\S+)\], at istiod \[(\S+),\{"servicePort":53,"targetPort":5353\},\{"appProtocol":"TCP","servicePort":53,"targetPort":53\}\]`,
		why: "of two ports of one number TCP's is told, as nothing else is carried; istiod tells both. And a port is no protocol: istiod takes 25, 53, 3306 and 27017 for TCP whatever they are called, which no proxy reads"},
	{line: `workload Kubernetes//Pod/app/web: workload\.services\.app/web\.app\.svc\.cluster\.local\.ports here \[\{"servicePort":53,"targetPort":53\},(\S+)\], at istiod \[(\S+),\{"servicePort":53,"targetPort":5353\},\{"servicePort":53,"targetPort":53\}\]`,
		why: "as above"},
	{line: `workload Kubernetes//Pod/app/web: workload\.services\.app/near\.app\.svc\.cluster\.local here \{"ports":\[\{"servicePort":80,"targetPort":8888\}\]\}, at istiod nothing`,
		why: "an EndpointSlice names a pod, with its UID or, written by hand, without"},
	{line: `workload Kubernetes/discovery\.k8s\.io/EndpointSlice/app/near-1/203\.0\.113\.[13]: workload\.workloadType here "POD", at istiod nothing`,
		why: "nothing reads as DEPLOYMENT, and there is none"},
	{line: `workload Kubernetes/discovery\.k8s\.io/EndpointSlice/app/near-1/203\.0\.113\.[13]: aliases here \[\], at istiod \["/203\.0\.113\.\d"( "/203\.0\.113\.2")?\]`,
		why: "addresses that others may share do not stand for it: proxies do not look for a workload by them"},

	{line: `policy (none|unset)/converted_peer_authentication_(open-port-strict|port-open): only here`,
		why: "where the mesh is strict istiod names a policy that it does not make, so that its proxies are open: a bug"},
	{line: `workload Kubernetes//Pod/none/port-disabled: workload\.authorizationPolicies here \["none/converted_peer_authentication_port-disabled"\], at istiod \["istio-system/istio_converted_static_strict"\]`,
		why: "DISABLE for a port lets plaintext in, as it does in a namespace that is strict; istiod forgets it where the mesh is"},
	{line: `workload Kubernetes//Pod/app/gateway: workload\.authorizationPolicies here \["istio-system/istio_converted_static_strict"\], at istiod nothing`,
		why: "an empty selector in the namespace of the mesh is the whole mesh, as without one; istiod ignores such an object"},
	{line: `workload Kubernetes//Pod/istio-system/gateway: workload\.authorizationPolicies here nothing, at istiod \["istio-system/istio_converted_static_strict"\]`,
		why: "a selector selects in the namespace of the mesh as in every other; istiod ignores it there"},

	{line: `policy app/deny-(path|header|token): groups here \[\{\}\], at istiod \[\{"rules":\[\{"matches":\[\{\}\]\}\]\}\]`,
		why: "what a proxy at layer 4 cannot check is left out of a DENY rule, so that it denies more; istiod has a match that never holds there, so that nothing is denied"},
	{line: `policy app/deny-(port-or-path|token-or-namespace): groups here \[\{\}\], at istiod \[\{"rules":\[\{"matches":\[(\{"destinationPorts":\[80\]\},\{\}|\{\},\{"namespaces":\[\{"exact":"a"\}\]\})\]\}\]\}\]`,
		why: "as above: one alternative of which nothing is left stands for all"},
	{line: `policy app/deny-client-to-path: groups here \[\{"rules":\[\{"matches":\[\{"principals":\[\{"exact":"cluster\.local/ns/a/sa/b"\}\]\}\]\}\]\}\], at istiod \[\{"rules":\[\{"matches":\[\{\}\]\},\{"matches":\[\{"principals":\[\{"exact":"cluster\.local/ns/a/sa/b"\}\]\}\]\}\]\}\]`,
		why: "as above: the client is denied everything rather than nothing"},
	{line: `policy app/deny-account: groups here \[\{"rules":\[\{"matches":\[\{"serviceAccounts":\[\{"namespace":"a","serviceAccount":"b"\}\]\}\]\},\{"matches":\[\{"notServiceAccounts":\[\{"namespace":"a","serviceAccount":"c"\}\]\}\]\}\]\}\], at istiod \[\{"rules":\[\{"matches":\[\{\}\]\}\]\}\]`,
		why: "proxies know service accounts, whether a rule names them in its source or in a condition; istiod takes the condition for layer 7's"},
	{line: `policy app/allow-account: groups here \[\{"rules":\[\{"matches":\[\{"serviceAccounts":\[\{"namespace":"a","serviceAccount":"b"\}\]\}\]\}\]\}\], at istiod nothing`,
		why: "as above"},
	{line: `policy app/deny-(port-wrong|block-wrong): groups here \[\{\}\], at istiod \[\{"rules":\[\{"matches":\[(\{"destinationPorts":\[80\]\}|\{"sourceIps":\[\{"address":"CgAAAA==","length":8\}\]\})\]\}\]\}\]`,
		why: "a value that is not understood makes a DENY rule deny more; istiod leaves out the value, so that it denies less"},
	{line: `policy app/allow-(port-wrong|block-wrong): groups here nothing, at istiod \[\{"rules":\[\{"matches":\[(\{"destinationPorts":\[80\]\}|\{"sourceIps":\[\{"address":"CgAAAA==","length":8\}\]\})\]\}\]\}\]`,
		why: "a rule with a value that is not understood allows nobody, and is reported; istiod leaves out the value, without a word"},
	{line: `policy app/deny-uri: groups here \[\{"rules":\[\{"matches":\[\{"principals":\[\{"exact":"cluster\.local/ns/a/sa/b"\}\]\}\]\}\]\}\], at istiod \[\{"rules":\[\{"matches":\[\{"principals":\[\{"exact":"spiffe://cluster\.local/ns/a/sa/b"\}\]\}\]\}\]\}\]`,
		why: "principals are written without spiffe://; a DENY rule denies whom it means, at istiod nobody"},
	{line: `policy app/deny-(not-uri|middle): groups here \[\{\}\], at istiod \[\{"rules":\[\{"matches":\[(\{"notPrincipals":\[\{"exact":"spiffe://cluster\.local/ns/a/sa/b"\}\]\}|\{"principals":\[\{"suffix":"x\*"\}\]\})\]\}\]\}\]`,
		why: "as above: what cannot match is not understood, and left out"},
	{line: `policy app/allow-(uri|middle): groups here nothing, at istiod \[\{"rules":\[\{"matches":\[(\{"principals":\[\{"exact":"spiffe://cluster\.local/ns/a/sa/b"\}\]\}|\{"principals":\[\{"suffix":"x\*"\}\]\})\]\}\]\}\]`,
		why: "as above: it allows nobody in either, and is reported here"},

	{line: `service app/chosen\.app\.svc\.cluster\.local: service\.ports here \[\{"servicePort":80,"targetPort":8080\},\{"appProtocol":"HTTP11","servicePort":81,"targetPort":81\},\{"servicePort":3306,"targetPort":3306\}\], at istiod \[\{"servicePort":80,"targetPort":8080\},\{"appProtocol":"TCP","servicePort":3306,"targetPort":3306\},\{"servicePort":81,"targetPort":81\}\]`,
		why: "http_proxy is HTTP, and a port is no protocol"},
	{line: `workload Kubernetes//Pod/app/web: workload\.services\.app/chosen\.app\.svc\.cluster\.local\.ports here \[\{"servicePort":80,"targetPort":8888\}\], at istiod \[\{"servicePort":80,"targetPort":8080\},\{"servicePort":3306,"targetPort":3306\},\{"servicePort":81,"targetPort":81\}\]`,
		why: "where a Service selects nothing its EndpointSlice says which ports its endpoints have, also of a pod, as for everybody else who reads one"},
	{line: `workload Kubernetes//Pod/app/web: workload\.services\.other/borrowed\.other\.svc\.cluster\.local here nothing, at istiod \{"ports":\[\{"servicePort":80,"targetPort":8080\}\]\}`,
		why: "an EndpointSlice does not make another namespace's pod an endpoint: who may write one there would speak for that pod's owners"},
}

// refused are objects of xds/translate's tests that an API server does not take, or of which
// it takes no status: they exist in folders of files alone.
var refused = map[string]string{
	"Pod app/native":           "a label has no comma; pod app/tunnels says the same without",
	"Pod app/odd-address":      "not an IP address",
	"Pod app/twice":            "two addresses of one family",
	"EndpointSlice app/near-2": "not IP addresses",
}

//go:build istiod

package istiod

// acceptedNetworks are the differences where istiod knows another cluster, of network n2,
// and both are told of a third network by the objects of network n1.
var acceptedNetworks = []difference{
	{line: `workload NetworkGateway/n2/10\.244\.2\.\d+/0: only at istiod`,
		why: "ours knows one cluster, so that what is in another has to be declared in it: the gateway by one of class istio-remote, as that of n3 is"},
	{line: `workload n2/SplitHorizonWorkload/app/edge-of-n2/10\.244\.2\.\d+/app/shared\.app\.svc\.cluster\.local: only at istiod`,
		why: "as above: the workloads by WorkloadEntries"},
	{line: `service app/shared\.app\.svc\.cluster\.local: (service\.addresses here \[\{"address":"CmAUAQ==","network":"n1"\}\], at istiod \[\{"address":"CmAUAQ==","network":"n1"\},\{"address":"CmAUAg==","network":"n2"\}\]|aliases here \["n1/10\.96\.20\.1"\], at istiod \["n1/10\.96\.20\.1" "n2/10\.96\.20\.2"\])`,
		why: "as above: a service's address in another network is nothing that a client of this one uses"},
	{line: `service app/shared\.app\.svc\.cluster\.local: service\.subjectAltNames here nothing, at istiod \["spiffe://cluster\.local/ns/app/sa/shared-[23]","spiffe://cluster\.local/ns/app/sa/shared-[23]"\]`,
		why: "as above"},
	{line: `service app/third\.app\.svc\.cluster\.local: service\.subjectAltNames here nothing, at istiod \["spiffe://cluster\.local/ns/app/sa/third-[12]","spiffe://cluster\.local/ns/app/sa/third-[12]"\]`,
		why: "istiod has one workload stand for all of a network, so that it has to say there whose they may be; ours tells each with its own account"},
	{line: `workload c1/networking\.istio\.io/WorkloadEntry/app/third-[12]: only here`,
		why: "as above"},
	{line: `workload n3/SplitHorizonWorkload/app/edge-of-n3/192\.0\.2\.3/app/third\.app\.svc\.cluster\.local: only at istiod`,
		why: "as above"},
	{line: `workload c1/networking\.istio\.io/WorkloadEntry/app/own-1: only here`,
		why: "istiod leaves out what is in another network and behind no global service, where ours goes by the WorkloadEntry alone: it says that it is an endpoint"},
	{line: `service app/web\.app\.svc\.cluster\.local: service\.ports here \[(\S+),(\{"servicePort":84,"targetPort":18084\}),(\S+)\], at istiod \[\S+,\{"appProtocol":"TCP","servicePort":9090,"targetPort":19090\},\{"servicePort":84,"targetPort":18084\}\]`,
		why: "the order of ports says nothing"},
	{line: `workload c1//Pod/app/(second|server): workload\.services\.app/web\.app\.svc\.cluster\.local\.ports here \[(\S+),\{"servicePort":84,"targetPort":18084\},(\S+)\], at istiod \[\S+,\{"servicePort":9090,"targetPort":19090\},\{"servicePort":84,"targetPort":18084\}\]`,
		why: "as above"},
}

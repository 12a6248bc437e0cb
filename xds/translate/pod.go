package translate

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"istio.io/istio/pkg/workloadapi"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	redirectionEnabled = "enabled"
	labelTunnel        = "networking.istio.io/tunnel"
	tunnelHTTP         = "http"
	labelNetwork       = "topology.istio.io/network"
	labelSubzone       = "topology.istio.io/subzone"
	latestRevision     = "latest"
)

// workload translates a pod; nil is one that has finished or has no address yet.
func (b *builder) workload(pod *corev1.Pod) *workloadapi.Workload {
	if finished(pod) {
		return nil
	}
	report := b.reporter("Pod", pod.Namespace, pod.Name)
	addresses := podAddresses(pod, report)
	if len(addresses) == 0 {
		return nil
	}
	w := &workloadapi.Workload{
		Uid:                   b.opts.ClusterID + "//Pod/" + pod.Namespace + "/" + pod.Name,
		Name:                  pod.Name,
		Namespace:             pod.Namespace,
		Addresses:             addresses,
		Network:               b.network,
		TrustDomain:           b.trustDomain(),
		ServiceAccount:        serviceAccountOf(pod),
		Node:                  pod.Spec.NodeName,
		WorkloadType:          workloadapi.WorkloadType_POD,
		WorkloadName:          workloadName(pod),
		ClusterId:             b.opts.ClusterID,
		Locality:              b.locality(pod.Spec.NodeName),
		Services:              b.podServices(pod),
		AuthorizationPolicies: b.podPolicies(pod),
	}
	w.CanonicalName, w.CanonicalRevision = canonical(pod.Labels, w.WorkloadName)
	if pod.DeletionTimestamp != nil || !ready(pod) {
		w.Status = workloadapi.WorkloadStatus_UNHEALTHY
	}
	if pod.Spec.HostNetwork {
		w.NetworkMode = workloadapi.NetworkMode_HOST_NETWORK
	}
	if b.redirected(pod) {
		w.TunnelProtocol = workloadapi.TunnelProtocol_HBONE
	}
	if slices.Contains(strings.Split(pod.Labels[labelTunnel], ","), tunnelHTTP) {
		w.TunnelProtocol, w.NativeTunnel = workloadapi.TunnelProtocol_HBONE, true
	}
	return w
}

func serviceAccountOf(pod *corev1.Pod) string { return orElse(pod.Spec.ServiceAccountName, "default") }

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// redirected says whether a pod's traffic is in the hands of a proxy.
func (b *builder) redirected(pod *corev1.Pod) bool {
	if b.opts.AssumeRedirected {
		return Eligible(pod, b.namespaces[pod.Namespace], b.opts.Selectors).InMesh
	}
	return pod.Annotations[AnnotationRedirection] == redirectionEnabled
}

// podPolicies lists the policies that name the pod: those that select it, then the one
// that makes mTLS strict. Policies for a namespace or the mesh are not listed: proxies
// apply them by their scope.
func (b *builder) podPolicies(pod *corev1.Pod) []string {
	names := b.policies.selecting(pod)
	if strict := b.peers.policyFor(pod); strict != "" {
		names = append(names, strict)
	}
	return names
}

func podAddresses(pod *corev1.Pod, report reporter) [][]byte {
	texts := make([]string, 0, len(pod.Status.PodIPs))
	for _, ip := range pod.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	if len(texts) == 0 && pod.Status.PodIP != "" {
		texts = append(texts, pod.Status.PodIP)
	}
	var out [][]byte
	for i, text := range texts {
		a, err := address(text)
		if err != nil {
			report(fmt.Sprintf("status.podIPs[%d]", i), err.Error())
			continue
		}
		out = append(out, a)
	}
	return out
}

// address returns the 4 or 16 bytes of an address.
func address(text string) ([]byte, error) {
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" || ip.IsUnspecified() {
		return nil, fmt.Errorf("%q is not an IP address: left out", text)
	}
	return ip.Unmap().AsSlice(), nil
}

func ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// cronJobName is the name of a Job that a CronJob made, which ends with its time.
var cronJobName = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// workloadName is the name of what the pod is one of: the Deployment behind its
// ReplicaSet, the CronJob behind its Job, or its owner. A pod that was named by hand is
// one of a kind.
func workloadName(pod *corev1.Pod) string {
	owner := metav1.GetControllerOfNoCopy(pod)
	if pod.GenerateName == "" || owner == nil || owner.Name == "" {
		return pod.Name
	}
	switch owner.Kind {
	case "ReplicaSet":
		for _, label := range []string{"pod-template-hash", "rollouts-pod-template-hash"} {
			if hash := pod.Labels[label]; hash != "" && strings.HasSuffix(owner.Name, "-"+hash) {
				return strings.TrimSuffix(owner.Name, "-"+hash)
			}
		}
	case "ReplicationController":
		return orElse(pod.Labels["deploymentconfig"], owner.Name)
	case "Job":
		if m := cronJobName.FindStringSubmatch(owner.Name); m != nil {
			return m[1]
		}
	}
	return owner.Name
}

// canonical names the service that a pod is part of, and its revision, for telemetry.
func canonical(labels map[string]string, workload string) (name, revision string) {
	return firstOf(labels, workload, "service.istio.io/canonical-name", "app.kubernetes.io/name", "app"),
		firstOf(labels, latestRevision, "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
}

func firstOf(labels map[string]string, otherwise string, keys ...string) string {
	for _, k := range keys {
		if v := labels[k]; v != "" {
			return v
		}
	}
	return otherwise
}

// locality is where a node is, as its labels say; nil when they say nothing.
func (b *builder) locality(node string) *workloadapi.Locality {
	n := b.nodes[node]
	if n == nil {
		return nil
	}
	l := &workloadapi.Locality{
		Region:  n.Labels[corev1.LabelTopologyRegion],
		Zone:    n.Labels[corev1.LabelTopologyZone],
		Subzone: n.Labels[labelSubzone],
	}
	if l.Region == "" && l.Zone == "" && l.Subzone == "" {
		return nil
	}
	return l
}

// trustDomain is left out of the protocol when it is the usual one.
func (b *builder) trustDomain() string {
	if b.opts.TrustDomain == defaultTrustDomain {
		return ""
	}
	return b.opts.TrustDomain
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

package translate

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/xds/workload"
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
func (b *builder) workload(pod *corev1.Pod) *workload.Workload {
	if finished(pod) {
		return nil
	}
	addresses := podAddresses(pod, b.reporter("Pod", pod.Namespace, pod.Name))
	if len(addresses) == 0 {
		return nil
	}
	w := &workload.Workload{
		UID:            b.opts.ClusterID + "//Pod/" + pod.Namespace + "/" + pod.Name,
		Name:           pod.Name,
		Namespace:      pod.Namespace,
		Addresses:      addresses,
		Network:        b.network,
		TrustDomain:    b.opts.TrustDomain,
		ServiceAccount: serviceAccountOf(pod),
		Node:           pod.Spec.NodeName,
		ClusterID:      b.opts.ClusterID,
		Locality:       b.locality(pod.Spec.NodeName),
		Type:           workload.Pod,
		WorkloadName:   workloadName(pod),
		Services:       b.podServices(pod),
		Policies:       b.policiesFor(pod.Namespace, pod.Labels),
		NetworkGateway: b.gateways[b.network],
	}
	w.Waypoint, w.ApplicationTunnel = b.workloadWaypoint("Pod", &pod.ObjectMeta)
	w.CanonicalName, w.CanonicalRevision = canonical(pod.Labels, w.WorkloadName)
	if pod.DeletionTimestamp != nil || !ready(pod) {
		w.Status = workload.Unhealthy
	}
	if pod.Spec.HostNetwork {
		w.NetworkMode = workload.HostNetwork
	}
	if b.redirected(pod) {
		w.Protocol = workload.HBONE
	}
	if tunnels(pod.Labels) {
		w.Protocol, w.NativeTunnel = workload.HBONE, true
	}
	return w
}

// tunnels reports whether something takes HBONE by itself.
func tunnels(labels map[string]string) bool {
	return slices.Contains(strings.Split(labels[labelTunnel], ","), tunnelHTTP)
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

// policiesFor lists the policies that name a workload: those that select it, then the one
// that makes mTLS strict. Policies for a namespace or the mesh are not listed: proxies
// apply them by their scope.
func (b *builder) policiesFor(namespace string, labels map[string]string) []string {
	names := b.policies.selecting(namespace, labels)
	if strict := b.peers.policyFor(namespace, labels); strict != "" {
		names = append(names, strict)
	}
	return names
}

func podAddresses(pod *corev1.Pod, report reporter) []netip.Addr {
	texts := make([]string, 0, len(pod.Status.PodIPs))
	for _, ip := range pod.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	if len(texts) == 0 && pod.Status.PodIP != "" {
		texts = append(texts, pod.Status.PodIP)
	}
	var out []netip.Addr
	for i, text := range texts {
		a, err := address(text)
		if err != nil {
			report(fmt.Sprintf("status.podIPs[%d]", i), err.Error())
			continue
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// ownAddresses tells of an address that two pods have, both of them ready: while one goes
// and the other comes that is usual, and else a mistake, or somebody's lie.
func (b *builder) ownAddresses(w *workload.Workload) {
	if w.Status != workload.Healthy || w.NetworkMode == workload.HostNetwork {
		return
	}
	shared := func(w, with *workload.Workload, a netip.Addr) {
		b.reporter("Pod", w.Namespace, w.Name)("status.podIPs", fmt.Sprintf("%s is also that of pod %s: what is sent there fails, unless it reaches the one whose identity is expected", a, objectName(with.Namespace, with.Name)))
	}
	for _, a := range w.Addresses {
		if other := b.owners[a]; other != nil {
			shared(w, other, a)
			shared(other, w, a)
			continue
		}
		b.owners[a] = w
	}
}

// address reads an address that something can be reached at.
func address(text string) (netip.Addr, error) {
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" || ip.IsUnspecified() {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address: left out", text)
	}
	return ip.Unmap(), nil
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

// locality is where a node is, as its labels say.
func (b *builder) locality(node string) workload.Locality {
	n := b.nodes[node]
	if n == nil {
		return workload.Locality{}
	}
	return workload.Locality{
		Region:  n.Labels[corev1.LabelTopologyRegion],
		Zone:    n.Labels[corev1.LabelTopologyZone],
		Subzone: n.Labels[labelSubzone],
	}
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

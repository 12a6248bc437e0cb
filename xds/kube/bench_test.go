package kube

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// podsOfACluster is as many as the benchmark keeps.
const podsOfACluster = 10_000

// livePod is a pod as an API server sends it: one of 50 of a Deployment, with what
// admission, scheduler, kubelet and kubectl add.
func livePod(i int) *corev1.Pod {
	app := fmt.Sprintf("app-%d", i/50)
	yes := true
	// As decoded from the wire: no string is shared with another pod.
	s := func(format string, args ...any) string { return fmt.Sprintf(format, args...) }
	env := make([]corev1.EnvVar, 30)
	for n := range env {
		env[n] = corev1.EnvVar{Name: s("VARIABLE_%d", n), Value: s("a value of some length %d", n)}
	}
	var mounts []corev1.VolumeMount
	var volumes []corev1.Volume
	for n := range 6 {
		mounts = append(mounts, corev1.VolumeMount{Name: s("volume-%d", n), MountPath: s("/var/lib/data-%d", n)})
		volumes = append(volumes, corev1.Volume{Name: s("volume-%d", n), VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: s("config-%d", n)}}}})
	}
	ip := s("10.%d.%d.%d", i>>16, i>>8&255, i&255)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: s("%s-6f7d9c5b8-%05d", app, i), GenerateName: s("%s-6f7d9c5b8-", app), Namespace: s("team-%d", i%100), UID: types.UID(s("a3a1c4f0-1111-2222-3333-%012d", i)), ResourceVersion: s("%d", 1000000+i),
			Labels: map[string]string{"app": s("%s", app), "pod-template-hash": s("6f7d9c5b8"), s("app.kubernetes.io/name"): s("%s", app), s("app.kubernetes.io/version"): s("1.2.3"), s("team"): s("team-%d", i%100)},
			Annotations: map[string]string{s("ambient.istio.io/redirection"): s("enabled"), s("prometheus.io/scrape"): s("true"), s("cni.projectcalico.org/podIP"): ip,
				s("k8s.v1.cni.cncf.io/network-status"): s("[{\"name\":\"k8s-pod-network\",\"ips\":[%q],\"default\":true,\"dns\":{}}]", ip)},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: s("apps/v1"), Kind: s("ReplicaSet"), Name: s("%s-6f7d9c5b8", app), UID: types.UID(s("b3a1c4f0-1111-2222-3333-%012d", i/50)), Controller: &yes, BlockOwnerDeletion: &yes}},
			ManagedFields: []metav1.ManagedFieldsEntry{
				{Manager: s("kube-controller-manager"), Operation: "Update", APIVersion: s("v1"), FieldsV1: metav1.NewFieldsV1(strings.Repeat("x", 2500))},
				{Manager: s("kubelet"), Operation: "Update", APIVersion: s("v1"), FieldsV1: metav1.NewFieldsV1(strings.Repeat("x", 1500))},
			},
		},
		Spec:   corev1.PodSpec{NodeName: s("node-%d", i%200), ServiceAccountName: app, Volumes: volumes, SchedulerName: s("default-scheduler"), DNSPolicy: corev1.DNSPolicy(s("ClusterFirst"))},
		Status: corev1.PodStatus{Phase: corev1.PodPhase(s("Running")), PodIP: ip, PodIPs: []corev1.PodIP{{IP: s("%s", ip)}}, HostIP: s("192.168.0.%d", i%200)},
	}
	for _, name := range []string{"main", "log"} {
		c := corev1.Container{
			Name: s("%s", name), Image: s("registry.example/%s/%s:1.2.3", app, name), Command: []string{s("/bin/%s", name)}, Args: []string{s("--level=info"), s("--port=8080")}, Env: env, VolumeMounts: mounts,
			Resources:     corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")}},
			LivenessProbe: &corev1.Probe{PeriodSeconds: 10}, ReadinessProbe: &corev1.Probe{PeriodSeconds: 5},
		}
		if name == "main" {
			c.Ports = []corev1.ContainerPort{{Name: s("http"), ContainerPort: 8080, Protocol: corev1.Protocol(s("TCP"))}, {Name: s("metrics"), ContainerPort: 9090, Protocol: corev1.Protocol(s("TCP"))}}
		}
		p.Spec.Containers = append(p.Spec.Containers, c)
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: s("%s", name), ContainerID: s("containerd://%064d", i), Image: c.Image, ImageID: s("sha256:%064d", i), Ready: true})
	}
	for _, name := range []corev1.PodConditionType{"PodReadyToStartContainers", corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodConditionType(s("%s", name)), Status: corev1.ConditionStatus(s("True")), LastTransitionTime: metav1.Now()})
	}
	return p
}

// BenchmarkPodsOfACluster tells what 10,000 pods cost to keep: bytes a pod, beside what
// they would cost as they come.
func BenchmarkPodsOfACluster(b *testing.B) {
	alike := newSiblings()
	for _, c := range []struct {
		name string
		keep func(*corev1.Pod) *corev1.Pod
	}{
		{"control plane", func(p *corev1.Pod) *corev1.Pod { return alike.share(podOf(p, false)) }},
		{"control plane, nothing shared", func(p *corev1.Pod) *corev1.Pod { return podOf(p, false) }},
		{"node", func(p *corev1.Pod) *corev1.Pod { return podOf(p, true) }},
		{"unpruned", func(p *corev1.Pod) *corev1.Pod { return p }},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				before := inUse()
				pods := newTable(func(raw metav1.Object) (*corev1.Pod, error) { return c.keep(raw.(*corev1.Pod)), nil }, samePod, func() {})
				for i := range podsOfACluster {
					if err := pods.Add(livePod(i)); err != nil {
						b.Fatal(err)
					}
				}
				list := pods.all()
				b.ReportMetric(float64(inUse()-before)/podsOfACluster, "B/pod")
				runtime.KeepAlive(list)
				runtime.KeepAlive(pods)
			}
		})
	}
}

// BenchmarkUnchanged is what it costs that a pod comes again with nothing new in it.
func BenchmarkUnchanged(b *testing.B) {
	pods := newTable(func(raw metav1.Object) (*corev1.Pod, error) { return podOf(raw.(*corev1.Pod), false), nil }, samePod, func() {})
	p := livePod(1)
	for b.Loop() {
		if err := pods.Update(p); err != nil {
			b.Fatal(err)
		}
	}
}

func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

package translate

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BenchmarkAll translates a mesh of 10,000 pods in 100 namespaces with 1,000 services.
func BenchmarkAll(b *testing.B) {
	var o Objects
	for n := range 100 {
		ns := fmt.Sprint("ns", n)
		o.Namespaces = append(o.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{LabelDataplaneMode: "ambient"}}})
		for s := range 10 {
			labels := map[string]string{"app": fmt.Sprint("app", s)}
			o.Services = append(o.Services, &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("svc", s), Namespace: ns},
				Spec:       corev1.ServiceSpec{Selector: labels, ClusterIP: fmt.Sprintf("10.96.%d.%d", n, s), Ports: []corev1.ServicePort{{Port: 80}}},
			})
			for p := range 10 {
				o.Pods = append(o.Pods, &corev1.Pod{
					ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%d-%d", s, p), Namespace: ns, Labels: labels},
					Spec:       corev1.PodSpec{NodeName: fmt.Sprint("node", p)},
					Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.%d.%d.%d", n, s, p+1)}}},
				})
			}
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if r, err := All(o, Options{AssumeRedirected: true}); err != nil || len(r.Workloads) != 10_000 {
			b.Fatalf("%d workloads, %v", len(r.Workloads), err)
		}
	}
}

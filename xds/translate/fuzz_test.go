package translate

import (
	"testing"

	apimeta "istio.io/api/meta/v1alpha1"
	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// FuzzAll: whatever stands in the fields of ServiceEntries, WorkloadEntries and Gateways,
// proxies take all that comes out, each thing under a name of its own.
func FuzzAll(f *testing.F) {
	f.Add("a.example", "10.0.0.1", "wp", "istio-remote", "n2", "HBONE", "PROXY/1", uint32(80), uint32(8080), int32(2))
	f.Add("*.example", "", "", "istio-waypoint", "", "", "NONE/x", uint32(0), uint32(70000), int32(1))
	f.Add("", "unix:///x", "none", "istio-east-west", "a/b", "TLS", "", uint32(1<<31), uint32(0), int32(3))
	f.Add("svc.ns.svc.cluster.local", "fd00::/8", "a b", "\x00", "*", "HBONE", "//", uint32(65535), uint32(1), int32(77))
	f.Fuzz(func(t *testing.T, host, addr, name, class, network, protocol, binding string, number, target uint32, resolution int32) {
		labels := map[string]string{labelUseWaypoint: name, labelUseNamespace: network, labelNetwork: network, labelTunnel: "http", labelCanary: "gw", "app": name}
		meta := metav1.ObjectMeta{Name: "o", Namespace: "ns", Labels: labels, Annotations: map[string]string{annotationInboundBound: binding, annotationCanary: binding, AnnotationRedirection: "enabled"}}
		ep := &apinetworking.WorkloadEntry{Address: addr, Network: network, Ports: map[string]uint32{name: target, "": number}, Labels: labels, Weight: number, ServiceAccount: name, Locality: binding}
		port := &apinetworking.ServicePort{Number: number, Protocol: protocol, Name: name, TargetPort: target}
		se := apinetworking.ServiceEntry{
			Hosts: []string{host, host, addr}, Addresses: []string{addr, host}, Ports: []*apinetworking.ServicePort{port, port, nil},
			Resolution: apinetworking.ServiceEntry_Resolution(resolution), Endpoints: []*apinetworking.WorkloadEntry{ep, ep, nil}, ExportTo: []string{network}, SubjectAltNames: []string{name},
		}
		selecting, resolved := se.DeepCopy(), se.DeepCopy()
		selecting.Endpoints, selecting.WorkloadSelector = nil, &apinetworking.WorkloadSelector{Labels: map[string]string{"app": name}}
		resolved.Endpoints, resolved.ExportTo = nil, []string{"."}
		status := apinetworking.ServiceEntryStatus{Addresses: []*apinetworking.ServiceEntryAddress{{Host: host, Value: addr}, nil}}
		entry := func(name, ns string, spec *apinetworking.ServiceEntry) *networkingv1.ServiceEntry {
			m := *meta.DeepCopy()
			m.Name, m.Namespace = name, ns
			e := &networkingv1.ServiceEntry{ObjectMeta: m}
			spec.DeepCopyInto(&e.Spec)
			status.DeepCopyInto(&e.Status)
			return e
		}
		kind := gatewayv1.HostnameAddressType
		gw := &gatewayv1.Gateway{ObjectMeta: *meta.DeepCopy(), Spec: gatewayv1.GatewaySpec{
			GatewayClassName: gatewayv1.ObjectName(class), Listeners: []gatewayv1.Listener{{Port: gatewayv1.PortNumber(int32(number)), Protocol: gatewayv1.ProtocolType(protocol)}},
			Addresses: []gatewayv1.GatewaySpecAddress{{Value: addr}, {Type: &kind, Value: host}},
		}}
		gw.Name = name
		ready := gw.DeepCopy()
		ready.Name = "gw"
		ready.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Type: &kind, Value: host}, {Value: addr}}
		we := &networkingv1.WorkloadEntry{ObjectMeta: *meta.DeepCopy(), Status: apimeta.IstioStatus{Conditions: []*apimeta.IstioCondition{nil}}}
		ep.DeepCopyInto(&we.Spec)
		r, err := All(Objects{
			Namespaces:     []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: labels}}},
			ServiceEntries: []*networkingv1.ServiceEntry{entry("a", "ns", &se), entry("b", "ns2", selecting), entry("c", "ns", resolved), entry("d", "ns3", resolved)},
			Services:       []*corev1.Service{{ObjectMeta: metav1.ObjectMeta{Name: "svc", Namespace: "ns"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Port: int32(number)}}}}},
			Pods:           []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns2", Labels: labels}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: addr}}}}},
			Gateways:       []*gatewayv1.Gateway{gw, ready}, WorkloadEntries: []*networkingv1.WorkloadEntry{we},
		}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		checkTaken(t, r)
	})
}

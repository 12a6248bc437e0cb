package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"

	"github.com/warren-mesh/warren/xds/kube"
	"github.com/warren-mesh/warren/xds/server"
	"github.com/warren-mesh/warren/xds/translate"
	"github.com/warren-mesh/warren/xds/workload"
)

func serviceEntry(name, host string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
		"metadata": map[string]any{"namespace": "app", "name": name, "generation": int64(1), "uid": "uid-" + name},
		"spec":     map[string]any{"hosts": []any{host}, "resolution": "DNS", "ports": []any{map[string]any{"number": int64(80), "name": "http", "protocol": "HTTP"}}},
	}}
}

func gateway(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
		"metadata": map[string]any{"namespace": "app", "name": name, "generation": int64(1)},
		"spec":     map[string]any{"gatewayClassName": "istio-waypoint", "listeners": []any{map[string]any{"name": "mesh", "port": int64(15008), "protocol": "HBONE"}}},
		"status":   map[string]any{"addresses": []any{map[string]any{"type": "IPAddress", "value": "10.96.9.9"}}},
	}}
}

// follows makes a model that follows a world.
func (w *world) follows() (*model, *kube.Feeder) {
	w.t.Helper()
	feeder, err := kube.New(kube.Config{Client: w.client, Dynamic: w.dynamic, Settle: time.Millisecond})
	if err != nil {
		w.t.Fatal(err)
	}
	m := newModel(translate.Options{}, func(*server.Snapshot) {}, slog.New(slog.DiscardHandler))
	begin(w.t, func(ctx context.Context) { _ = feeder.Run(ctx) })
	<-feeder.Synced()
	begin(w.t, func(ctx context.Context) { _ = m.run(ctx, kubeFeed{feeder}) })
	return m, feeder
}

func (w *world) create(gvr schema.GroupVersionResource, o *unstructured.Unstructured) {
	w.t.Helper()
	if _, err := w.dynamic.Resource(gvr).Namespace(o.GetNamespace()).Create(w.t.Context(), o, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// addressesOf reads what an entry's status says, by family.
func (w *world) addressesOf(name string) (four, six string) {
	w.t.Helper()
	o, err := w.dynamic.Resource(entryGVR).Namespace("app").Get(w.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return "", ""
	}
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "addresses")
	for _, a := range list {
		if v, _ := a.(map[string]any)["value"].(string); strings.Contains(v, ":") {
			six = v
		} else {
			four = v
		}
	}
	return four, six
}

// Hosts of ServiceEntries are given addresses, all different, while the API server fails
// now and then; the model has them, and they stay.
func TestAddresses(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	failures := 0
	w.dynamic.PrependReactor("patch", entryResource, func(clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		if failures++; failures%3 == 1 {
			return true, nil, apierrors.NewInternalError(context.DeadlineExceeded)
		}
		return false, nil, nil
	})
	m, _ := w.follows()
	begin(t, addressStatus(w.dynamic, m, slog.New(slog.DiscardHandler), nil).run)
	const n = 20
	for i := range n {
		w.create(entryGVR, serviceEntry(fmt.Sprintf("e%d", i), fmt.Sprintf("h%d.example", i)))
	}
	seen := map[string]bool{}
	for i := range n {
		name := fmt.Sprintf("e%d", i)
		eventually(t, name, func() bool { four, six := w.addressesOf(name); return four != "" && six != "" })
		four, six := w.addressesOf(name)
		if !strings.HasPrefix(four, "240.240.") || !strings.HasPrefix(six, "2001:2::") || seen[four] || seen[six] {
			t.Errorf("%s has %s and %s", name, four, six)
		}
		seen[four], seen[six] = true, true
	}
	eventually(t, "the model", func() bool {
		_, r, _ := m.policies()
		return len(r.Services) == n && !slices.ContainsFunc(r.Services, func(s *workload.Service) bool { return len(s.VIPs) != 2 })
	})
	// Two that say the same, as after a backup was restored: the older one's stays.
	four, _ := w.addressesOf("e3")
	forged := serviceEntry("forged", "forged.example")
	forged.SetCreationTimestamp(metav1.NewTime(time.Now().Add(time.Hour)))
	forged.Object["status"] = map[string]any{"addresses": []any{map[string]any{"host": "forged.example", "value": four}}}
	w.create(entryGVR, forged)
	eventually(t, "another address", func() bool { got, six := w.addressesOf("forged"); return got != four && got != "" && six != "" })
	if got, _ := w.addressesOf("e3"); got != four {
		t.Errorf("e3 had %s and has %s", four, got)
	}
}

// What was written counts before it was read, and no longer than it should.
func TestAddressesNotReadYet(t *testing.T) {
	entry := func(name string) *networkingv1.ServiceEntry {
		e := &networkingv1.ServiceEntry{TypeMeta: metav1.TypeMeta{APIVersion: "networking.istio.io/v1"}, ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: name, UID: types.UID("uid-" + name)}}
		e.Spec.Hosts = []string{name + ".example"}
		e.Spec.Resolution = 2
		return e
	}
	list := []*networkingv1.ServiceEntry{entry("a")}
	a := &addresses{log: slog.New(slog.DiscardHandler), written: map[string]written{}, entries: func() ([]*networkingv1.ServiceEntry, <-chan struct{}) { return list, nil }}
	wanted, _ := a.wanted()
	if len(wanted) != 1 {
		t.Fatal(wanted)
	}
	live := serviceEntry("a", "a.example")
	if _, ok := wanted["app/a"].change(live); !ok {
		t.Fatal("nothing to write")
	}
	wanted["app/a"].done()
	if again, _ := a.wanted(); len(again) != 0 {
		t.Errorf("wants it again: %v", again)
	}
	// Another object of the name is another.
	other := entry("a")
	other.UID = "other"
	list = []*networkingv1.ServiceEntry{other}
	if again, _ := a.wanted(); len(again) != 1 {
		t.Error("what was written into one counts for another")
	} else if _, ok := again["app/a"].change(live); ok {
		t.Error("written into another than the one that is meant")
	}
	list = []*networkingv1.ServiceEntry{entry("a")}
	live.Object["status"] = map[string]any{"addresses": []any{map[string]any{"host": "a.example", "value": "240.240.0.1"}}}
	if _, ok := wanted["app/a"].change(live); ok {
		t.Error("written over what came meanwhile")
	}
	wanted["app/a"].done()
	a.written["app/a"] = written{uid: "uid-a", at: time.Now().Add(-2 * seenWithin), status: a.written["app/a"].status}
	if again, _ := a.wanted(); len(again) != 1 {
		t.Error("what never came is believed for ever")
	}
}

// A Service says whether it has the waypoint that it asks for, beside what others say,
// and says nothing when it asks for none.
func TestWaypointStatus(t *testing.T) {
	w := newWorld(t)
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "s", Labels: map[string]string{"istio.io/use-waypoint": "wp"}},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.8"}, Status: corev1.ServiceStatus{Conditions: []metav1.Condition{{Type: "theirs", Status: "True"}}}}
	// Services are read by one client and written by the other: both of the same.
	put := func() {
		t.Helper()
		raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(service)
		if err != nil {
			t.Fatal(err)
		}
		o := &unstructured.Unstructured{Object: raw}
		o.SetAPIVersion("v1")
		o.SetKind("Service")
		_ = w.dynamic.Tracker().Delete(serviceGVR, "app", "s")
		_ = w.client.Tracker().Delete(serviceGVR, "app", "s")
		if err := w.dynamic.Tracker().Create(serviceGVR, o, "app"); err != nil {
			t.Fatal(err)
		}
		if err := w.client.Tracker().Create(serviceGVR, service, "app"); err != nil {
			t.Fatal(err)
		}
	}
	put()
	entry := serviceEntry("e", "e.example")
	entry.SetLabels(map[string]string{"istio.io/use-waypoint": "wp"})
	w.create(entryGVR, entry)
	m, _ := w.follows()
	begin(t, waypointStatus(w.dynamic, m, slog.New(slog.DiscardHandler)).run)
	said := func(gvr schema.GroupVersionResource, name string) (out map[string]any, others int) {
		o, err := w.dynamic.Resource(gvr).Namespace("app").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		for _, c := range list {
			if c := c.(map[string]any); c["type"] == conditionBound {
				out = c
			} else {
				others++
			}
		}
		return out, others
	}
	for name, gvr := range map[string]schema.GroupVersionResource{"s": serviceGVR, "e": entryGVR} {
		eventually(t, "refusal of "+name, func() bool {
			c, _ := said(gvr, name)
			return c["status"] == "False" && c["reason"] == "WaypointIsNotReady" && strings.Contains(fmt.Sprint(c["message"]), "app/wp")
		})
	}
	w.create(gatewayGVR, gateway("wp"))
	for name, gvr := range map[string]schema.GroupVersionResource{"s": serviceGVR, "e": entryGVR} {
		eventually(t, "acceptance of "+name, func() bool {
			c, _ := said(gvr, name)
			return c["status"] == "True" && c["reason"] == "WaypointAccepted"
		})
	}
	if _, others := said(serviceGVR, "s"); others != 1 {
		t.Errorf("%d conditions of others, want theirs alone", others)
	}
	service.Labels = nil
	c, _ := said(serviceGVR, "s")
	service.Status.Conditions = append(service.Status.Conditions, metav1.Condition{Type: conditionBound, Status: "True", Reason: fmt.Sprint(c["reason"]), Message: fmt.Sprint(c["message"])})
	put()
	eventually(t, "nothing", func() bool { c, others := said(serviceGVR, "s"); return c == nil && others == 1 })
}

// Hosts in a folder are given addresses, too, and keep them while others come and go, and
// over a restart.
func TestAddressesOfAFolder(t *testing.T) {
	p := start(t, nil)
	entry := func(name string) {
		p.write(name+".yaml", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: "+name+", namespace: app}\nspec: {hosts: ["+name+".example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}\n")
	}
	vips := func(name string) (out []string) {
		_, r, _ := p.cp.model.policies()
		for _, s := range r.Services {
			if s.Hostname == name+".example" {
				for _, v := range s.VIPs {
					out = append(out, v.Addr.String())
				}
			}
		}
		return out
	}
	entry("m")
	eventually(t, "addresses", func() bool { return len(vips("m")) == 2 })
	before := vips("m")
	for _, name := range []string{"a", "z"} {
		entry(name)
		eventually(t, "addresses of another", func() bool { return len(vips(name)) == 2 })
	}
	if now := vips("m"); !slices.Equal(now, before) {
		t.Errorf("had %v, has %v", before, now)
	}
	objects, _ := p.cp.feed.Read()
	raw, _ := p.cp.feed.(fileFeed).Feeder.Read() // without what was given before
	again := (&fileAddresses{log: slog.New(slog.DiscardHandler)}).fill(raw)
	if len(again.ServiceEntries) != 3 {
		t.Fatal(again.ServiceEntries)
	}
	for i, e := range again.ServiceEntries {
		if !slices.Equal(addressTexts(e), addressTexts(objects.ServiceEntries[i])) {
			t.Errorf("%s had %v, has %v", e.Name, objects.ServiceEntries[i].Status.GetAddresses(), e.Status.GetAddresses())
		}
	}
}

func addressTexts(e *networkingv1.ServiceEntry) (out []string) {
	for _, a := range e.Status.GetAddresses() {
		out = append(out, a.GetValue())
	}
	return out
}

// A control plane that starts and cannot read a policy serves one that denies, and says so
// in the policy's status: its proxies had one, and would be told that it is gone.
func TestUnreadablePolicy(t *testing.T) {
	w := newWorld(t)
	p := authorizationPolicy("p", "LIMIT")
	p.SetGeneration(7)
	w.create(policyGVR, p)
	m, feeder := w.follows()
	begin(t, policyStatus(w.dynamic, m, feeder.Problems, slog.New(slog.DiscardHandler)).run)
	eventually(t, "the policy", func() bool {
		_, r, _ := m.policies()
		return len(r.Policies) == 1 && r.Policies[0].Action == workload.Deny && len(r.Policies[0].Rules) == 1
	})
	eventually(t, "refusal", func() bool {
		c := conditionOf(w, "p")
		return c["status"] == "False" && observed(c) == 7 && strings.Contains(fmt.Sprint(c["message"]), "LIMIT")
	})
}

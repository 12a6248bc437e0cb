package admin_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/proxy/admin"
)

// What istioctl ztunnel-config reads, with the types that it reads it into: where one does
// not fit the whole command fails.
type (
	ctlDestination struct{ Destination string }
	ctlWorkload    struct {
		UID, Name, Namespace, ServiceAccount, WorkloadName, WorkloadType, CanonicalName, CanonicalRevision string
		ClusterID, TrustDomain, Node, Network, Status, Hostname, Protocol                                  string
		WorkloadIPs                                                                                        []string `json:"workloadIps"`
		Waypoint, NetworkGateway                                                                           *ctlDestination
		Locality                                                                                           *struct{ Region, Zone, Subzone string }
		Capacity                                                                                           uint32
		ApplicationTunnel                                                                                  *struct {
			Protocol string
			Port     *uint16
		}
		AuthorizationPolicies []string
	}
	ctlService struct {
		Name, Namespace, Hostname, IPFamilies, Visibility string
		VIPs                                              []string       `json:"vips"`
		Ports                                             map[string]int `json:"ports"`
		LoadBalancer                                      *struct {
			Mode, HealthPolicy string
			RoutingPreferences []string
		}
		Waypoint  *ctlDestination
		Endpoints map[string]*struct {
			WorkloadUID, Service string
			Port                 map[uint16]uint16
		}
		SubjectAltNames []string
		Canonical       bool
	}
	ctlPolicy struct {
		Name, Namespace, Scope, Action string
		Rules                          [][][]map[string]any
	}
	ctlCert struct {
		Pem, SerialNumber         string
		ValidFrom, ExpirationTime string
	}
	ctlConnection struct{ Src, OriginalDst, ActualDst, Protocol string }
	ctlDump       struct {
		Workloads    []ctlWorkload
		Services     []ctlService
		Policies     []ctlPolicy
		Certificates []struct {
			Identity, State      string
			CertChain, RootCerts []ctlCert
		}
		WorkloadState map[string]struct {
			State       string
			Connections struct{ Inbound, Outbound []ctlConnection }
			Info        struct{ Name, Namespace, TrustDomain, ServiceAccount string }
		}
	}
)

// TestShapeForIstioctl: each column that istioctl prints has its value in the dump.
func TestShapeForIstioctl(t *testing.T) {
	signer, err := fake.New(spiffeid.RequireTrustDomainFromString("cluster.local"), nil)
	if err != nil {
		t.Fatal(err)
	}
	m := svid.New(svid.Config{Signer: signer})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if _, err := m.Acquire(svid.Pod{UID: "u"}, spiffeid.RequireFromString("spiffe://cluster.local/ns/a/sa/b")).Identity(ctx); err != nil {
		t.Fatal(err)
	}
	s := source()
	s.Certs = m.Dump
	_, body := get(t, admin.Handler(s), http.MethodGet, "/config_dump")
	var d ctlDump
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		t.Fatal(err)
	}
	w := d.Workloads[0]
	got := map[string]any{
		"workload": []any{w.Namespace, w.Name, w.WorkloadIPs, w.Node, w.Waypoint.Destination, w.Protocol, w.Status, w.Capacity, w.AuthorizationPolicies},
	}
	for _, x := range d.Services {
		if x.Name != "app" {
			continue
		}
		for _, e := range x.Endpoints {
			got["service"] = []any{x.Namespace, x.Hostname, x.VIPs, x.Ports, x.LoadBalancer.RoutingPreferences, e.WorkloadUID, e.Port, x.IPFamilies, x.Canonical}
		}
	}
	for _, x := range d.Policies {
		if x.Name == "p" {
			got["policy"] = []any{x.Namespace, x.Action, x.Scope, x.Rules[0][0][0]["sourceIps"], x.Rules[0][0][0]["notPrincipals"]}
		}
	}
	st := d.WorkloadState["u1"]
	got["connections"] = []any{st.State, st.Info.Name, st.Info.Namespace, st.Connections.Inbound, st.Connections.Outbound}
	want := map[string]any{
		"workload": []any{"a", "p-1", []string{"10.0.0.1"}, "node1", "a/wp.a.svc", "HBONE", "Healthy", uint32(3), []string{"a/p"}},
		"service": []any{"a", "app.a.svc.cluster.local", []string{"n1/10.96.0.5"}, map[string]int{"80": 8080}, []string{"Network", "Region"},
			"Kubernetes//Pod/a/p-1", map[uint16]uint16{80: 8080}, "IPv4", true},
		"policy": []any{"a", "Deny", "WorkloadSelector", []any{"10.0.0.0/8"}, []any{map[string]any{"Presence": []any{}}}},
		"connections": []any{"Up", "p-1", "a",
			[]ctlConnection{{Src: "10.0.0.9:1234", ActualDst: "10.0.0.1:8080", Protocol: "HBONE"}},
			[]ctlConnection{{Src: "10.0.0.1:4444", OriginalDst: "10.96.0.5:80", ActualDst: "10.0.0.7:15008", Protocol: "HBONE"}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(d.Certificates) != 1 || d.Certificates[0].Identity != "spiffe://cluster.local/ns/a/sa/b" || d.Certificates[0].State != "Available" {
		t.Fatalf("certificates: %+v", d.Certificates)
	}
	for _, c := range append(d.Certificates[0].CertChain, d.Certificates[0].RootCerts...) {
		text, err := base64.StdEncoding.DecodeString(c.Pem)
		if block, _ := pem.Decode(text); err != nil || block == nil {
			t.Errorf("pem: %v", err)
		}
		if _, ok := new(big.Int).SetString(c.SerialNumber, 10); !ok {
			t.Errorf("serial number %q", c.SerialNumber)
		}
		for _, at := range []string{c.ValidFrom, c.ExpirationTime} {
			if _, err := time.Parse(time.RFC3339, at); err != nil {
				t.Error(err)
			}
		}
	}
	if len(d.Certificates[0].CertChain) == 0 || len(d.Certificates[0].RootCerts) == 0 {
		t.Error("no chain, or no roots")
	}
}

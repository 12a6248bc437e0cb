package admin_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/warren-mesh/warren/proxy/admin"
	"github.com/warren-mesh/warren/xds/workload"
)

// pieces notes the largest write, and may stop at the first one.
type pieces struct {
	*httptest.ResponseRecorder
	largest int
	begun   chan struct{} // nil: it does not stop
	goOn    chan struct{}
}

func (p *pieces) Write(b []byte) (int, error) {
	if p.begun != nil {
		close(p.begun)
		<-p.goOn
		p.begun = nil
	}
	p.largest = max(p.largest, len(b))
	return p.ResponseRecorder.Write(b)
}

// A dump of a large mesh is written as it is made, one at a time.
func TestDumpIsBounded(t *testing.T) {
	src := source()
	store := workload.NewStore()
	var b workload.Batch
	for i := range 5000 {
		name := fmt.Sprint("pod", i)
		b.Workloads = append(b.Workloads, &workload.Workload{UID: "Kubernetes//Pod/a/" + name, Name: name, Namespace: "a", TrustDomain: "cluster.local"})
	}
	store.Apply(b)
	src.View = store.View
	h := admin.Handler(src)
	ask := func(ctx context.Context, w http.ResponseWriter) {
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/config_dump", nil).WithContext(ctx))
	}
	first := &pieces{ResponseRecorder: httptest.NewRecorder(), begun: make(chan struct{}), goOn: make(chan struct{})}
	begun, ended := first.begun, make(chan struct{})
	go func() { defer close(ended); ask(t.Context(), first) }()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()       // it waits for nothing
	for range 20 { // were there room beside the first, one of them would have got in
		second := httptest.NewRecorder()
		ask(ctx, second)
		if second.Code != http.StatusServiceUnavailable {
			t.Errorf("a second dump beside the first: status %d", second.Code)
			break
		}
	}
	close(first.goOn)
	<-ended
	if n := first.Body.Len(); n < 1<<20 || first.largest > 128<<10 {
		t.Errorf("of %d bytes %d were written at once", n, first.largest)
	}
	third := httptest.NewRecorder()
	ask(t.Context(), third)
	if third.Body.Len() != first.Body.Len() {
		t.Error("the third is another one")
	}
}

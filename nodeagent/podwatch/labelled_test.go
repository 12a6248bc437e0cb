package podwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/xds/file"
	"github.com/warren-mesh/warren/xds/translate"
)

// pages are an API server's pods, in pages as a real one gives them: it takes no heed of the
// limit where its memory will do, and the next page has no version of its own.
type pages struct {
	pods  []metav1.PartialObjectMetadata
	asked []metav1.ListOptions
	fails bool // in the middle
}

func (p *pages) List(_ context.Context, o metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	p.asked = append(p.asked, o)
	if o.Continue != "" && o.ResourceVersion != "" {
		return nil, errors.New("a version with continue")
	}
	if o.Continue != "" && p.fails {
		return nil, errors.New("the continue parameter is too old")
	}
	from, _ := strconv.Atoi(o.Continue)
	to := len(p.pods)
	if o.Limit > 0 && o.ResourceVersion != "0" {
		to = min(to, from+int(o.Limit))
	}
	list := &metav1.PartialObjectMetadataList{Items: slices.Clone(p.pods[from:to])}
	if to < len(p.pods) {
		list.Continue = strconv.Itoa(to)
	}
	return list, nil
}

// labelledPods is who looks for pods of other nodes in the namespaces first and last.
func labelledPods(t *testing.T, pods *pages) *Labelled {
	t.Helper()
	dir := t.TempDir()
	doc := "apiVersion: v1\nkind: Namespace\nmetadata: {name: first}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: last}\n"
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := New(file.Feed(dir, slog.New(slog.DiscardHandler)), nil, enroll.ViewOptions{Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	for v, changed := w.View(); v == nil; v, changed = w.View() {
		<-changed
	}
	for i := range 2*labelledPage + 1 {
		ns := "first"
		if i == 2*labelledPage {
			ns = "last"
		}
		pods.pods = append(pods.pods, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: fmt.Sprint("p", i), Labels: map[string]string{translate.LabelDataplaneMode: "ambient"},
		}})
	}
	return &Labelled{Pods: pods, Watcher: w, Log: slog.New(slog.DiscardHandler)}
}

// mode is what the plugin is to go by for a namespace while the agent is away.
func (l *Labelled) mode(namespace string) string {
	v, _ := l.Watcher.View()
	return v.Away().Namespaces[namespace]
}

// TestLooksPageByPage: what an agent holds at once of all the cluster's labelled pods is a page.
func TestLooksPageByPage(t *testing.T) {
	pods := &pages{}
	l := labelledPods(t, pods)
	if err := l.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(pods.asked) != 3 {
		t.Errorf("asked %d times for %d pods: %+v", len(pods.asked), len(pods.pods), pods.asked)
	}
	for _, o := range pods.asked {
		if o.Limit != labelledPage || !strings.Contains(o.FieldSelector, "spec.hostNetwork!=true") {
			t.Errorf("asked %+v", o)
		}
	}
	if l.mode("first") != event.NSMixed || l.mode("last") != event.NSMixed {
		t.Errorf("first %q, last %q", l.mode("first"), l.mode("last"))
	}
}

// TestLookThatBreaksOff: a list that is not whole is no answer.
func TestLookThatBreaksOff(t *testing.T) {
	l := labelledPods(t, &pages{fails: true})
	if err := l.Look(t.Context()); err == nil || !strings.Contains(err.Error(), "too old") {
		t.Errorf("got %v", err)
	}
	if l.mode("first") != event.NSOut {
		t.Errorf("first is %q", l.mode("first"))
	}
}

// TestPodMetadata: the API server is asked for metadata, and not for pods.
func TestPodMetadata(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); r.URL.Path != "/api/v1/pods" || !strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadataList") || q.Get("limit") != "7" || q.Has("resourceVersion") {
			t.Errorf("asked for %s, as %s", r.URL, r.Header.Get("Accept"))
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {"continue": "x"}, "items": [{"metadata": {"namespace": "app", "name": "a"}}]}`))
	}))
	defer srv.Close()
	pods, err := PodMetadata(&rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	list, err := pods.List(t.Context(), metav1.ListOptions{Limit: 7})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "a" || list.Continue != "x" {
		t.Errorf("%+v, %v", list, err)
	}
}

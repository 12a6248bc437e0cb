package render

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Check holds what is not Kubernetes' own to its types: a field that these do not
// have is an error.
func Check(manifest string) error {
	r := utilyaml.NewYAMLReader(newLines(manifest))
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var meta metav1.PartialObjectMetadata
		if err := yaml.Unmarshal(doc, &meta); err != nil {
			return fmt.Errorf("%w in\n%s", err, bytes.TrimSpace(doc))
		}
		if meta.GroupVersionKind() != monitoringv1.SchemeGroupVersion.WithKind(monitoringv1.PodMonitorsKind) {
			continue
		}
		if err := yaml.UnmarshalStrict(doc, &monitoringv1.PodMonitor{}); err != nil {
			return fmt.Errorf("PodMonitor %s: %w", meta.Name, err)
		}
	}
}

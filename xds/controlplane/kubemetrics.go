package controlplane

import "github.com/prometheus/client_golang/prometheus"

// kubeCollector says how it is with the API server.
type kubeCollector struct {
	feed    kubeFeed
	cluster *cluster
}

// Describe sends nothing: the metrics are those that Collect makes.
func (c *kubeCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *kubeCollector) Collect(to chan<- prometheus.Metric) {
	send := func(kind prometheus.ValueType, name, help string, v float64, labels ...string) {
		var names, values []string
		for i := 0; i+1 < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		to <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, v, values...)
	}
	for _, s := range c.feed.Status() {
		send(prometheus.GaugeValue, "warren_kube_objects", "Objects read from the API server, by kind.", float64(s.Objects), "kind", s.Kind)
		send(prometheus.GaugeValue, "warren_kube_synced", "Whether all objects of a kind have been read once.", number(s.Synced), "kind", s.Kind)
		send(prometheus.GaugeValue, "warren_kube_up", "Whether news of a kind arrive; when not, what was last read is served.", number(s.Err == ""), "kind", s.Kind)
		if !s.Heard.IsZero() {
			send(prometheus.GaugeValue, "warren_kube_heard_timestamp_seconds", "When the API server last said something about a kind, in Unix time.", float64(s.Heard.UnixMilli())/1000, "kind", s.Kind)
		}
	}
	send(prometheus.GaugeValue, "warren_kube_object_problems", "Objects that could not be read as they are, and kinds of which no news arrive.", float64(len(c.feed.Problems())))
	send(prometheus.GaugeValue, "warren_leader", "Whether this replica writes root ConfigMaps and the status of objects.", number(c.cluster.leader.leads.Load()))
	writes := map[string]*counts{"event": &c.cluster.events.writes}
	if c.cluster.rootMaps != nil {
		writes["root-configmap"] = &c.cluster.rootMaps.writes
	}
	for _, s := range c.cluster.statuses {
		writes[s.what+"-status"] = &s.writes
	}
	for what, n := range writes {
		send(prometheus.CounterValue, "warren_kube_writes_total", "Objects written to the API server.", float64(n.done.Load()), "what", what)
		send(prometheus.CounterValue, "warren_kube_write_failures_total", "Objects that could not be written to the API server.", float64(n.failed.Load()), "what", what)
	}
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

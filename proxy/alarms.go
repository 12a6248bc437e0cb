package proxy

import (
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// alarms are what somebody has to look at before it breaks something, by name. They do not make the proxy unready: it
// would be taken away from pods that it serves well.
type alarms struct {
	log *slog.Logger

	mu sync.Mutex
	on map[string]string
}

func newAlarms(log *slog.Logger) *alarms { return &alarms{log: log, on: make(map[string]string)} }

// set raises an alarm, or with no text ends it.
func (a *alarms) set(name, text string) {
	a.mu.Lock()
	before := a.on[name]
	if text == "" {
		delete(a.on, name)
	} else {
		a.on[name] = text
	}
	a.mu.Unlock()
	switch {
	case text != "" && before == "":
		a.log.Warn("ALARM: "+text, "alarm", name)
	case text == "" && before != "":
		a.log.Info("alarm is over", "alarm", name, "was", before)
	}
}

// list is a copy.
func (a *alarms) list() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.on)
}

// notes are the alarms in words, sorted.
func (a *alarms) notes() (out []string) {
	for name, text := range a.list() {
		out = append(out, name+": "+text)
	}
	slices.Sort(out)
	return out
}

var alarmDesc = prometheus.NewDesc("warren_alarm", "Alarms that are on: 1 (unstable).", []string{"alarm"}, nil)

// Describe and Collect make a metric of each alarm that is on.
func (a *alarms) Describe(ch chan<- *prometheus.Desc) { ch <- alarmDesc }

// Collect implements prometheus.Collector.
func (a *alarms) Collect(ch chan<- prometheus.Metric) {
	for name := range a.list() {
		ch <- prometheus.MustNewConstMetric(alarmDesc, prometheus.GaugeValue, 1, name)
	}
}

package install

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Phase is how far an installation has come.
type Phase string

// The phases.
const (
	Starting  Phase = "starting"  // nothing was looked at yet
	Waiting   Phase = "waiting"   // for the primary CNI, or for its file to become whole
	Installed Phase = "installed" // runtimes run the plugin
	Degraded  Phase = "degraded"  // they do, and something is to be looked at
	Failed    Phase = "failed"    // they do not
	Removed   Phase = "removed"   // by Uninstall
)

func phases() []Phase { return []Phase{Starting, Waiting, Installed, Degraded, Failed, Removed} }

// State is how the installation is.
type State struct {
	Phase Phase     `json:"phase"`
	Since time.Time `json:"since"` // of the phase
	// Detail says it in words, Problems what somebody should look at.
	Detail   string   `json:"detail"`
	Problems []string `json:"problems,omitempty"`

	Primary string `json:"primary,omitempty"` // the primary CNI's file
	Entry   string `json:"entry,omitempty"`   // the file that holds our entry
	Runs    bool   `json:"runs"`              // a runtime that looks now runs the plugin
	// Istio is the file by which runtimes run Istio's plugin; empty: they do not.
	Istio        string `json:"istio,omitempty"`
	IstioFollows bool   `json:"istioFollows,omitempty"` // behind ours

	Changes int `json:"changes"` // that were made on the host since the start
	Repairs int `json:"repairs"` // those after the first time that all was well
}

// String is the state in one line.
func (s State) String() string {
	text := fmt.Sprintf("%s: %s", s.Phase, s.Detail)
	if len(s.Problems) > 0 {
		text += ": " + strings.Join(s.Problems, "; ")
	}
	return text
}

// OK says whether nobody need look.
func (s State) OK() bool { return s.Phase == Installed }

func (s State) sameWords(o State) bool {
	return s.Phase == o.Phase && s.Detail == o.Detail && slices.Equal(s.Problems, o.Problems)
}

// State returns how the installation is.
func (i *Installer) State() State {
	i.stateMu.Lock()
	defer i.stateMu.Unlock()
	s := i.state
	s.Problems = slices.Clone(s.Problems)
	return s
}

// setState keeps a state and tells of it if it is news.
func (i *Installer) setState(s State) {
	i.stateMu.Lock()
	old := i.state
	s.Since = old.Since
	if s.Phase != old.Phase {
		s.Since = time.Now()
	}
	s.Changes, s.Repairs = i.changes, i.repairs
	i.state = s
	i.stateMu.Unlock()
	if s.sameWords(old) {
		return
	}
	log := i.log.Info
	if s.Phase == Failed || s.Phase == Degraded {
		log = i.log.Warn
	}
	log("cni installation", "phase", s.Phase, "detail", s.Detail, "problems", s.Problems)
}

// Collector exports the state: by phase, and under the names that Istio's agent
// has for the same.
func (i *Installer) Collector() prometheus.Collector { return collector{i} }

type collector struct{ i *Installer }

// Describe sends nothing: the metrics are those that Collect makes.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	s := c.i.State()
	gauge := func(name, help string, v float64, labels ...string) {
		var names []string
		if len(labels) > 0 {
			names = []string{"phase"}
		}
		to <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), prometheus.GaugeValue, v, labels...)
	}
	for _, p := range phases() {
		v := 0.0
		if p == s.Phase {
			v = 1
		}
		gauge("warren_agent_cni_install", "Where the installation of the CNI plugin on this node stands.", v, string(p))
	}
	ready := 0.0
	if s.Runs {
		ready = 1
	}
	gauge("istio_cni_install_ready", "Whether runtimes run the CNI plugin.", ready)
	to <- prometheus.MustNewConstMetric(prometheus.NewDesc("warren_agent_cni_repairs_total",
		"Times that the CNI plugin's binary or entry was put back on the host.", nil, nil), prometheus.CounterValue, float64(s.Repairs))
}

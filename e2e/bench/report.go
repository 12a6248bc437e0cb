package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// Report is everything a run has found; as JSON it is what -json writes.
type Report struct {
	Began   time.Time
	Machine Machine
	Peer    string `json:",omitempty"`
	Rounds  int
	Warm    time.Duration
	Length  time.Duration
	Loads   []*LoadReport
}

// LoadReport is one table.
type LoadReport struct {
	ID, Title string
	Columns   []column
	Subjects  []*SubjectReport
}

// SubjectReport is one line of it.
type SubjectReport struct {
	Name   string
	Base   string             `json:",omitempty"` // the subject that Ratio is to
	Error  string             `json:",omitempty"`
	Rounds []figures          // by column key
	Median map[string]float64 `json:",omitempty"`
	Least  map[string]float64 `json:",omitempty"`
	Most   map[string]float64 `json:",omitempty"`
	// Ratio is the median of the rounds' ratios, since a round's measurements
	// lie beside each other in time.
	Ratio map[string]float64 `json:",omitempty"`
}

func newReport(c Config) *Report {
	r := &Report{Began: time.Now().Truncate(time.Second), Machine: thisMachine(), Rounds: c.Rounds, Warm: c.Warm, Length: c.Length}
	if c.Peer != nil {
		r.Peer = c.Peer.Name
	}
	return r
}

func newLoadReport(l load) *LoadReport {
	return &LoadReport{ID: l.id, Title: l.title, Columns: append(slices.Clone(l.columns), colEnds, colOther)}
}

// sum fills in what follows from the rounds.
func (r *LoadReport) sum() {
	byName := make(map[string]*SubjectReport)
	for _, s := range r.Subjects {
		byName[s.Name] = s
	}
	for _, s := range r.Subjects {
		s.Median, s.Least, s.Most = map[string]float64{}, map[string]float64{}, map[string]float64{}
		s.Ratio = map[string]float64{}
		base := byName[s.Base]
		for _, c := range r.Columns {
			var v, ratios []float64
			for i, f := range s.Rounds {
				x, ok := f[c.Key]
				if !ok {
					continue
				}
				v = append(v, x)
				if base != nil && i < len(base.Rounds) && base.Rounds[i][c.Key] > 0 {
					ratios = append(ratios, x/base.Rounds[i][c.Key])
				}
			}
			if len(v) > 0 {
				s.Median[c.Key], s.Least[c.Key], s.Most[c.Key] = median(v), slices.Min(v), slices.Max(v)
			}
			if len(ratios) > 0 && c.judged() {
				s.Ratio[c.Key] = median(ratios)
			}
		}
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[n/2] + v[(n-1)/2]) / 2
}

func (r *Report) printHead(out io.Writer) {
	m := r.Machine
	fmt.Fprintf(out, "%s, Linux %s, %d × %s; load averages before: %s\n", m.Go, m.Kernel, m.CPUs, m.CPU, m.Load)
	fmt.Fprintf(out, "medians of %d rounds of %s after %s of warming up, least–most below; × is the ratio to the peer, by round\n", r.Rounds, r.Length, r.Warm)
	fmt.Fprintf(out, "CPU is that of all proxies on the way; other load is how many cores something else kept busy\n")
}

const nameWidth, cellWidth = 26, 17

// print writes a table: a line of medians with ratios for each subject, and
// below it the spread.
func (r *LoadReport) print(out io.Writer) {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s  [%s]\n%s", r.Title, r.ID, pad("", nameWidth))
	for _, c := range r.Columns {
		b.WriteString(pad(c.Head, cellWidth))
	}
	for _, s := range r.Subjects {
		b.WriteString("\n" + pad("  "+s.Name, nameWidth))
		var spread strings.Builder
		for _, c := range r.Columns {
			v, ok := s.Median[c.Key]
			if !ok {
				b.WriteString(pad("–", cellWidth))
				spread.WriteString(pad("", cellWidth))
				continue
			}
			cell := fmt.Sprintf(c.Format, v)
			if x, ok := s.Ratio[c.Key]; ok {
				cell += fmt.Sprintf(" ×%.2f", x)
			}
			b.WriteString(pad(cell, cellWidth))
			spread.WriteString(pad(fmt.Sprintf(c.Format+"–"+c.Format, s.Least[c.Key], s.Most[c.Key]), cellWidth))
		}
		if len(s.Rounds) > 1 {
			b.WriteString("\n" + pad("", nameWidth) + spread.String())
		}
		if s.Error != "" {
			b.WriteString("\n    failed: " + s.Error)
		}
	}
	fmt.Fprintln(out, b.String())
}

// pad counts letters, not bytes.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(1, width-len([]rune(s))))
}

// write makes the files that were asked for.
func (b *bench) write() error {
	var errs []error
	if b.JSON != "" {
		text, err := json.MarshalIndent(b.report, "", "  ")
		if err == nil {
			err = os.WriteFile(b.JSON, append(text, '\n'), 0o644)
		}
		errs = append(errs, err)
	}
	if b.HTML != "" {
		text, err := page(b.report)
		if err == nil {
			err = os.WriteFile(b.HTML, text, 0o644)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

package bench

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"strings"
)

//go:embed page.html
var pageText string

// pageData is what the template shows.
type pageData struct {
	*Report
	Overview *ratios
	Charts   []chart
}

// chart is one table with a plot for each of its columns.
type chart struct {
	*LoadReport
	Plots []plot
	Table [][]string // the first line is the heads
}

// plot is one column, a bar a subject.
type plot struct {
	Head   string
	Better string
	Height int
	Bars   []bar
}

// bar is placed in units of the drawing.
type bar struct {
	Name, Label        string
	Kind               string // class of colour
	Y                  int
	Width, Least, Most float64
	Tip                string
}

const (
	barHeight = 18
	barWidth  = 220.0 // of the largest value
)

// page draws a report as one HTML page that needs nothing else.
func page(r *Report) ([]byte, error) {
	t, err := template.New("page").Parse(pageText)
	if err != nil {
		return nil, err
	}
	d := pageData{Report: r, Overview: newRatios(r)}
	for _, l := range r.Loads {
		d.Charts = append(d.Charts, newChart(r, l))
	}
	var b bytes.Buffer
	err = t.Execute(&b, d)
	return b.Bytes(), err
}

func newChart(r *Report, l *LoadReport) chart {
	c := chart{LoadReport: l, Table: [][]string{{""}}}
	for _, col := range l.Columns {
		c.Table[0] = append(c.Table[0], col.Head)
		if col.judged() {
			c.Plots = append(c.Plots, newPlot(r, l, col))
		}
	}
	for _, s := range l.Subjects {
		line := []string{s.Name}
		for _, col := range l.Columns {
			line = append(line, s.cell(col))
		}
		if s.Error != "" {
			line[0] += " (failed: " + s.Error + ")"
		}
		c.Table = append(c.Table, line)
	}
	return c
}

func (s *SubjectReport) cell(c column) string {
	v, ok := s.Median[c.Key]
	if !ok {
		return "–"
	}
	cell := fmt.Sprintf(c.Format+" ("+c.Format+"–"+c.Format+")", v, s.Least[c.Key], s.Most[c.Key])
	if x, ok := s.Ratio[c.Key]; ok {
		cell += fmt.Sprintf(" ×%.2f", x)
	}
	return cell
}

func newPlot(r *Report, l *LoadReport, c column) plot {
	p := plot{Head: c.Head, Better: "less is better"}
	if c.More {
		p.Better = "more is better"
	}
	largest := 0.0
	for _, s := range l.Subjects {
		largest = max(largest, s.Most[c.Key])
	}
	scale := barWidth / max(largest, math.SmallestNonzeroFloat32)
	for i, s := range l.Subjects {
		v, ok := s.Median[c.Key]
		if !ok {
			continue
		}
		label := fmt.Sprintf(c.Format, v)
		if x, ok := s.Ratio[c.Key]; ok {
			label += fmt.Sprintf(" ×%.2f", x)
		}
		p.Bars = append(p.Bars, bar{
			Name: s.Name, Label: label, Kind: colour(r, s), Y: i * barHeight, Tip: s.Name + ": " + s.cell(c),
			Width: v * scale, Least: s.Least[c.Key] * scale, Most: s.Most[c.Key] * scale,
		})
	}
	p.Height = len(l.Subjects) * barHeight
	return p
}

func colour(r *Report, s *SubjectReport) string {
	switch {
	case r.Peer != "" && strings.HasPrefix(s.Name, r.Peer):
		return "peer"
	case strings.HasPrefix(s.Name, "warren"):
		return "ours"
	}
	return "wire"
}

// ratios are all ratios to the peer on one logarithmic scale, better to the right.
type ratios struct {
	Height int
	Lines  []ratioLine
}

type ratioLine struct {
	Y    int
	Name string
	Dots []ratioDot
}

type ratioDot struct {
	X         float64
	Good      bool
	Name, Tip string
}

// newRatios returns nil without a peer.
func newRatios(r *Report) *ratios {
	if r.Peer == "" {
		return nil
	}
	o := new(ratios)
	for _, l := range r.Loads {
		for _, s := range l.Subjects {
			if s.Base != r.Peer || len(s.Ratio) == 0 {
				continue
			}
			line := ratioLine{Y: len(o.Lines)*barHeight + barHeight, Name: l.ID + ", " + s.Name}
			for _, c := range l.Columns {
				x, ok := s.Ratio[c.Key]
				if !ok || x <= 0 {
					continue
				}
				better := x
				if !c.More {
					better = 1 / x
				}
				line.Dots = append(line.Dots, ratioDot{
					X: 100 * max(-3, min(3, math.Log2(better))), Good: better >= 1,
					Name: c.Head, Tip: fmt.Sprintf("%s: ×%.2f", c.Head, x),
				})
			}
			o.Lines = append(o.Lines, line)
		}
	}
	o.Height = len(o.Lines)*barHeight + 2*barHeight
	return o
}

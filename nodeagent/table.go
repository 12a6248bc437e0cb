package nodeagent

import (
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// table prints the header and the pods for people.
func (s Status) table(out io.Writer, wide bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "node %s: %s\n", s.Node, s.Verdict)
	for _, p := range s.parts() {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", p.name, p.State, p.Detail)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	if len(s.Pods) == 0 {
		fmt.Fprintln(out, "no pods in the mesh")
	} else if err := s.podTable(out, wide); err != nil {
		return err
	}
	if len(s.Problems) > 0 {
		fmt.Fprintln(out, "\nproblems:")
		for _, p := range s.Problems {
			fmt.Fprintf(out, "  %s\n", p)
		}
	}
	return nil
}

func (s Status) podTable(out io.Writer, wide bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	head := "NAMESPACE\tPOD\tIPS\tNETNS\tREDIRECTION\tLISTENERS\tIDENTITY\tEXPIRES IN\tIN\tOUT\tOUTSIDE"
	if wide {
		head += "\tSTATE\tSINCE\tAUDIT\tCERTIFICATE\tUID\tNETNS PATH\tREASON"
	}
	fmt.Fprintln(w, head)
	for _, p := range s.Pods {
		row := append([]string{p.Namespace, p.Name, orNone(strings.Join(p.IPs, ",")), p.netnsName()}, p.redirectionCell(wide))
		row = append(row, p.proxyCells(s.Time)...)
		row = append(row, p.outsideCell(wide))
		if wide {
			since := "-"
			if p.Since != nil {
				since = ago(s.Time.Sub(*p.Since))
			}
			row = append(row, p.State, since, orNone(p.Audit), p.known(p.Certificate), p.UID, orNone(p.Netns), orNone(p.Reason))
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

func (p PodStatus) netnsName() string {
	if p.Netns == "" {
		return "-"
	}
	return filepath.Base(p.Netns)
}

// redirectionCell keeps the narrow table narrow: what differs is in the list of
// problems as well.
func (p PodStatus) redirectionCell(wide bool) string {
	if word, _, long := strings.Cut(p.Redirection, ":"); long && !wide {
		return word
	}
	return p.Redirection
}

// proxyCells are those that only the proxy knows: listeners, identity, time to
// expiry, connections in and out.
func (p PodStatus) proxyCells(now time.Time) []string {
	if p.State == "left" || p.State == "absent" {
		return []string{"-", "-", "-", "-", "-"}
	}
	expires := "-"
	if p.Expires != nil {
		expires = ago(p.Expires.Sub(now))
		if !p.Expires.After(now) {
			expires = "expired"
		}
	}
	return []string{
		p.known(strings.Join(p.Listeners, ",")), p.known(p.Identity), p.known(expires),
		p.known(strconv.Itoa(p.Inbound)), p.known(strconv.Itoa(p.Outbound)),
	}
}

// known is a cell of the proxy's, or the word for that it could not be asked.
func (p PodStatus) known(s string) string {
	if !p.Proxy && p.State != "left" && p.State != "absent" {
		return Unknown
	}
	return orNone(s)
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// outsideCell is the connections that go on outside the mesh.
func (p PodStatus) outsideCell(wide bool) string {
	switch {
	case p.State != "enrolled":
		return "-"
	case wide:
		return because(strconv.Itoa(p.Outside), p.OutsideNote)
	default:
		return strconv.Itoa(p.Outside)
	}
}

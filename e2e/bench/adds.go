package bench

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/warren-mesh/warren/e2e/onehost"
)

const (
	addsID    = "cni/add"
	addsTitle = "CNI ADD: what each plugin takes"
	addsPods  = 20
)

var colMS = column{"ms", "ms", "%.1f", false}

// adds creates pods on a whole mesh, one after the other, and reports what each
// plugin took: every pod is a round.
func (b *bench) adds(ctx context.Context) (err error) {
	b.made++
	prefix := fmt.Sprintf("%s%d-%d", prefix, os.Getpid(), b.made)
	dir, err := os.MkdirTemp("", prefix+"-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	m, err := onehost.New(ctx, onehost.Options{Prefix: prefix, Dir: dir, Bins: b.Bins, Nodes: 1, NoWire: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := errors.Join(m.PutNamespace(meshNS, map[string]string{"istio.io/dataplane-mode": "ambient"}), m.PutNamespace(plainNS, nil)); err != nil {
		return err
	}
	r := &LoadReport{ID: addsID, Title: addsTitle, Columns: []column{colMS}}
	n := m.Nodes[0]
	for _, ns := range []string{meshNS, plainNS} {
		clear(n.AddTimes)
		for i := range addsPods {
			p, err := n.AddPod(ctx, onehost.PodSpec{Namespace: ns, Name: fmt.Sprintf("add-%d", i), ServiceAccount: "add"})
			if err != nil {
				return err
			}
			if err := p.Delete(ctx); err != nil {
				return err
			}
		}
		for _, plugin := range []string{"bridge", "warren-cni"} {
			s := &SubjectReport{Name: plugin + ", " + map[string]string{meshNS: "in the mesh", plainNS: "outside"}[ns]}
			for _, t := range n.AddTimes[plugin] {
				s.Rounds = append(s.Rounds, figures{colMS.Key: float64(t.Microseconds()) / 1000})
			}
			if len(s.Rounds) == 0 {
				return fmt.Errorf("no ADD of %s was seen", plugin)
			}
			r.Subjects = append(r.Subjects, s)
		}
	}
	r.sum()
	b.report.Loads = append(b.report.Loads, r)
	r.print(b.out)
	return nil
}

package onehost

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// CA runs `controlplane ca` beside the control plane, and returns what it prints.
func (m *Mesh) CA(ctx context.Context, args ...string) (string, error) {
	args = append(append([]string{"ca"}, args...), "--state-dir", m.controlPlaneDir())
	out, err := exec.CommandContext(ctx, filepath.Join(m.Opts.Bins, "controlplane"), args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("controlplane %v: %w: %s", args, err, out)
	}
	return string(out), err
}

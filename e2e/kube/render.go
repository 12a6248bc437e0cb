package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Renderer makes manifests out of this tree's chart and kustomize folders.
type Renderer struct {
	Helm string // $E2E_HELM, helm itself

	program string   // $E2E_RENDER
	folder  string   // with the manifests
	values  []string // name=value, that this cluster needs
}

// NewRenderer is for $E2E_RENDER, the program that renders, which looks for the
// manifests in $E2E_MANIFESTS_DIR, and sets $E2E_VALUES, separated by spaces.
func NewRenderer() (*Renderer, error) {
	r := &Renderer{Helm: os.Getenv("E2E_HELM"), program: os.Getenv("E2E_RENDER"), folder: os.Getenv("E2E_MANIFESTS_DIR"), values: strings.Fields(os.Getenv("E2E_VALUES"))}
	if r.program == "" {
		return nil, errors.New("E2E_RENDER is not set: name the program that `make render` builds, as `make e2e-kube` does")
	}
	if r.folder == "" {
		r.folder = filepath.Join("..", "..", "manifests")
	}
	return r, nil
}

// Chart renders the chart as this cluster has it, with further arguments.
func (r *Renderer) Chart(ctx context.Context, args ...string) (Objects, error) {
	all := []string{"chart"}
	for _, v := range r.values {
		all = append(all, "-set", v)
	}
	return r.run(ctx, append(append(all, args...), filepath.Join(r.folder, "charts", "warren"))...)
}

// Hooks are what helm runs beside what it installs, in order.
func (r *Renderer) Hooks(ctx context.Context) (Objects, error) { return r.Chart(ctx, "-hooks") }

// HelmRelease is the name that Release gives.
const HelmRelease = "warren"

// Release are the arguments by which helm installs or upgrades the chart as this cluster
// has it, with further values, and waits.
func (r *Renderer) Release(command string, values ...string) []string {
	args := []string{command, HelmRelease, filepath.Join(r.folder, "charts", "warren"), "--namespace", SystemNamespace, "--wait", "--timeout", "5m"}
	for _, v := range slices.Concat(r.values, values) {
		args = append(args, "--set", v)
	}
	return args
}

// Set are the arguments that set values.
func Set(values ...string) (args []string) {
	for _, v := range values {
		args = append(args, "-set", v)
	}
	return args
}

// Overlays are the kustomize folders that one applies.
func (r *Renderer) Overlays() ([]string, error) {
	return filepath.Glob(filepath.Join(r.folder, "kustomize", "overlays", "*"))
}

// Profiles are the files of values that come with the chart.
func (r *Renderer) Profiles() ([]string, error) {
	return filepath.Glob(filepath.Join(r.folder, "charts", "warren", "profiles", "*.yaml"))
}

// Kustomize renders a kustomize folder.
func (r *Renderer) Kustomize(ctx context.Context, folder string) (Objects, error) {
	return r.run(ctx, "kustomize", folder)
}

func (r *Renderer) run(ctx context.Context, args ...string) (Objects, error) {
	cmd := exec.CommandContext(ctx, r.program, args...)
	var told bytes.Buffer
	cmd.Stderr = &told
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("E2E_RENDER: %s %s: %w: %s", r.program, strings.Join(args, " "), err, told.Bytes())
	}
	return ParseObjects(text)
}

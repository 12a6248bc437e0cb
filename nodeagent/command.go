package nodeagent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// Exit statuses of `nodeagent status`.
const (
	exitDegraded   = 1
	exitCannotTell = 2
)

// ExitError ends the program with a status and, if Err is set, a message.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return e.Err.Error()
}

func (e *ExitError) Unwrap() error { return e.Err }

// Command is the whole program. Its output goes to the command's own writers.
func Command() *cobra.Command {
	root := &cobra.Command{
		Use:           "nodeagent",
		Short:         "The agent of one node of the mesh",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		serveCommand("run", "Take this node's pods into the mesh", "", Run),
		serveCommand("uninstall", "Take everything of the mesh from this node", `Take everything of the mesh from this node: the plugin and its configuration, the
pods' rules and annotations, the host's rules, and the state. Pods keep running and
keep their network. No agent may run here. Give it the flags that the agent had.`, Uninstall),
		leaveCommand(), statusCommand())
	return root
}

// serveCommand is a command that works with an agent's configuration.
func serveCommand(use, short, long string, run func(context.Context, Config, *slog.Logger) error) *cobra.Command {
	cfg := Defaults()
	cfg.NodeName = os.Getenv("NODE_NAME") // the downward API's way
	cfg.RunDir = cmp.Or(os.Getenv("WARREN_RUN_DIR"), cfg.RunDir)
	var level slog.Level
	var format string
	var mistakes func() error
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Long:  long,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var h slog.Handler
			opts := &slog.HandlerOptions{Level: level}
			switch format {
			case "text":
				h = slog.NewTextHandler(cmd.ErrOrStderr(), opts)
			case "json":
				h = slog.NewJSONHandler(cmd.ErrOrStderr(), opts)
			default:
				return errors.Join(fmt.Errorf("--log-format: %q is neither text nor json", format), mistakes(), cfg.Validate())
			}
			if err := errors.Join(mistakes(), cfg.Validate()); err != nil {
				return err
			}
			return run(cmd.Context(), cfg, slog.New(h))
		},
	}
	cfg.RegisterFlags(cmd.Flags())
	cmd.Flags().TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	cmd.Flags().StringVar(&format, "log-format", "text", "text or json")
	mistakes = collectMistakes(cmd.Flags())
	return cmd
}

// statusOptions are the flags of `nodeagent status`.
type statusOptions struct {
	runDir   string
	output   string
	pod      string
	all      bool
	watch    bool
	interval time.Duration
}

func statusCommand() *cobra.Command {
	var o statusOptions
	var mistakes func() error
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say how this node is",
		Long: `Say how this node is: a line for each thing it depends on, and a row for each pod.
The exit status is 0 when all is well, 1 when something is not, and 2 when that
cannot be told, because the agent does not answer or there is no such pod.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.NoArgs(cmd, args); err != nil {
				return &ExitError{exitCannotTell, err}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(mistakes(), o.validate()); err != nil {
				return &ExitError{exitCannotTell, err}
			}
			return o.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &ExitError{exitCannotTell, err} })
	f := cmd.Flags()
	f.StringVar(&o.runDir, "run-dir", cmp.Or(os.Getenv("WARREN_RUN_DIR"), Defaults().RunDir), "folder of the agent's sockets")
	f.StringVarP(&o.output, "output", "o", "table", "table, wide, json or yaml")
	f.StringVar(&o.pod, "pod", "", "only this pod: NAME or NAMESPACE/NAME")
	f.BoolVar(&o.all, "all", false, "pods outside the mesh as well")
	f.BoolVarP(&o.watch, "watch", "w", false, "look again and again")
	f.DurationVar(&o.interval, "interval", 2*time.Second, "time between looks, with --watch")
	mistakes = collectMistakes(f)
	return cmd
}

func (o statusOptions) validate() error {
	var errs []error
	switch o.output {
	case "table", "wide", "json", "yaml":
	default:
		errs = append(errs, fmt.Errorf("--output: %q is none of table, wide, json and yaml", o.output))
	}
	if o.interval < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("--interval: %s is less than 100ms", o.interval))
	}
	return errors.Join(errs...)
}

// run prints the status once, or until ctx ends.
func (o statusOptions) run(ctx context.Context, out io.Writer) error {
	for {
		result := o.once(ctx, out)
		if !o.watch {
			return result
		}
		if e := new(ExitError); errors.As(result, &e) && e.Err != nil {
			fmt.Fprintln(out, clean(e.Error()))
		}
		timer := time.NewTimer(o.interval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return result
		case <-timer.C:
		}
		o.separate(out)
	}
}

// separate begins a new look: on a terminal it takes the place of the last one.
func (o statusOptions) separate(out io.Writer) {
	if f, ok := out.(*os.File); ok && (o.output == "table" || o.output == "wide") {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			fmt.Fprint(out, "\x1b[H\x1b[2J")
			return
		}
	}
	if o.output == "yaml" {
		fmt.Fprintln(out, "---")
	} else if o.output != "json" {
		fmt.Fprintln(out)
	}
}

func (o statusOptions) once(ctx context.Context, out io.Writer) error {
	st, err := fetchStatus(ctx, filepath.Join(o.runDir, statusSocket))
	if err != nil {
		return &ExitError{exitCannotTell, fmt.Errorf("the node agent does not answer: %w", err)}
	}
	if o.pod != "" && !st.only(o.pod) {
		return &ExitError{exitCannotTell, fmt.Errorf("the node agent knows no pod %s on this node", clean(o.pod))}
	}
	if !o.all && o.pod == "" && (o.output == "table" || o.output == "wide") {
		st.hideOutsiders()
	}
	if err := o.print(out, st); err != nil {
		return &ExitError{exitCannotTell, err}
	}
	if st.Verdict != Healthy {
		return &ExitError{Code: exitDegraded}
	}
	return nil
}

func (o statusOptions) print(out io.Writer, st Status) (err error) {
	var b []byte
	switch o.output {
	case "json":
		b, err = json.MarshalIndent(st, "", "  ")
		b = append(b, '\n')
	case "yaml":
		b, err = yaml.Marshal(st)
	default:
		return st.table(out, o.output == "wide")
	}
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}

// fetchStatus asks the agent. Every string in the answer is cleaned here, so
// that no way of printing it has to.
func fetchStatus(ctx context.Context, path string) (st Status, err error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: unixTransport(path)}
	var any any
	if err := getJSON(ctx, client, "http://agent/status", maxAdmin, &any); err != nil {
		return st, err
	}
	b, err := json.Marshal(cleanAll(any))
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("its answer: %w", err)
	}
	return st, nil
}

// only keeps one pod and judges anew; false if there is none.
func (s *Status) only(pod string) bool {
	var kept []PodStatus
	for _, p := range s.Pods {
		if pod == p.Name || pod == p.Namespace+"/"+p.Name {
			kept = append(kept, p)
		}
	}
	s.Pods, s.Problems = kept, nil
	s.judge()
	return len(kept) > 0
}

// hideOutsiders leaves out the pods that are outside the mesh and belong there.
func (s *Status) hideOutsiders() {
	var kept []PodStatus
	for _, p := range s.Pods {
		if p.State != "left" || p.Problem != "" {
			kept = append(kept, p)
		}
	}
	s.Pods = kept
}

// clean makes text from elsewhere harmless to a terminal: what does not print
// is written as an escape.
func clean(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n' || r == '\t':
			b.WriteByte(' ')
		case r == '\uFFFD' || !unicode.IsPrint(r):
			fmt.Fprintf(&b, "\\u%04x", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func cleanAll(v any) any {
	switch v := v.(type) {
	case string:
		return clean(v)
	case []any:
		for i := range v {
			v[i] = cleanAll(v[i])
		}
	case map[string]any:
		for k := range v { // the keys are those of Status, or dropped
			v[k] = cleanAll(v[k])
		}
	}
	return v
}

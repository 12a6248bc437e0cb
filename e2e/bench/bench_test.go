package bench_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/bench"
	"github.com/warren-mesh/warren/e2e/onehost"
)

// bins is the folder with the programs under test.
var bins string

// TestMain is also the server end, the control plane and what follows it as a control:
// the bench starts its own executable.
func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if len(os.Args) > 1 && slices.Contains([]string{"-serve", "-follow", "-play"}, os.Args[1]) {
		fs := flag.NewFlagSet("child", flag.ContinueOnError)
		addr, overTLS := fs.String("serve", "", ""), fs.String("serve-tls", "", "")
		cert, board := fs.String("cert", "", ""), fs.String("board", "", "")
		follow, play, root := fs.String("follow", "", ""), fs.String("play", "", ""), fs.String("root", "", "")
		orders, size := fs.String("orders", "", ""), fs.Int("size", 0, "")
		if err := fs.Parse(os.Args[1:]); err != nil {
			return 1, err
		}
		ctx := context.Background()
		switch os.Args[1] {
		case "-follow":
			return 0, bench.Follow(ctx, *follow, *root)
		case "-play":
			return 0, bench.Play(ctx, *play, *root, *orders, *size)
		}
		return 0, bench.ServeEnds(ctx, *addr, *overTLS, *cert, *board)
	}
	var done func()
	var err error
	if bins, done, err = onehost.Programs(); err != nil {
		return 1, err
	}
	defer done()
	if bins == "" {
		return 0, nil
	}
	return m.Run(), nil
}

// TestSmoke runs a few loads for a moment, so that the bench does not rot. It
// asks that there are figures, not what they are.
func TestSmoke(t *testing.T) {
	var c bench.Config
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	c.RegisterFlags(fs)
	dir := t.TempDir()
	jsonFile, htmlFile := filepath.Join(dir, "report.json"), filepath.Join(dir, "report.html")
	if err := fs.Parse([]string{
		"-bin", bins, "-rounds", "1", "-warm", "50ms", "-length", "100ms", "-idle", "50", "-crowd", "3", "-alone=false",
		"-json", jsonFile, "-html", htmlFile, "-only", "hbone/(bulk-(up|down)/8|rr-1/16|rr-1-beside|new|idle)|same-node/rr-1/1$|plain-.*/rr-1/16|pods/rr-1/16|xds/100$",
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out strings.Builder
	if err := bench.Run(ctx, c, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	text, err := os.ReadFile(jsonFile)
	if err != nil {
		t.Fatal(err)
	}
	var r bench.Report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	const want = 12
	if len(r.Loads) != want {
		t.Errorf("%d loads, want %d:\n%s", len(r.Loads), want, out.String())
	}
	for _, l := range r.Loads {
		for _, s := range l.Subjects {
			if len(s.Rounds) != 1 || s.Error != "" {
				t.Errorf("%s, %s: %d rounds, error %q", l.ID, s.Name, len(s.Rounds), s.Error)
			}
		}
		if !strings.Contains(out.String(), "["+l.ID+"]") {
			t.Errorf("%s is not in the text", l.ID)
		}
	}
	checkPage(t, htmlFile, len(r.Loads))
	left, err := onehost.Leftovers(fmt.Sprintf("wbench%d", os.Getpid()))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// checkPage asks that the page shows all tables and loads nothing.
func checkPage(t *testing.T, file string, tables int) {
	t.Helper()
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(page), "<table>"); n != tables {
		t.Errorf("%d tables in the page, want %d", n, tables)
	}
	if found := regexp.MustCompile(`(?i)(src|href)=|url\(|@import|ZgotmplZ`).Find(page); found != nil {
		t.Errorf("the page has %q: it must need nothing else", found)
	}
}

// TestInterrupted asks that nothing is left when a run ends early.
func TestInterrupted(t *testing.T) {
	var c bench.Config
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	c.RegisterFlags(fs)
	if err := fs.Parse([]string{"-bin", bins, "-only", "hbone/rr-1/16", "-alone=false", "-length", "1h"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var out strings.Builder
	if err := bench.Run(ctx, c, &out); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the context's\n%s", err, out.String())
	}
	left, err := onehost.Leftovers(fmt.Sprintf("wbench%d", os.Getpid()))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

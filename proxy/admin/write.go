package admin

import (
	"bufio"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"time"
)

// readTime is how long a client may take to read some of a dump.
const readTime = 30 * time.Second

// configDump writes the whole state. That of a large mesh is many times what the proxy
// needs for it, so it is written as it is made, and one at a time; the others wait.
func (s Source) configDump() http.Handler {
	turn := make(chan struct{}, 1)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-r.Context().Done():
			http.Error(w, "another dump is being read", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		v, out := s.View(), patient{w, http.NewResponseController(w)}
		if r.URL.Query().Get("format") == "legacy" {
			e := json.NewEncoder(out)
			e.SetIndent("", "  ")
			_ = e.Encode(s.legacy(v)) // the client left
			return
		}
		_ = writeSections(out, s.dump(v))
	})
}

// patient gives the client time for each piece.
type patient struct {
	w    io.Writer
	conn *http.ResponseController
}

func (p patient) Write(b []byte) (int, error) {
	_ = p.conn.SetWriteDeadline(time.Now().Add(readTime)) // a recorder has none
	return p.w.Write(b)
}

// section is a member of a large object: a value, or a list of which one item at a time
// is made.
type section struct {
	name  string
	value any
	items iter.Seq[any]
}

// each makes what is shown of what is there.
func each[T, J any](list []T, show func(T) J) iter.Seq[any] {
	return func(yield func(any) bool) {
		for _, v := range list {
			if !yield(show(v)) {
				return
			}
		}
	}
}

// writeSections writes an object as json.MarshalIndent would. What has been written
// already when there is an error is no JSON.
func writeSections(to io.Writer, all []section) error {
	w := bufio.NewWriterSize(to, 64<<10) // keeps the first error
	sep := "{\n  "
	for _, s := range all {
		_, _ = w.WriteString(sep + `"` + s.name + `": `)
		sep = ",\n  "
		if err := s.write(w); err != nil {
			return err
		}
	}
	_, _ = w.WriteString("\n}\n")
	return w.Flush()
}

func (s section) write(w *bufio.Writer) error {
	if s.items == nil {
		return indented(w, s.value, "  ")
	}
	sep, end := "[\n    ", "[]"
	for item := range s.items {
		if _, err := w.WriteString(sep); err != nil {
			return err
		}
		if err := indented(w, item, "    "); err != nil {
			return err
		}
		sep, end = ",\n    ", "\n  ]"
	}
	_, err := w.WriteString(end)
	return err
}

func indented(w *bufio.Writer, v any, prefix string) error {
	b, err := json.MarshalIndent(v, prefix, "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

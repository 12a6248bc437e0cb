package admin

import (
	"bufio"
	"encoding/json"
	"io"
	"iter"
	"maps"
	"net/http"
	"slices"
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
		sections := s.dump
		if r.URL.Query().Get("format") == "legacy" {
			sections = s.legacy
		}
		_ = writeSections(out, sections(v)) // the client left
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

// section is a member of a large object: a value, or a list or an object of which one item
// or member at a time is made.
type section struct {
	name    string
	value   any
	items   iter.Seq[any]
	members iter.Seq2[string, any]
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

// eachOf makes what is shown of what is there, in the order of names; nil is left out.
func eachOf[T any](all map[string]T, show func(name string, v T) any) iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if v := show(name, all[name]); v != nil && !yield(name, v) {
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
	switch {
	case s.items != nil:
		return writeMany(w, "[]", func(yield func(string, any) bool) {
			for item := range s.items {
				if !yield("", item) {
					return
				}
			}
		})
	case s.members != nil:
		return writeMany(w, "{}", func(yield func(string, any) bool) {
			for name, v := range s.members {
				key, err := json.Marshal(name)
				if err != nil || !yield(string(key)+": ", v) { // a text never is an error
					return
				}
			}
		})
	}
	return indented(w, s.value, "  ")
}

// writeMany writes values between brackets, each after its prefix.
func writeMany(w *bufio.Writer, brackets string, values iter.Seq2[string, any]) error {
	sep, end := brackets[:1]+"\n    ", brackets
	for prefix, v := range values {
		if _, err := w.WriteString(sep + prefix); err != nil {
			return err
		}
		if err := indented(w, v, "    "); err != nil {
			return err
		}
		sep, end = ",\n    ", "\n  "+brackets[1:]
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

package client

import "slices"

// turn is what is given back in one message, and asked for in the next. Either may be
// nothing.
type turn struct{ leave, enter []string }

// turns divides names among messages of a bounded size. What is given back to be asked for
// anew is asked for in the very next message: after another one in between it would be gone.
func turns(leave, enter []string) []turn {
	wanted := make(map[string]struct{}, len(enter))
	for _, name := range enter {
		wanted[name] = struct{}{}
	}
	var list []turn
	for names := range slices.Chunk(unique(leave), maxNamesSent) {
		t := turn{leave: names}
		for _, name := range names {
			if _, anew := wanted[name]; anew {
				t.enter = append(t.enter, name)
				delete(wanted, name)
			}
		}
		list = append(list, t)
	}
	rest := slices.DeleteFunc(unique(enter), func(name string) bool { _, yet := wanted[name]; return !yet })
	if n := len(list); n > 0 {
		last := &list[n-1]
		room := min(len(rest), maxNamesSent-len(last.enter))
		last.enter, rest = append(last.enter, rest[:room]...), rest[room:]
	}
	for names := range slices.Chunk(rest, maxNamesSent) {
		list = append(list, turn{enter: names})
	}
	return list
}

// unique is a copy of names in their order, each once.
func unique(names []string) []string {
	seen := make(map[string]struct{}, len(names))
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		_, again := seen[name]
		seen[name] = struct{}{}
		return again
	})
}

package install

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/warren-mesh/warren/cni/conflist"
)

// scene is all that a plan depends on.
type scene struct {
	files     []file // in the order of names
	dir       string // for messages
	confName  string
	chained   bool
	own       string // name of our own file
	anyBinDir bool
	bins      string                // for messages
	hasBin    func(typ string) bool // a plugin's binary is there
	entry     conflist.Entry
	settle    time.Duration
	lostFor   time.Duration // that the primary of our copy has not been there
}

// plan is what is to be done. Its zero value leaves everything as it is.
type plan struct {
	primary string // the file that the network comes from; empty: none yet
	target  string // the file that is to hold our entry; empty: none
	base    file   // target as it is, if it is changed in place
	content []byte // that target is to have; nil: it is as it should be
	inPlace bool   // target is the primary's own file

	strip  []edit   // files that are to lose our entry, once target has it
	remove []string // copies of ours that are to go, once target has it

	wait     string   // what is waited for, in words
	refused  error    // why the primary's file is left as it is
	problems []string // what somebody should look at
	soon     bool     // a file is being written: look again in a moment
}

// edit is the new content of a file that is there.
type edit struct {
	base    file
	content []byte
}

// plan decides.
func (s scene) plan() plan {
	var p plan
	primary, ok := s.choose(&p)
	if !ok {
		return p
	}
	p.primary = primary.name
	if err := s.binariesElsewhere(primary); err != nil {
		p.refused = err
		return p
	}
	var err error
	if p.inPlace = s.goesInPlace(primary); p.inPlace {
		err = s.planInPlace(&p, primary)
	} else {
		err = s.planCopy(&p, primary)
	}
	if err == nil && p.content != nil {
		err = readable(p.target, p.content)
	}
	if err != nil {
		p.refused = fmt.Errorf("%s/%s is left as it is: %w", s.dir, primary.name, err)
		p.target, p.content = "", nil
		return p
	}
	s.planRest(&p)
	return p
}

// choose finds the primary's file, or says why there is none.
func (s scene) choose(p *plan) (file, bool) {
	if s.confName != "" {
		return s.chooseNamed(p)
	}
	var meta *file
	for _, f := range s.files {
		switch f.kind {
		case broken:
			if f.ourName(s.own) {
				continue // planCopy writes it anew, or planRest removes it
			}
			if f.brokenFor < s.settle {
				// It is being written, or was left so; either way it is not passed
				// over for another one at once.
				p.soon = true
				p.wait = fmt.Sprintf("%s/%s to become whole: %v", s.dir, f.name, f.why)
				return file{}, false
			}
			p.problems = append(p.problems, fmt.Sprintf("%s/%s is left as it is and passed over (containerd takes no network at all while it is there): %v", s.dir, f.name, f.why))
		case multus:
			if meta == nil {
				meta = &f
			}
		case network:
			return f, s.mayFollow(p, f)
		}
	}
	if meta != nil {
		return *meta, s.mayFollow(p, *meta)
	}
	p.wait = fmt.Sprintf("the primary CNI to put its network configuration into %s", s.dir)
	return file{}, false
}

// mayFollow keeps our copy as it is for a moment when its primary's file
// vanishes and another one comes first: some write by removing and making anew.
// (Without a copy runtimes have taken that other one already.)
func (s scene) mayFollow(p *plan, next file) bool {
	old, there := s.find(s.own)
	if s.chained || !there || old.kind != ours || s.lostFor >= s.settle {
		return true
	}
	was := conflist.CopyOf(old.data)
	if _, there := s.find(was); there {
		return true
	}
	p.soon = true
	p.wait = fmt.Sprintf("%s/%s, which is gone, to come back before %s is taken for the primary CNI's file", s.dir, was, next.name)
	return false
}

func (s scene) chooseNamed(p *plan) (file, bool) {
	f, ok := s.find(s.confName)
	switch {
	case !ok:
		p.wait = fmt.Sprintf("%s/%s, which was named as the primary CNI's file", s.dir, s.confName)
	case f.kind == broken:
		p.soon = f.brokenFor < s.settle
		p.wait = fmt.Sprintf("%s/%s to become whole: %v", s.dir, f.name, f.why)
	case f.kind == ours:
		p.wait = fmt.Sprintf("the primary CNI's file: %s/%s, which was named as it, is a copy that we made", s.dir, f.name)
	default:
		return f, true
	}
	return file{}, false
}

func (s scene) find(name string) (file, bool) {
	for _, f := range s.files {
		if f.name == name {
			return f, true
		}
	}
	return file{}, false
}

// binariesElsewhere refuses to chain where the runtime evidently finds plugins
// in another folder: it would not find ours, and start no pod any more.
func (s scene) binariesElsewhere(primary file) error {
	types := primary.primaryTypes()
	if s.anyBinDir || len(types) == 0 || slices.ContainsFunc(types, s.hasBin) {
		return nil
	}
	return fmt.Errorf("%s/%s is left as it is: none of its plugins (%s) is in %s, so that the runtime would not find ours there either; name the folder that this node's runtime takes plugins from, or its platform, or say that several folders are searched",
		s.dir, primary.name, quoted(types), s.bins)
}

// goesInPlace says whether the entry goes into the primary's own file. A link's
// target may be another's, and a single configuration would need another name.
func (s scene) goesInPlace(primary file) bool {
	if primary.single() || primary.info.Link {
		return false
	}
	return s.chained || s.besideMultus(primary)
}

// besideMultus says whether multus reads the primary's file, and must go on
// coming first.
func (s scene) besideMultus(primary file) bool {
	return primary.kind == network && slices.ContainsFunc(s.files, func(f file) bool { return f.kind == multus })
}

func (s scene) planInPlace(p *plan, primary file) error {
	added, err := conflist.Add(primary.data, s.entry)
	if err != nil {
		return err
	}
	p.target, p.base = primary.name, primary
	if !bytes.Equal(added, primary.data) {
		p.content = added
	}
	return nil
}

func (s scene) planCopy(p *plan, primary file) error {
	name := s.own
	if s.chained || s.besideMultus(primary) {
		name = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(primary.name, ".conflist"), ".conf"), ".json") + copySuffix
	}
	old, there := s.find(name)
	// A broken file of our own name, before all others, can only be a copy that
	// somebody has damaged.
	if there && old.kind != ours && old.kind != broken {
		return fmt.Errorf("%s, which our copy of it is to be called, is somebody else's", name)
	}
	if err := s.sortsFirst(name, primary); err != nil {
		return err
	}
	data := primary.data
	if without, err := conflist.Remove(data); err == nil {
		data = without // as planRest leaves it: the next plan makes the same copy of that
	}
	content, err := conflist.Copy(data, primary.name, s.entry, s.gone, s.guests(primary, old)...)
	if err != nil {
		return err
	}
	p.target, p.base = name, old
	p.base.info.Mode, p.base.info.UID, p.base.info.GID = primary.info.Mode, primary.info.UID, primary.info.GID
	if !bytes.Equal(content, old.data) {
		p.content = content
	}
	return nil
}

// sortsFirst says what a runtime would take instead of our file.
func (s scene) sortsFirst(name string, primary file) error {
	for _, f := range s.files {
		foreign := f.kind == network || f.kind == guest && !s.chained || f.kind == multus && primary.kind == multus
		if foreign && f.name < name {
			return fmt.Errorf("our copy of it would be called %s, and runtimes would take %s, which sorts before that: name another file for the copy", name, f.name)
		}
	}
	return nil
}

// gone says of another mesh's plugin that its binary is not there any more: its
// owner took it away without knowing of the copy.
func (s scene) gone(p conflist.Plugin) bool { return isGuest(p.Type) && !s.hasBin(p.Type) }

// guests are other meshes' plugins that are not in the primary's file: what they
// put into our copy, taking it for the primary's, and what is in files of their
// own, which our copy hides.
func (s scene) guests(primary, old file) []conflist.Plugin {
	have := primary.types()
	var found []conflist.Plugin
	add := func(f file) {
		for _, g := range f.plugins {
			if isGuest(g.Type) && !slices.Contains(have, g.Type) && !s.gone(g) {
				have, found = append(have, g.Type), append(found, g)
			}
		}
	}
	add(old)
	for _, f := range s.files {
		if f.kind == guest && f.name < primary.name {
			add(f)
		}
	}
	return found
}

// planRest takes our entry from where it should not be, or not any more.
func (s scene) planRest(p *plan) {
	for _, f := range s.files {
		switch {
		case f.name == p.target:
		case f.kind == ours, f.kind == broken && f.ourName(s.own):
			p.remove = append(p.remove, f.name)
		case (f.kind == network || f.kind == multus) && f.has():
			content, err := conflist.Remove(f.data)
			switch {
			case errors.Is(err, conflist.ErrEmpty), err == nil && bytes.Equal(content, f.data):
				p.problems = append(p.problems, fmt.Sprintf("%s/%s holds our plugin and nothing to chain behind; it was not made by us: remove it", s.dir, f.name))
			case err == nil && f.info.Link:
				p.problems = append(p.problems, fmt.Sprintf("%s/%s is a link, and what it leads to holds our plugin: take it out there", s.dir, f.name))
			case err == nil:
				p.strip = append(p.strip, edit{f, content})
			}
		}
	}
}

package install

import (
	"errors"
	"strings"
	"time"
)

// settle deals with what is left of changes: of this installer's last ones, and
// of one that was killed in the middle. It returns when to look again, zero for
// no need.
func (i *Installer) settle(confs folder, linger time.Duration) (again time.Duration, err error) {
	names, err := confs.Names()
	if err != nil {
		return 0, err
	}
	seen := map[string]time.Time{}
	var errs []error
	for _, name := range names {
		if !strings.HasPrefix(name, tmpPrefix) {
			continue
		}
		swap, ok := parseSwapped(name)
		if !ok {
			errs = append(errs, confs.Remove(name)) // half a file
			continue
		}
		since := i.kept[name]
		if since.IsZero() {
			since = time.Now()
		}
		wait, err := confs.settle(swap, linger-time.Since(since))
		errs = append(errs, err)
		if wait > 0 {
			seen[name] = since
			if again == 0 || wait < again {
				again = wait
			}
		}
	}
	i.kept = seen
	return again, errors.Join(errs...)
}

// settle decides about one file beside its place: it is ours and never got
// there; or it came out of there and is needed no more, or may yet be written
// by somebody who has it open, or was newer than what we had read and goes back.
func (d folder) settle(swap swapped, left time.Duration) (wait time.Duration, err error) {
	side, _, err := d.Read(swap.name(), maxConf)
	if err == nil && hash(side) == swap.now {
		return 0, d.Remove(swap.name())
	}
	if err == nil && hash(side) != swap.was {
		return 0, d.putBack(swap)
	}
	in, _, inErr := d.Read(swap.of, maxConf)
	if inErr != nil || hash(in) != swap.now || left <= 0 {
		return 0, d.Remove(swap.name())
	}
	return left, nil
}

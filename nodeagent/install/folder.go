package install

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"

	"github.com/warren-mesh/warren/internal/hostdir"
)

// Names of files that are being written or exchanged. Runtimes do not read them.
// They are in the folder itself: containerd looks again when a name in it goes,
// and not when one comes.
const (
	tmpPrefix = ".warren-cni-"
	tmpSuffix = ".tmp"
)

// newTmp is a name that no other installer has: were there two for a moment,
// neither would put the other's half file in place.
func newTmp() string {
	return fmt.Sprintf("%s%d-%08x%s", tmpPrefix, os.Getpid(), rand.Uint32(), tmpSuffix)
}

// folder is one of the host's; step, if not nil, is called before each change
// and may make it fail.
type folder struct {
	*hostdir.Dir
	tmp  string // the name of a file that is being written
	step func(op, name string) error
}

func (d folder) may(op, name string) error {
	if d.step == nil {
		return nil
	}
	if err := d.step(op, name); err != nil {
		return fmt.Errorf("%s %s/%s: %w", op, d.Path(), name, err)
	}
	return nil
}

// put makes a file, or replaces it, so that readers find the old one or the new
// one, also after a power cut.
func (d folder) put(name string, content io.Reader, like hostdir.Info) error {
	if err := d.prepare(content, like); err != nil {
		return err
	}
	if err := d.rename(d.tmp, name); err != nil {
		return errors.Join(err, d.Remove(d.tmp))
	}
	return d.sync()
}

// prepare writes a whole file under a name that nobody reads.
func (d folder) prepare(content io.Reader, like hostdir.Info) error {
	if err := d.may("write", d.tmp); err != nil {
		return err
	}
	return d.Write(d.tmp, content, like.Mode, like.UID, like.GID)
}

// clean removes what installers that were killed had begun to write.
func (d folder) clean() error {
	names, err := d.Names()
	errs := []error{err}
	for _, name := range names {
		if strings.HasPrefix(name, tmpPrefix) && strings.HasSuffix(name, tmpSuffix) {
			errs = append(errs, d.Remove(name))
		}
	}
	return errors.Join(errs...)
}

func (d folder) rename(from, to string) error {
	if err := d.may("rename", to); err != nil {
		return err
	}
	return d.Rename(from, to)
}

func (d folder) remove(name string) error {
	if err := d.may("remove", name); err != nil {
		return err
	}
	return d.Remove(name)
}

func (d folder) sync() error {
	if err := d.may("sync", ""); err != nil {
		return err
	}
	return d.Sync()
}

// errMeanwhile says that somebody changed a file after it was read; nothing of
// theirs is lost, and the round is to begin anew.
var errMeanwhile = errors.New("it was changed meanwhile")

// replace changes a file from base, as it was read, to content. What others do
// to it at any moment wins.
//
// The new file is complete under another name before it changes places with the
// old one. What comes out is read again: if it is not base, somebody wrote in
// between, and it goes back. It is kept for a while, because somebody may still
// have it open for writing.
func (d folder) replace(base file, content []byte) error {
	swap := swapped{now: hash(content), was: hash(base.data), of: base.name}
	if len(swap.name()) > maxName {
		return fmt.Errorf("change %s/%s: its name is too long to write another file beside it", d.Path(), base.name)
	}
	if err := d.prepare(bytes.NewReader(content), base.info); err != nil {
		return err
	}
	if err := d.Rename(d.tmp, swap.name()); err != nil { // whole, from here on
		return errors.Join(err, d.Remove(d.tmp))
	}
	if info, err := d.Stat(base.name); err != nil || info != base.info {
		return errors.Join(errMeanwhile, d.Remove(swap.name()))
	}
	if err := d.exchange(&swap); err != nil {
		return errors.Join(err, d.Remove(swap.name()))
	}
	if err := d.sync(); err != nil {
		return err // the next round finds out how far this one came
	}
	out, _, err := d.Read(swap.name(), maxConf)
	if err != nil || hash(out) != swap.was {
		return errors.Join(errMeanwhile, d.putBack(swap))
	}
	return nil
}

// exchange puts what is prepared under the swap's name in place, and what was
// there under that name. Where the file system cannot do that at once, the old
// file gets a second name before it is replaced.
func (d folder) exchange(swap *swapped) error {
	err := d.may("exchange", swap.of)
	if err == nil {
		err = d.Exchange(swap.name(), swap.of)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return errMeanwhile
	case !errors.Is(err, errors.ErrUnsupported):
		return err
	}
	prepared := swap.name()
	kept := *swap
	kept.linked = true
	if err := d.Link(swap.of, kept.name()); err != nil {
		return err
	}
	if err := d.Rename(prepared, swap.of); err != nil {
		return errors.Join(err, d.Remove(kept.name()))
	}
	*swap = kept
	return nil
}

// putBack gives the place back to what came out of it, unless somebody else has
// taken it meanwhile. What comes out then is what we had put in, as we had put it
// in; if not, somebody has been there again, and so on.
func (d folder) putBack(swap swapped) error {
	data, info, err := d.Read(swap.of, maxConf)
	if err != nil || hash(data) != swap.now {
		return d.Remove(swap.name()) // somebody removed or replaced what we had put in
	}
	if err := d.may("put back", swap.of); err != nil {
		return err // the next round does it
	}
	if swap.linked {
		return errors.Join(d.Rename(swap.name(), swap.of), d.Sync())
	}
	in, inInfo := data, info
	for range putBackTries {
		put, putInfo, err := d.Read(swap.name(), maxConf)
		if err == nil {
			err = d.Exchange(swap.name(), swap.of)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return d.Remove(swap.name()) // somebody removed what we had put in
		}
		if err != nil {
			return err
		}
		out, outInfo, err := d.Read(swap.name(), maxConf)
		if err != nil {
			return err
		}
		if outInfo.Ino == inInfo.Ino && bytes.Equal(out, in) {
			return errors.Join(d.Remove(swap.name()), d.Sync())
		}
		in, inInfo = put, putInfo
	}
	return fmt.Errorf("put %s/%s back: somebody else writes it all the time", d.Path(), swap.of)
}

const putBackTries = 100

// swapped is a file that is taking, or has left, the place of another one. Its
// name says all that is needed to go on after a crash: what the new content is,
// what the old one was, and of which file.
type swapped struct {
	now, was string // hashes
	of       string
	linked   bool // it is a second name of the old file, made without exchange
}

const (
	maxName    = 255
	hashLen    = 16
	swapSuffix = ".swap"
	linkSuffix = ".link"
)

func (s swapped) name() string {
	suffix := swapSuffix
	if s.linked {
		suffix = linkSuffix
	}
	return tmpPrefix + s.now + "-" + s.was + "-" + s.of + suffix
}

func parseSwapped(name string) (s swapped, ok bool) {
	rest, ok := strings.CutPrefix(name, tmpPrefix)
	if !ok {
		return s, false
	}
	if rest, ok = strings.CutSuffix(rest, swapSuffix); !ok {
		rest, s.linked = strings.CutSuffix(rest, linkSuffix)
		if !s.linked {
			return s, false
		}
	}
	parts := strings.SplitN(rest, "-", 3)
	if len(parts) != 3 || len(parts[0]) != hashLen || len(parts[1]) != hashLen || !runtimeReads(parts[2]) {
		return s, false
	}
	s.now, s.was, s.of = parts[0], parts[1], parts[2]
	return s, true
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])[:hashLen]
}

package hostdir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Write makes a file that is not there yet and puts its content onto the disk.
// If that fails there is no file. Owner is left as it is where it may not be
// changed.
func (d *Dir) Write(name string, content io.Reader, mode fs.FileMode, uid, gid int) (err error) {
	if err := plain(name); err != nil {
		return d.fail("write", name, err)
	}
	f, err := d.at.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return d.fail("write", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(d.fail("write", name, err), d.at.Remove(name))
		}
	}()
	_, err = io.Copy(f, content)
	if uid != os.Geteuid() || gid != os.Getegid() {
		if chownErr := f.Chown(uid, gid); chownErr != nil && !errors.Is(chownErr, fs.ErrPermission) {
			err = errors.Join(err, chownErr)
		}
	}
	// The mode last: a change of owner may take from it.
	return errors.Join(err, f.Chmod(mode.Perm()), f.Sync(), f.Close())
}

// Rename puts a file in the place of another one, or of none, atomically.
func (d *Dir) Rename(from, to string) error {
	if err := errors.Join(plain(from), plain(to)); err != nil {
		return d.fail("put in place", to, err)
	}
	if err := d.at.Rename(from, to); err != nil {
		return d.fail("put in place", to, err)
	}
	return nil
}

// Link gives a file a second name.
func (d *Dir) Link(from, to string) error {
	if err := errors.Join(plain(from), plain(to)); err != nil {
		return d.fail("keep", from, err)
	}
	if err := d.at.Link(from, to); err != nil {
		return d.fail("keep", from, err)
	}
	return nil
}

// Exchange swaps two files atomically: each name always has one of the two, and
// neither file is lost. Its error matches errors.ErrUnsupported where the file
// system cannot.
func (d *Dir) Exchange(a, b string) error {
	if err := errors.Join(plain(a), plain(b)); err != nil {
		return d.fail("exchange", b, err)
	}
	f, err := d.at.Open(".")
	if err != nil {
		return d.fail("exchange", b, err)
	}
	defer f.Close()
	fd := int(f.Fd())
	err = unix.Renameat2(fd, a, fd, b, unix.RENAME_EXCHANGE)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		err = fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
	}
	return d.fail("exchange", b, err)
}

// Remove removes a file. It may be gone.
func (d *Dir) Remove(name string) error {
	if err := plain(name); err != nil {
		return d.fail("remove", name, err)
	}
	if err := d.at.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d.fail("remove", name, err)
	}
	return nil
}

// Sync puts the folder's names onto the disk.
func (d *Dir) Sync() error {
	f, err := d.at.Open(".")
	if err != nil {
		return d.fail("sync", "", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return d.fail("sync", "", err)
	}
	return nil
}

package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"pault.ag/go/debian/deb"
)

// maxPackage bounds what a package unpacks to.
const maxPackage = 256 << 20

// unpack adds the files of a package to the tree. Its scripts are not run; what
// they would do for us is in alternatives. The control file goes where scanners
// look for the packages of images that have no dpkg.
func (t tree) unpack(archive []byte, want Locked) error {
	d, err := deb.Load(bytes.NewReader(archive), want.Name+".deb")
	if err != nil {
		return err
	}
	defer d.Close()
	got := Locked{Arch: d.Control.Architecture.String(), Name: d.Control.Package, Version: d.Control.Version.String(), SHA256: want.SHA256}
	if got.Arch == "all" {
		got.Arch = want.Arch
	}
	if got != want {
		return fmt.Errorf("it is %s", got)
	}
	if err := t.data(d.Data); err != nil {
		return err
	}
	var status bytes.Buffer
	if err := d.Control.Paragraph.WriteTo(&status); err != nil {
		return err
	}
	text := append(bytes.TrimRight(status.Bytes(), " \n"), '\n')
	return t.add(file{Path: "var/lib/dpkg/status.d/" + want.Name, Mode: 0o644, Body: text})
}

// data adds what is in a data.tar and of use at run time.
func (t tree) data(r *tar.Reader) error {
	left := int64(maxPackage)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if left -= h.Size; left < 0 {
			return fmt.Errorf("unpacks to more than %d bytes", maxPackage)
		}
		p := merged(h.Name)
		if unwanted(p) {
			continue
		}
		f := file{Path: p, Mode: fs.FileMode(h.Mode).Perm()}
		switch h.Typeflag {
		case tar.TypeDir:
			continue // made for the files in them
		case tar.TypeSymlink:
			f.Link = h.Linkname
		case tar.TypeLink:
			first, ok := t[merged(h.Linkname)]
			if !ok {
				return fmt.Errorf("/%s is a link to %s, which is not there", p, h.Linkname)
			}
			f.Body, f.Mode = first.Body, first.Mode
		case tar.TypeReg:
			if f.Body, err = io.ReadAll(r); err != nil {
				return err
			}
		default:
			return fmt.Errorf("/%s is neither file nor link", p)
		}
		if err := t.add(f); err != nil {
			return err
		}
	}
}

// merged is the path with bin, sbin and lib where they are in Debian: in usr.
func merged(name string) string {
	p := strings.TrimPrefix(path.Clean("/"+name), "/")
	for _, dir := range []string{"bin/", "sbin/", "lib/", "lib32/", "lib64/"} {
		if strings.HasPrefix(p, dir) {
			return "usr/" + p
		}
	}
	return p
}

// unwanted are documentation, licenses aside, translations and character sets.
func unwanted(p string) bool {
	if strings.HasPrefix(p, "usr/share/") {
		return path.Base(p) != "copyright" && !strings.HasPrefix(p, "usr/share/common-licenses/") && !strings.HasPrefix(p, "usr/share/iptables/")
	}
	dir := path.Dir(p)
	return path.Base(dir) == "gconv" || strings.Contains(dir, "/gconv/") ||
		strings.HasPrefix(p, "etc/") && !inEtc[p] || strings.HasPrefix(p, "usr/bin/")
}

var inEtc = map[string]bool{"etc/os-release": true, "etc/debian_version": true, "etc/protocols": true, "etc/services": true, "etc/ethertypes": true}

// alternatives are the links that the packages' scripts would make: what has no
// variant in its name is nft's, as in Debian.
func (t tree) alternatives() error {
	for _, program := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			target := program + "-nft" + suffix
			if _, ok := t["usr/sbin/"+target]; !ok {
				return fmt.Errorf("the packages have no /usr/sbin/%s", target)
			}
			if err := t.add(file{Path: "usr/sbin/" + program + suffix, Mode: 0o777, Link: target}); err != nil {
				return err
			}
		}
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := t.add(file{Path: dir, Mode: 0o777, Link: "usr/" + dir}); err != nil {
			return err
		}
	}
	return nil
}

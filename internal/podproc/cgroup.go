package podproc

import (
	"errors"
	"strings"
)

// ErrHostile is of control groups that no runtime makes.
var ErrHostile = errors.New("its control groups name more than one pod")

// Place is where a process is among the control groups.
type Place struct {
	UID       string // of the pod, in lower case and with dashes; "" is none
	Container string // 64 hexadecimal digits; "" is none
}

// ParseCgroup reads /proc/N/cgroup: one line for each hierarchy of version 1, and
// one for version 2. Lines that name no pod say nothing. Of those that do all must
// agree.
//
// Below its own group a container with the right to may make others, of any name.
// So the first name of a pod counts, from the top, and the first of a container
// after that; and two pods in one path are a lie.
func ParseCgroup(text string) (p Place, err error) {
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(line, ":")
		_, path, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		got, err := parsePath(strings.TrimSpace(path))
		switch {
		case err != nil:
			return Place{}, err
		case got.UID == "" && p.UID == "":
			// Some runtimes leave the pod out, as far as we can see. Then the
			// container has to say which it is.
			if p.Container == "" {
				p.Container = got.Container
			}
		case got.UID == "":
		case p.UID == "":
			p = got
		case got.UID != p.UID || got.Container != p.Container && got.Container != "" && p.Container != "":
			return Place{}, ErrHostile
		case p.Container == "":
			p.Container = got.Container
		}
	}
	return p, nil
}

func parsePath(path string) (p Place, err error) {
	below := false // kubepods
	for segment := range strings.SplitSeq(path, "/") {
		// containerd's oldest form has two in one.
		for part := range strings.SplitSeq(segment, ":") {
			below = below || strings.Contains(part, "kubepods")
			uid := podUID(part)
			switch {
			case uid != "" && below && p.UID != "":
				return Place{}, ErrHostile
			case uid != "" && below:
				p = Place{UID: uid}
			case p.Container == "":
				p.Container = containerID(part)
			}
		}
	}
	return p, nil
}

// podUID finds the pod in a name such as pod<UID> or
// kubepods-burstable-pod<UID with underscores>.slice. That of a static pod is 32
// digits without anything between them.
func podUID(name string) string {
	name = strings.TrimSuffix(name, ".slice")
	at := strings.LastIndex(name, "pod")
	if at < 0 || at > 0 && name[at-1] != '-' {
		return ""
	}
	uid := strings.ReplaceAll(strings.ToLower(name[at+len("pod"):]), "_", "-")
	if isHex(uid, 32) {
		return uid
	}
	parts := strings.Split(uid, "-")
	if len(parts) != 5 {
		return ""
	}
	for i, n := range []int{8, 4, 4, 4, 12} {
		if !isHex(parts[i], n) {
			return ""
		}
	}
	return uid
}

// containerID finds the container in a name such as <ID>, cri-containerd-<ID>.scope
// or crio-<ID>.
func containerID(name string) string {
	name = strings.TrimSuffix(name, ".scope")
	if at := strings.LastIndexByte(name, '-'); at >= 0 {
		name = name[at+1:]
	}
	if name = strings.ToLower(name); isHex(name, 64) {
		return name
	}
	return ""
}

func isHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}

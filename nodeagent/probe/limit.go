package probe

import (
	"fmt"
	"slices"
	"strings"
)

// Kind says by what a rule tells kubelet's packets from others of the host.
type Kind string

const (
	// ByCgroup: only processes in kubelet's own cgroup.
	ByCgroup Kind = "cgroup"
	// ByUser: any process of the host's network that runs as kubelet's user.
	ByUser Kind = "user"
	// ByNothing: any process of the host's network.
	ByNothing Kind = "host"
)

// Limit is whom the rules let through.
type Limit struct {
	Kind    Kind
	Cgroups []Cgroup // ByCgroup
	Users   []uint32 // ByUser
	Why     string   // why it is not narrower; "" when it is as narrow as can be
}

// Cgroup is a cgroup (v2), as its node's namespace of cgroups sees it.
type Cgroup struct {
	Path string // "system.slice/kubelet.service"
	ID   uint64 // another one once it is made anew, which a restart of its service does
}

// level is the depth of the cgroup below the root.
func (c Cgroup) level() int { return strings.Count(c.Path, "/") + 1 }

func (l Limit) String() string {
	var text string
	switch l.Kind {
	case ByCgroup:
		var paths []string
		for _, c := range l.Cgroups {
			paths = append(paths, c.Path)
		}
		text = "processes in cgroup " + strings.Join(paths, ", ")
	case ByUser:
		var ids []string
		for _, u := range l.Users {
			ids = append(ids, fmt.Sprint(u))
		}
		text = "processes of the host's network that run as user " + strings.Join(ids, ", ")
	default:
		text = "any process of the host's network"
	}
	if l.Why != "" {
		text += " (" + strings.ReplaceAll(l.Why, "\n", "; ") + ")"
	}
	return text
}

func (l Limit) equal(o Limit) bool {
	return l.Kind == o.Kind && slices.Equal(l.Cgroups, o.Cgroups) && slices.Equal(l.Users, o.Users)
}

// kubelet is a process that may be the node's kubelet.
type kubelet struct {
	PID    int
	Start  string // when it started; with the PID, it names one process for ever
	UID    uint32
	Cgroup Cgroup
	Shared string // why its cgroup does not tell it from others
	// Lasting is the outermost cgroup around it that outlives it and holds no
	// pods, such as system.slice; zero where there is none.
	Lasting Cgroup
}

// limitTo is the narrowest limit for the kubelets. lasting wants a cgroup that
// outlives them: with the legacy variant of iptables every change of anybody's
// to the table looks all paths up again, and is refused when one is gone. A
// restart of kubelet would then hold up kube-proxy.
func limitTo(found []kubelet, lasting bool) Limit {
	if len(found) == 0 {
		return Limit{Kind: ByNothing, Why: "no kubelet was found among the host's processes"}
	}
	l := Limit{Kind: ByCgroup}
	users := Limit{Kind: ByUser}
	for _, k := range found {
		c, why := k.Cgroup, k.Shared
		if lasting && why == "" {
			if c = k.Lasting; c.Path == "" {
				why = "no cgroup around kubelet outlives it and holds no pods, as iptables-legacy needs"
			}
		}
		if why != "" {
			users.Why = why
		} else if !slices.Contains(l.Cgroups, c) {
			l.Cgroups = append(l.Cgroups, c)
		}
		if !slices.Contains(users.Users, k.UID) {
			users.Users = append(users.Users, k.UID)
		}
	}
	if users.Why != "" {
		slices.Sort(users.Users)
		return users
	}
	slices.SortFunc(l.Cgroups, func(a, b Cgroup) int { return strings.Compare(a.Path, b.Path) })
	if lasting {
		l.Why = "a cgroup that outlives kubelet, as iptables-legacy needs"
	}
	return l
}

// plainPath says whether a cgroup's path can be written in a rule as it is.
func plainPath(path string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:@/-"
	return path != "" && len(path) < 500 && strings.Trim(path, letters) == "" && !slices.Contains(strings.Split(path, "/"), "..")
}

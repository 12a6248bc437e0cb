package event

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of the values on the wire. Names that become file names, rules or log
// lines on the other side have the alphabets that their owners give them.
const (
	maxName    = 253 // container ID, network, pod and namespace name, UID
	maxIfName  = 15  // IFNAMSIZ - 1
	maxPath    = 4095
	maxIPs     = 64
	maxVirtual = 32
	maxText    = 2048 // messages, details and reasons; longer ones are cut
	// maxValid bounds the attachments of one GC: several times what the largest
	// nodes run.
	maxValid = 16384
)

// check says everything that is wrong with a message. What is in it beside its
// kind's body is an error too.
func (m message) check() error {
	bodies := 0
	for _, set := range []bool{m.Add != nil, m.Del != nil, m.Check != nil, m.GC != nil, m.How != "", m.Answer != nil, m.Error != nil} {
		if set {
			bodies++
		}
	}
	has, err := m.body()
	switch {
	case err != nil:
		return err
	case !has:
		return errors.New("its body is missing")
	case m.Kind == kindStatus || m.Kind == kindDone:
		if bodies > 0 {
			return errors.New("a body, there is none of that kind")
		}
	case bodies != 1:
		return errors.New("the body of another kind")
	}
	return nil
}

// body says whether the body of the message's kind is there, and checks it.
func (m message) body() (has bool, err error) {
	switch m.Kind {
	case kindStatus, kindDone:
		return true, nil
	case kindAdd:
		if m.Add == nil {
			return false, nil
		}
		return true, m.Add.check()
	case kindDel:
		if m.Del == nil {
			return false, nil
		}
		return true, errors.Join(m.Del.Key.Validate(), checkUID(m.Del.PodUID))
	case kindCheck:
		if m.Check == nil {
			return false, nil
		}
		return true, m.Check.Validate()
	case kindGC:
		if m.GC == nil {
			return false, nil
		}
		return true, m.GC.check()
	case kindProgrammed:
		return m.How != "", oneOf("how", m.How, ByPlugin, ByAgent)
	case kindAnswer:
		if m.Answer == nil {
			return false, nil
		}
		return true, m.Answer.check()
	case kindError, kindFailed:
		if m.Error == nil {
			return false, nil
		}
		return true, errors.Join(checkText("msg", m.Error.Msg), checkText("details", m.Error.Details))
	}
	return false, errors.New("unknown kind")
}

// Validate says what is wrong with a key.
func (k Key) Validate() error {
	err := checkName("containerID", k.ContainerID)
	if !validIfName(k.IfName) {
		err = errors.Join(err, fmt.Errorf("interface name %.32q", k.IfName))
	}
	return err
}

func (a Add) check() error {
	errs := []error{
		a.Key.Validate(), checkName("network", a.Network), checkName("pod name", a.PodName),
		checkName("pod namespace", a.PodNamespace), checkUID(a.PodUID),
	}
	if len(a.IPs) > maxIPs {
		errs = append(errs, fmt.Errorf("%d addresses, at most %d are allowed", len(a.IPs), maxIPs))
	}
	for _, p := range a.IPs {
		if !p.IsValid() || p.Addr().Is4In6() {
			errs = append(errs, fmt.Errorf("address %s", p))
		}
	}
	if len(a.Netns) > maxPath || strings.ContainsFunc(a.Netns, unicode.IsControl) {
		errs = append(errs, errors.New("netns path"))
	}
	return errors.Join(errs...)
}

func (g gcReq) check() error {
	errs := []error{checkName("network", g.Network)}
	for _, k := range g.Valid { // their number is bounded by the packet
		errs = append(errs, k.Validate())
	}
	return errors.Join(errs...)
}

func (a Answer) check() error {
	errs := []error{oneOf("action", a.Action, Leave, RedirectSo), checkText("reason", a.Reason)}
	if (a.Action == RedirectSo) != (a.Redirect != nil) {
		errs = append(errs, fmt.Errorf("action %.32q and its redirect do not belong together", a.Action))
	}
	if a.Redirect != nil {
		errs = append(errs, a.Redirect.check())
	}
	return errors.Join(errs...)
}

func (r Redirect) check() error {
	var errs []error
	if len(r.VirtualInterfaces) > maxVirtual {
		errs = append(errs, fmt.Errorf("%d virtual interfaces, at most %d are allowed", len(r.VirtualInterfaces), maxVirtual))
	}
	for _, name := range r.VirtualInterfaces {
		if !validIfName(name) {
			errs = append(errs, fmt.Errorf("virtual interface %.32q", name))
		}
	}
	if r.ProbeIP4 != (netip.Addr{}) && !r.ProbeIP4.Is4() {
		errs = append(errs, fmt.Errorf("IPv4 probe address %s", r.ProbeIP4))
	}
	if r.ProbeIP6 != (netip.Addr{}) && (!r.ProbeIP6.Is6() || r.ProbeIP6.Is4In6() || r.ProbeIP6.Zone() != "") {
		errs = append(errs, fmt.Errorf("IPv6 probe address %.64s", r.ProbeIP6))
	}
	if r.Backend != "" {
		errs = append(errs, checkName("backend", r.Backend))
	}
	return errors.Join(errs...)
}

// checkName accepts CNI's alphabet for container IDs and network names, which
// holds Kubernetes' names as well.
func checkName(what, s string) error {
	if s == "" || len(s) > maxName || !alnum(s[0]) {
		return fmt.Errorf("%s %.64q", what, s)
	}
	for i := range len(s) {
		if !alnum(s[i]) && strings.IndexByte("_.-", s[i]) < 0 {
			return fmt.Errorf("%s %.64q", what, s)
		}
	}
	return nil
}

func checkUID(s string) error {
	if s == "" {
		return nil
	}
	return checkName("pod UID", s)
}

func alnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// validIfName follows the kernel and CNI, and refuses what does not print.
func validIfName(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > maxIfName || !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r == '/' || r == ':' || unicode.IsSpace(r) || !unicode.IsPrint(r)
	})
}

func oneOf(what, s string, allowed ...string) error {
	for _, a := range allowed {
		if s == a {
			return nil
		}
	}
	return fmt.Errorf("%s is %.32q, want one of %q", what, s, allowed)
}

func checkText(what, s string) error {
	if len(s) > maxText {
		return fmt.Errorf("%s of %d bytes, at most %d are allowed", what, len(s), maxText)
	}
	return nil
}

// cut makes a text fit for the wire, and for one line of a log. Without control
// characters JSON at most doubles it, so that it fits a packet.
func cut(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= maxText {
		return s
	}
	const dots = "…"
	s = s[:maxText-len(dots)]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + dots
}

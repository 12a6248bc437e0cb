package podproc

import (
	"errors"
	"strings"
	"testing"
)

const (
	uidA  = "2c48913c-b29f-11e7-9350-020968147796"
	uidB  = "9f5d3a10-0c4e-4f7a-8b1d-7a2f6c1e0b55"
	hashA = "f0e1d2c3b4a5968778695a4b3c2d1e0f" // a static pod's
)

var (
	idA = strings.Repeat("a1", 32)
	idB = strings.Repeat("b2", 32)
)

func under(uid string) string { return strings.ReplaceAll(uid, "-", "_") }

func TestParseCgroup(t *testing.T) {
	tests := []struct {
		name, text string
		want       Place
		err        error
	}{
		{"v2, systemd", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under(uidA) + ".slice/cri-containerd-" + idA + ".scope\n", Place{uidA, idA}, nil},
		{"v2, cgroupfs", "0::/kubepods/besteffort/pod" + uidA + "/" + idA + "\n", Place{uidA, idA}, nil},
		{"v2, guaranteed", "0::/kubepods.slice/kubepods-pod" + under(uidA) + ".slice/crio-" + idA + ".scope\n", Place{uidA, idA}, nil},
		{"v1", "12:pids:/kubepods/burstable/pod" + uidA + "/" + idA + "\n1:name=systemd:/kubepods/burstable/pod" + uidA + "/" + idA + "\n", Place{uidA, idA}, nil},
		{"both", "8:pids:/kubepods/pod" + uidA + "/" + idA + "\n4:memory:/system.slice\n0::/\n", Place{uidA, idA}, nil},
		{"containerd's oldest form", "0::/system.slice/containerd.service/kubepods-besteffort-pod" + under(uidA) + ".slice:cri-containerd:" + idA + "\n", Place{uidA, idA}, nil},
		{"docker", "0::/kubepods.slice/kubepods-pod" + under(uidA) + ".slice/docker-" + idA + ".scope\n", Place{uidA, idA}, nil},
		{"kind", "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + under(uidA) + ".slice/cri-containerd-" + idA + ".scope\n", Place{uidA, idA}, nil},
		{"a node that is itself a container", "0::/docker/" + idB + "/kubepods/pod" + uidA + "/" + idA + "\n", Place{uidA, idA}, nil},
		{"seen from another group", "0::/../../kubepods-pod" + under(uidA) + ".slice/cri-containerd-" + idA + ".scope\n", Place{uidA, idA}, nil},
		{"the pod's own group", "0::/kubepods/pod" + uidA + "\n", Place{uidA, ""}, nil},
		{"a static pod", "0::/kubepods/burstable/pod" + hashA + "/" + idA + "\n", Place{hashA, idA}, nil},
		{"capitals", "0::/kubepods/pod" + strings.ToUpper(uidA) + "/" + strings.ToUpper(idA) + "\n", Place{uidA, idA}, nil},
		{"a group below the container's", "0::/kubepods/pod" + uidA + "/" + idA + "/init.scope/" + idB + "\n", Place{uidA, idA}, nil},
		{"no pod, as CRI-O may have it", "0::/../crio-" + idA + ".scope\n", Place{"", idA}, nil},
		{"first without the pod", "3:cpu:/../crio-" + idB + "\n0::/kubepods/pod" + uidA + "/crio-" + idA + "\n", Place{uidA, idA}, nil},
		{"the host", "0::/system.slice/ssh.service\n", Place{}, nil},
		{"nothing", "", Place{}, nil},
		{"junk", "junk\n:::\n0::\n", Place{}, nil},
		{"not below kubepods", "0::/user.slice/pod" + uidA + "/" + idA + "\n", Place{"", idA}, nil},
		{"a pod's name in a word", "0::/kubepods/tripod" + uidA + "/" + idA + "\n", Place{"", idA}, nil},
		{"a short UID", "0::/kubepods/pod2c48913c/" + idA + "\n", Place{"", idA}, nil},

		{"a container that plays another pod", "0::/kubepods/pod" + uidA + "/" + idA + "/kubepods/pod" + uidB + "/" + idB + "\n", Place{}, ErrHostile},
		{"the same again", "0::/kubepods/pod" + uidA + "/" + idA + "/pod" + uidA + "/" + idB + "\n", Place{}, ErrHostile},
		{"two pods", "2:pids:/kubepods/pod" + uidA + "/" + idA + "\n0::/kubepods/pod" + uidB + "/" + idB + "\n", Place{}, ErrHostile},
		{"two containers", "2:pids:/kubepods/pod" + uidA + "/" + idA + "\n0::/kubepods/pod" + uidA + "/" + idB + "\n", Place{}, ErrHostile},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseCgroup(tt.text)
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %+v, %v; want %+v, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func FuzzParseCgroup(f *testing.F) {
	f.Add("0::/kubepods/pod" + uidA + "/" + idA + "\n")
	f.Add("0::/kubepods-pod" + under(uidA) + ".slice:cri-containerd:" + idA)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseCgroup(text)
		if err != nil && p != (Place{}) {
			t.Errorf("%v and %+v", err, p)
		}
		if p.UID != "" && !strings.Contains(strings.ReplaceAll(strings.ToLower(text), "_", "-"), "pod"+p.UID) {
			t.Errorf("%q is not in the text", p.UID)
		}
	})
}

func TestStartTime(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21"
	for stat, want := range map[string]uint64{
		"1 (sleep)" + rest:          4711,
		"1 (a b) S 9 (c) 8)" + rest: 4711,
		"1 (sleep) S 1 2":           0,
		"":                          0,
		"1 sleep" + rest:            0,
		"1 (sleep) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x 20": 0,
	} {
		got, err := StartTime(stat)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("StartTime(%q) = %d, %v; want %d", stat, got, err, want)
		}
	}
}

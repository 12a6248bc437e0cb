package probe

import (
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers: 1 is the 16 bytes at the beginning; a key of several parts is put
// together out of registers of 4 bytes, of which flowReg is the first.
const (
	reg     = unix.NFT_REG_1
	flowReg = unix.NFT_REG32_00
	nobody  = 0xffffffff // no user has this ID
)

// nftRules are the rules of each chain.
func nftRules(r rules) map[string][]nftRule {
	all := map[string][]nftRule{}
	add := func(chain string, spec string, exprs ...[]expr.Any) {
		var flat []expr.Any
		for _, e := range exprs {
			flat = append(flat, e...)
		}
		all[chain] = append(all[chain], nftRule{flat, tag(chain, spec)})
	}
	for _, t := range r.tests {
		a := t.to.Addr()
		verdict := snat(a.Is6(), r.source(a))
		if !t.translate {
			verdict = []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
		}
		add(chainPost, specs(rules{tests: []test{t}, ip4: r.ip4, ip6: r.ip6}, a.Is6())[0],
			tcp(a.Is6()), daddrIs(a), dportIs(t.to.Port()), anyUser(), verdict)
	}
	for _, v6 := range []bool{false, true} {
		to := snat(v6, r.source(family(v6)))
		for i, spec := range specs(rules{limit: r.limit, ip4: r.ip4, ip6: r.ip6}, v6) {
			switch r.limit.Kind {
			case ByCgroup:
				add(chainOut, spec, tcp(v6), toPod(v6), newConnection(), inCgroup(r.limit.Cgroups[i]), noteFlow(v6))
			case ByUser:
				add(chainPost, spec, tcp(v6), toPod(v6), byUser(expr.CmpOpEq, r.limit.Users[i]), to)
			default:
				add(chainPost, spec, tcp(v6), toPod(v6), anyUser(), to)
			}
		}
		if r.limit.Kind == ByCgroup {
			add(chainPost, "noted, to "+r.source(family(v6)).String(), tcp(v6), toPod(v6), flowNoted(v6), to)
		}
	}
	return all
}

// family is any address of the family.
func family(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func meta(key expr.MetaKey, op expr.CmpOp, value []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg}, &expr.Cmp{Op: op, Register: reg, Data: value}}
}

// tcp: meta nfproto ipv4 meta l4proto tcp
func tcp(v6 bool) []expr.Any {
	proto := byte(unix.NFPROTO_IPV4)
	if v6 {
		proto = unix.NFPROTO_IPV6
	}
	return append(meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{proto}), meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP})...)
}

// Where addresses and ports are in the headers.
func saddr(v6 bool, to uint32) *expr.Payload {
	if v6 {
		return &expr.Payload{DestRegister: to, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16}
	}
	return &expr.Payload{DestRegister: to, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
}

func daddr(v6 bool, to uint32) *expr.Payload {
	p := saddr(v6, to)
	p.Offset += p.Len
	return p
}

func sport(to uint32) *expr.Payload {
	return &expr.Payload{DestRegister: to, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2}
}

func dport(to uint32) *expr.Payload {
	return &expr.Payload{DestRegister: to, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

// toPod: ip daddr @pods-v4
func toPod(v6 bool) []expr.Any {
	return []expr.Any{daddr(v6, reg), &expr.Lookup{SourceRegister: reg, SetName: podSet(v6).Name}}
}

func daddrIs(a netip.Addr) []expr.Any {
	return []expr.Any{daddr(a.Is6(), reg), &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: a.AsSlice()}}
}

func dportIs(port uint16) []expr.Any {
	return []expr.Any{dport(reg), &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.BigEndian.PutUint16(port)}}
}

// newConnection: ct state new
func newConnection() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

// inCgroup: socket cgroupv2 level 2 "system.slice/kubelet.service"
func inCgroup(c Cgroup) []expr.Any {
	return []expr.Any{
		&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: uint32(c.level()), Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint64(c.ID)},
	}
}

// byUser: meta skuid 0
func byUser(op expr.CmpOp, id uint32) []expr.Any {
	return meta(expr.MetaKeySKUID, op, binaryutil.NativeEndian.PutUint32(id))
}

// anyUser: a socket of this namespace has the packet. Of a forwarded packet no
// user can be told, which ends the rule.
func anyUser() []expr.Any { return byUser(expr.CmpOpNeq, nobody) }

// flowKey: ip saddr . tcp sport . ip daddr . tcp dport
func flowKey(v6 bool) []expr.Any {
	words := uint32(1) // of an address
	if v6 {
		words = 4
	}
	return []expr.Any{saddr(v6, flowReg), sport(flowReg + words), daddr(v6, flowReg+words+1), dport(flowReg + 2*words + 1)}
}

// noteFlow: update @kubelet-v4 { ip saddr . tcp sport . ip daddr . tcp dport }
func noteFlow(v6 bool) []expr.Any {
	return append(flowKey(v6), &expr.Dynset{SrcRegKey: flowReg, SetName: flowSet(v6).Name, Operation: unix.NFT_DYNSET_OP_UPDATE})
}

// flowNoted: ip saddr . tcp sport . ip daddr . tcp dport @kubelet-v4
func flowNoted(v6 bool) []expr.Any {
	return append(flowKey(v6), &expr.Lookup{SourceRegister: flowReg, SetName: flowSet(v6).Name})
}

// snat: snat ip to 169.254.7.127
func snat(v6 bool, to netip.Addr) []expr.Any {
	f := uint32(unix.NFPROTO_IPV4)
	if v6 {
		f = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: f, RegAddrMin: reg},
	}
}

package redirect

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The register that everything goes through, and where netfilter's headers have
// what we look at.
const (
	register     = unix.NFT_REG_1
	offSrcPort   = 0
	offDstPort   = 2
	offTCPFlags  = 13
	flagsOpening = 0x17 // FIN, SYN, RST, ACK
	flagSYN      = 0x02
	// Bits of a connection's status.
	statusSeenReply = 1 << 1
	statusConfirmed = 1 << 3
	statusSrcNAT    = 1 << 4
	statusDstNAT    = 1 << 5
)

// program is a rule being written in the kernel's terms.
type program []expr.Any

// exprs renders a rule for the kernel. What it makes of statement is the same,
// as nft's own compiler shows in the tests.
func (r Rule) exprs(f Family) ([]expr.Any, error) {
	var p program
	m := r.Match
	p.iface(expr.MetaKeyIIFNAME, m.In)
	p.iface(expr.MetaKeyOIFNAME, m.Out)
	p.net(f, false, m.Src)
	p.net(f, true, m.Dst)
	switch m.Proto {
	case "":
	case "tcp":
		p.protocol(unix.IPPROTO_TCP)
	case "udp":
		p.protocol(unix.IPPROTO_UDP)
	default:
		return nil, fmt.Errorf("%s: unknown protocol %q", r.Chain, m.Proto)
	}
	p.port(offSrcPort, m.SrcPort)
	p.port(offDstPort, m.DstPort)
	if m.Opens {
		p.add(&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offTCPFlags, Len: 1},
			bits([]byte{flagsOpening}, []byte{0}), compare(false, []byte{flagSYN}))
	}
	p.mark(&expr.Meta{Key: expr.MetaKeyMARK, Register: register}, m.Mark)
	p.mark(&expr.Ct{Key: expr.CtKeyMARK, Register: register}, m.ConnMark)
	p.tracked(m.Tracked)
	if !p.act(r.Action) {
		return nil, fmt.Errorf("%s: %s", r.Chain, r.Action.verdict())
	}
	return p, nil
}

func (p *program) add(e ...expr.Any) { *p = append(*p, e...) }

func compare(not bool, data []byte) *expr.Cmp {
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	return &expr.Cmp{Op: op, Register: register, Data: data}
}

func bits(mask, xor []byte) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(mask)), Mask: mask, Xor: xor}
}

// host is a number that the kernel has in its own order.
func host(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func (p *program) iface(key expr.MetaKey, i Iface) {
	if i.Name == "" {
		return
	}
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, i.Name)
	p.add(&expr.Meta{Key: key, Register: register}, compare(i.Not, name))
}

// net compares an address; those of the rules are whole.
func (p *program) net(f Family, destination bool, n Net) {
	if !n.Prefix.IsValid() {
		return
	}
	load := &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
	if f == IPv6 {
		load.Offset, load.Len = 8, 16
	}
	if destination {
		load.Offset += load.Len
	}
	p.add(load)
	if n.Prefix.Bits() < n.Prefix.Addr().BitLen() {
		p.add(bits(maskOf(n.Prefix), make([]byte, load.Len)))
	}
	p.add(compare(n.Not, n.Prefix.Masked().Addr().AsSlice()))
}

func maskOf(n netip.Prefix) []byte {
	mask := make([]byte, n.Addr().BitLen()/8)
	for i := range n.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return mask
}

func (p *program) protocol(n byte) {
	p.add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}, compare(false, []byte{n}))
}

func (p *program) port(offset uint32, n Port) {
	if n.Number != 0 {
		p.add(&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
			compare(n.Not, binary.BigEndian.AppendUint16(nil, n.Number)))
	}
}

func (p *program) mark(load expr.Any, m Mark) {
	if m.Mask != 0 {
		p.add(load, bits(host(m.Mask), host(0)), compare(m.Not, host(m.Value)))
	}
}

func (p *program) tracked(w Tracked) {
	state := func(wanted uint32) {
		p.add(&expr.Ct{Key: expr.CtKeySTATE, Register: register}, bits(host(wanted), host(0)), compare(true, host(0)))
	}
	switch w {
	case Unplaced:
		state(expr.CtStateBitINVALID | expr.CtStateBitUNTRACKED)
	case Passed:
		p.add(&expr.Ct{Key: expr.CtKeySTATUS, Register: register},
			bits(host(statusConfirmed|statusDstNAT), host(0)), compare(false, host(statusConfirmed)))
	case Answered:
		state(expr.CtStateBitESTABLISHED)
	}
}

func (p *program) act(a Action) (known bool) {
	switch a.Verb {
	case Accept:
		p.add(&expr.Verdict{Kind: expr.VerdictAccept})
	case Return:
		p.add(&expr.Verdict{Kind: expr.VerdictReturn})
	case Drop:
		p.add(&expr.Verdict{Kind: expr.VerdictDrop})
	case Redirect:
		p.add(&expr.Immediate{Register: register, Data: binary.BigEndian.AppendUint16(nil, a.Port)},
			&expr.Redir{RegisterProtoMin: register})
	case MarkConnection:
		p.add(&expr.Ct{Key: expr.CtKeyMARK, Register: register}, bits(host(^a.Mark.Mask), host(a.Mark.Value)),
			&expr.Ct{Key: expr.CtKeyMARK, Register: register, SourceRegister: true})
	case RestoreMark:
		p.add(&expr.Ct{Key: expr.CtKeyMARK, Register: register},
			&expr.Meta{Key: expr.MetaKeyMARK, Register: register, SourceRegister: true})
	case Track:
		p.add(&expr.Immediate{Register: register, Data: binary.NativeEndian.AppendUint16(nil, a.Zone)},
			&expr.Ct{Key: expr.CtKeyZONE, Register: register, SourceRegister: true})
	default:
		return false
	}
	return true
}

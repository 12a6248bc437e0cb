package app

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What Istio's agent calls its tables, and the marks and ports of its rules.
const (
	istioTables                 = "istio-ambient-"
	istioProxyMark              = 0x539
	istioOut, istioIn, istioH2C = 15001, 15006, 15008
)

// family is what differs between rules for IPv4 and IPv6 in one table for both.
type family struct {
	proto           byte
	src, dst, size  uint32 // where the addresses are in the header
	probe, loopback netip.Addr
}

func families() []family {
	return []family{
		{unix.NFPROTO_IPV4, 12, 16, 4, netip.MustParseAddr("169.254.7.127"), netip.MustParseAddr("127.0.0.1")},
		{unix.NFPROTO_IPV6, 8, 24, 16, netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"), netip.IPv6Loopback()},
	}
}

// istioNFT makes the tables that Istio's agent makes for a pod where it uses no
// iptables.
func istioNFT() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	nat := istioTableFor(c, "nat", nftables.ChainTypeNAT, nftables.ChainTypeNAT, nftables.ChainPriorityNATDest)
	for _, f := range families() {
		nat.in(f.is(), f.addr(f.src, expr.CmpOpEq, f.probe), tcp(), verdict(expr.VerdictAccept))
		nat.in(f.is(), f.addr(f.dst, expr.CmpOpNeq, f.loopback), tcp(), dport(expr.CmpOpNeq, istioH2C), mark(expr.CmpOpNeq, istioProxyMark), redirect(istioIn))
	}
	nat.out(tcp(), mark(expr.CmpOpEq, istioMark), verdict(expr.VerdictAccept))
	for _, f := range families() {
		nat.out(toLoopback(), f.is(), f.addr(f.dst, expr.CmpOpNeq, f.loopback), verdict(expr.VerdictAccept))
		nat.out(f.is(), f.addr(f.dst, expr.CmpOpNeq, f.loopback), tcp(), mark(expr.CmpOpNeq, istioProxyMark), redirect(istioOut))
	}
	mangle := istioTableFor(c, "mangle", nftables.ChainTypeFilter, nftables.ChainTypeRoute, nftables.ChainPriorityMangle)
	mangle.in(mark(expr.CmpOpEq, istioProxyMark), []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: host32(^uint32(istioMask)), Xor: host32(istioMark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	})
	mangle.out([]expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: host32(istioMask), Xor: host32(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: host32(istioMark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	})
	return c.Flush()
}

// istioNFTable is one table, with a chain on each hook that leads to another.
type istioNFTable struct {
	c        *nftables.Conn
	table    *nftables.Table
	pre, put *nftables.Chain
}

func istioTableFor(c *nftables.Conn, name string, pre, put nftables.ChainType, priority *nftables.ChainPriority) istioNFTable {
	t := istioNFTable{c: c, table: c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: istioTables + name})}
	hook := func(name string, kind nftables.ChainType, hook *nftables.ChainHook) *nftables.Chain {
		base := c.AddChain(&nftables.Chain{Table: t.table, Name: name, Type: kind, Hooknum: hook, Priority: priority})
		to := c.AddChain(&nftables.Chain{Table: t.table, Name: "istio-" + name})
		c.AddRule(&nftables.Rule{Table: t.table, Chain: base, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: to.Name}}})
		return to
	}
	t.pre, t.put = hook("prerouting", pre, nftables.ChainHookPrerouting), hook("output", put, nftables.ChainHookOutput)
	return t
}

func (t istioNFTable) in(parts ...[]expr.Any)  { t.rule(t.pre, parts) }
func (t istioNFTable) out(parts ...[]expr.Any) { t.rule(t.put, parts) }

func (t istioNFTable) rule(chain *nftables.Chain, parts [][]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	t.c.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: all})
}

func (f family) is() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.proto}}}
}

func (f family) addr(offset uint32, op expr.CmpOp, a netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size},
		&expr.Cmp{Op: op, Register: 1, Data: a.AsSlice()},
	}
}

func tcp() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}}}
}

func dport(op expr.CmpOp, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: op, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

func mark(op expr.CmpOp, value uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: host32(istioMask), Xor: host32(0)},
		&expr.Cmp{Op: op, Register: 1, Data: host32(value)},
	}
}

func toLoopback() []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "lo")
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name}}
}

func redirect(port uint16) []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)}, &expr.Redir{RegisterProtoMin: 1}}
}

func verdict(kind expr.VerdictKind) []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: kind}}
}

func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// tables names the nftables tables of this namespace.
func tables(out io.Writer) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	all, err := c.ListTables()
	if err != nil {
		return err
	}
	for _, t := range all {
		if _, err := fmt.Fprintln(out, t.Name); err != nil {
			return err
		}
	}
	return nil
}

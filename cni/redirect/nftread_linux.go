package redirect

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes that x/sys does not name.
const bitwiseOp, bitwiseData = 6, 7

// maxReads is how often rules are read again that changed meanwhile.
const maxReads = 5

// readRules reads our table of one family; nil is none. It does without the
// library's reader, which leaves out what it does not know: a condition that is
// not read is a rule that looks right and does nothing.
func (n *netfilter) readRules(ctx context.Context, f Family) (have *nftRules, err error) {
	for range maxReads {
		if have, err = n.readOnce(ctx, f); !interrupted(err) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read nftables %s %s: %w", f, ownTable, err)
	}
	return have, nil
}

func (n *netfilter) readOnce(ctx context.Context, f Family) (*nftRules, error) {
	var have *nftRules
	err := n.dump(ctx, nftQuery(unix.NFT_MSG_GETTABLE, unix.NFT_MSG_NEWTABLE, f), func(msg []byte) bool {
		attrs := msg[nl.SizeofNfgenmsg:]
		if attributeString(attrs, unix.NFTA_TABLE_NAME) == ownTable {
			have = &nftRules{sleeps: attributeUint32(attrs, unix.NFTA_TABLE_FLAGS)&unix.NFT_TABLE_F_DORMANT != 0}
		}
		return have == nil
	})
	if err != nil || have == nil {
		return nil, err
	}
	size := 0
	err = n.dump(ctx, nftQuery(unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN, f), func(msg []byte) bool {
		attrs := msg[nl.SizeofNfgenmsg:]
		if attributeString(attrs, unix.NFTA_CHAIN_TABLE) == ownTable {
			size += len(msg)
			have.chains = append(have.chains, nftChain{name: attributeString(attrs, unix.NFTA_CHAIN_NAME), hangs: hangs(attrs)})
		}
		return size <= maxOutput
	})
	if err != nil {
		return nil, err
	}
	at := map[string]int{}
	for i, c := range have.chains {
		at[c.name] = i
	}
	q := nftQuery(unix.NFT_MSG_GETRULE, unix.NFT_MSG_NEWRULE, f)
	q.attrs = []*nl.RtAttr{nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(ownTable))}
	err = n.dump(ctx, q, func(msg []byte) bool {
		attrs := msg[nl.SizeofNfgenmsg:]
		i, known := at[attributeString(attrs, unix.NFTA_RULE_CHAIN)]
		if attributeString(attrs, unix.NFTA_RULE_TABLE) == ownTable && known {
			size += len(msg)
			text := describe(attribute(attrs, unix.NFTA_RULE_EXPRESSIONS))
			have.chains[i].rules = append(have.chains[i].rules, line{text, text})
		}
		return size <= maxOutput
	})
	if err == nil && size > maxOutput {
		err = fmt.Errorf("more than %d bytes: too many rules", maxOutput)
	}
	return have, err
}

func nftQuery(get, got int, f Family) query {
	return query{subsystem: unix.NFNL_SUBSYS_NFTABLES, get: get, got: got, family: f.nfproto()}
}

func (f Family) nfproto() byte {
	if f == IPv4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// hangs says what a chain hangs on, as baseChain.hangs does.
func hangs(chain []byte) string {
	hook := attribute(chain, unix.NFTA_CHAIN_HOOK)
	if hook == nil {
		return ""
	}
	policy := "accept"
	if attributeUint32(chain, unix.NFTA_CHAIN_POLICY) == 0 {
		policy = "drop"
	}
	hooks := []string{"prerouting", "input", "forward", "output", "postrouting"}
	name := "unknown"
	if n := attributeUint32(hook, unix.NFTA_HOOK_HOOKNUM); int(n) < len(hooks) {
		name = hooks[n]
	}
	return fmt.Sprintf("%s hook %s priority %d; policy %s",
		attributeString(chain, unix.NFTA_CHAIN_TYPE), name, int32(attributeUint32(hook, unix.NFTA_HOOK_PRIORITY)), policy)
}

// describe renders a rule's expressions as a text, the same for what means the
// same, whether we made them or the kernel printed them.
func describe(list []byte) string {
	var words []string
	for _, e := range attributes(list) {
		name := attributeString(e, unix.NFTA_EXPR_NAME)
		words = append(words, name+describeData(name, attribute(e, unix.NFTA_EXPR_DATA)))
	}
	return strings.Join(words, " ")
}

// expression is what is known of one kind.
type expression struct {
	attrs []string // their names by number; beyond them are a later kernel's
	data  []uint16 // those that are nested data
}

// knownExpressions are those that our rules are made of.
func knownExpressions() map[string]expression {
	return map[string]expression{
		"meta":      {[]string{"", "into", "key", "from"}, nil},
		"ct":        {[]string{"", "into", "key", "direction", "from"}, nil},
		"cmp":       {[]string{"", "from", "op", "data"}, []uint16{unix.NFTA_CMP_DATA}},
		"payload":   {[]string{"", "into", "base", "offset", "len", "from", "csum", "csumoffset", "csumflags"}, nil},
		"bitwise":   {[]string{"", "from", "into", "len", "mask", "xor", "op", "data"}, []uint16{unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR, bitwiseData}},
		"immediate": {[]string{"", "into", "data"}, []uint16{unix.NFTA_IMMEDIATE_DATA}},
		"redir":     {[]string{"", "port", "toport", "flags"}, nil},
	}
}

func describeData(name string, data []byte) string {
	known, ok := knownExpressions()[name]
	if !ok {
		return "(" + hex.EncodeToString(data[:min(len(data), maxShown)]) + ")"
	}
	var words []string
	for kind, value := range attributes(data) {
		if int(kind) >= len(known.attrs) || isDefault(name, kind, value, data) {
			continue
		}
		if slices.Contains(known.data, kind) {
			value = flatData(value)
		}
		words = append(words, known.attrs[kind]+"="+hex.EncodeToString(value))
	}
	slices.Sort(words)
	return "(" + strings.Join(words, " ") + ")"
}

// flatData takes the headers out of nested data, whose flags differ: a value, or
// a verdict and the chain that it leads to.
func flatData(data []byte) (flat []byte) {
	for kind, value := range attributes(data) {
		flat = append(flat, byte(kind))
		if kind == unix.NFTA_DATA_VERDICT {
			value = flatData(value)
		}
		flat = append(flat, value...)
	}
	return flat
}

// isDefault says whether an attribute may as well be left out: the kernel, or
// its version, prints some that it was not given.
func isDefault(name string, kind uint16, value, all []byte) bool {
	zero := len(value) == 4 && binary.BigEndian.Uint32(value) == 0
	switch {
	case name == "bitwise" && kind == bitwiseOp:
		return zero
	case name == "redir" && kind == unix.NFTA_REDIR_REG_PROTO_MAX:
		return slices.Equal(value, attribute(all, unix.NFTA_REDIR_REG_PROTO_MIN))
	case name == "redir" && kind == unix.NFTA_REDIR_FLAGS:
		return len(value) == 4 && binary.BigEndian.Uint32(value)&^unix.NF_NAT_RANGE_PROTO_SPECIFIED == 0
	}
	return false
}

// marshalled renders expressions as the kernel prints a rule's.
func marshalled(f Family, exprs []expr.Any) (list []byte, errs error) {
	for _, e := range exprs {
		data, err := expr.Marshal(f.nfproto(), e)
		errs = errors.Join(errs, err)
		list = append(list, nl.NewRtAttr(unix.NFTA_LIST_ELEM, data).Serialize()...)
	}
	return list, errs
}

// wantedChains are base chains in the form that they are read in.
func wantedChains(f Family, chains []baseChain) (want []nftChain, err error) {
	for _, c := range chains {
		w := nftChain{name: c.name, hangs: c.hangs()}
		for _, r := range c.rules {
			exprs, err := r.exprs(f)
			if err != nil {
				return nil, err
			}
			list, err := marshalled(f, exprs)
			if err != nil {
				return nil, err
			}
			w.rules = append(w.rules, line{describe(list), r.statement(f)})
		}
		want = append(want, w)
	}
	return want, nil
}

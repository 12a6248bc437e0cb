package redirect

import "net/netip"

// Family is an IP version.
type Family uint8

// The two families. Their names are those of nft and of Verify's texts.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string {
	if f == IPv4 {
		return "ip"
	}
	return "ip6"
}

// Table is one netfilter table of one family, with our rules in it in order.
// Each of our chains in it is reached by one jump, which is the first rule of
// the built-in chain that it belongs to.
type Table struct {
	Family Family
	Name   string // "mangle", "raw" or "nat"
	Rules  []Rule
}

// Rule is one rule, independent of the program that puts it in place.
type Rule struct {
	Chain  string // ChainPrerouting or ChainOutput
	Why    string
	Match  Match
	Action Action
}

// Match is what a rule applies to: all of its fields that are not zero.
type Match struct {
	Src, Dst         Net
	In, Out          Iface
	Proto            string // "tcp" or "udp"; needed for a port
	SrcPort, DstPort Port
	Opens            bool // of TCP: the packet that opens a connection, and no other
	Mark, ConnMark   Mark
	Tracked          Tracked
}

// Net, Iface, Port and Mark are conditions, Not their opposite.
type (
	Net struct {
		Prefix netip.Prefix
		Not    bool
	}
	Iface struct {
		Name string
		Not  bool
	}
	Port struct {
		Number uint16
		Not    bool
	}
	// Mark compares the bits of Mask only.
	Mark struct {
		Value, Mask uint32
		Not         bool
	}
)

// Tracked is what connection tracking knows of a packet.
type Tracked uint8

const (
	Unplaced Tracked = iota + 1 // of no connection that it could name
	Passed                      // of one that it knew before this packet, and that no rule has redirected
	Answered                    // of one that both sides have spoken on
)

// Action is what a rule does.
type Action struct {
	Verb Verb
	Port uint16 // of Redirect
	Zone uint16 // of Track
	Mark Mark   // of MarkConnection
}

// Verb is a kind of action.
type Verb uint8

const (
	Accept         Verb = iota + 1 // nothing further in this table
	Return                         // on with the chain that jumped here
	Redirect                       // to a port of this host
	MarkConnection                 // set the mark on the connection
	RestoreMark                    // copy the connection's mark to the packet
	Track                          // in a conntrack zone
	Drop
)

// Rules returns the rules of c, in the order in which their tables are to be
// put in place: nat, which begins to capture, comes last.
func Rules(c Config) []Table {
	var tables []Table
	for _, f := range c.families() {
		tables = append(tables, Table{f, "mangle", append(markRules(), guardRules(c, f)...)})
		if c.DNS {
			tables = append(tables, Table{f, "raw", rawRules()})
		}
		tables = append(tables, Table{f, "nat", natRules(c, f)})
	}
	return tables
}

func (c Config) families() (fs []Family) {
	if c.IPv4 {
		fs = append(fs, IPv4)
	}
	if c.IPv6 {
		fs = append(fs, IPv6)
	}
	return fs
}

// proxyMark and connMark are the conditions on the two marks.
func proxyMark(not bool) Mark { return Mark{MarkProxy, MarkMask, not} }
func connMark() Mark          { return Mark{MarkConn, MarkMask, false} }
func (m Mark) not() Mark      { return Mark{m.Value, m.Mask, !m.Not} }

// markRules bring the answers home. The proxy connects to the application from
// the client's own address; the answers go to that address, and must come back
// to the proxy's socket instead of leaving the pod.
//
// The client may have a connection of its own to the application, from before
// the pod was redirected, and the proxy may happen upon its port. Then the proxy
// has to do without: marked, that connection would lose its answers to it.
func markRules() []Rule {
	return []Rule{
		{ChainPrerouting, "a connection of the client's own is none that the proxy opens",
			Match{Proto: "tcp", Opens: true, Mark: proxyMark(false), ConnMark: connMark().not(), Tracked: Answered}, Action{Verb: Drop}},
		{ChainPrerouting, "a connection that the proxy opens to the application",
			Match{Mark: proxyMark(false)}, Action{Verb: MarkConnection, Mark: connMark()}},
		{ChainOutput, "its answers: marked, the routing policy delivers them here",
			Match{ConnMark: connMark()}, Action{Verb: RestoreMark}},
	}
}

// rawRules keep the proxy's own DNS queries apart from the application's. Both
// may use the same addresses and ports, and conntrack would take one for the
// other and translate its answers.
func rawRules() []Rule {
	return []Rule{
		{ChainOutput, "DNS queries of the proxy",
			Match{Proto: "udp", DstPort: Port{Number: portDNS}, Mark: proxyMark(false)}, Action{Verb: Track, Zone: dnsZone}},
		{ChainPrerouting, "their answers",
			Match{Proto: "udp", SrcPort: Port{Number: portDNS}, Mark: proxyMark(true)}, Action{Verb: Track, Zone: dnsZone}},
	}
}

// guardRules close the way round the rules. Only the packet that opens a
// connection is redirected, so that connections from before go on: conntrack
// takes them up in the middle, as new ones, and a rule that redirected them
// would end them. But what is so taken up is never looked at again, so whoever
// lets it take up something of his own, and then opens a connection from the
// same port, would go round. What opens a connection where one is known that was
// not redirected, or where conntrack is at a loss, is therefore dropped. If it
// is honest it comes again, and passes when conntrack has forgotten the other.
func guardRules(c Config, f Family) (rules []Rule) {
	loopback, probe := c.exempt(f)
	guard := func(chain string, m Match) {
		m.Proto, m.Opens = "tcp", true
		for _, way := range []Tracked{Unplaced, Passed} {
			m.Tracked = way
			rules = append(rules, Rule{chain, way.why(), m, Action{Verb: Drop}})
		}
	}
	for _, name := range c.VirtualInterfaces {
		guard(ChainPrerouting, Match{In: Iface{Name: name}})
	}
	if !c.BypassInbound {
		m := Match{Dst: Net{loopback, true}, In: Iface{"lo", true}, DstPort: Port{PortHBONE, true}, Mark: proxyMark(true)}
		if probe.IsValid() {
			m.Src = Net{hostPrefix(probe), true}
		}
		guard(ChainPrerouting, m)
	}
	guard(ChainOutput, Match{Dst: Net{loopback, true}, Out: Iface{"lo", true}, Mark: proxyMark(true)})
	return rules
}

func (w Tracked) why() string {
	if w == Unplaced {
		return "no new connection goes round the redirection: one that conntrack cannot place"
	}
	return "no new connection goes round the redirection: one in the place of another from before"
}

// exempt are the addresses that are never redirected: as destinations, and as
// sources of probes.
func (c Config) exempt(f Family) (loopback netip.Prefix, probe netip.Addr) {
	if f == IPv6 {
		return netip.MustParsePrefix("::1/128"), c.ProbeIP6
	}
	return netip.MustParsePrefix("127.0.0.1/32"), c.ProbeIP4
}

func natRules(c Config, f Family) []Rule {
	loopback, probe := c.exempt(f)
	return append(natPrerouting(c, loopback, probe), natOutput(c, loopback, probe)...)
}

func natPrerouting(c Config, loopback netip.Prefix, probe netip.Addr) (rules []Rule) {
	add := func(why string, m Match, a Action) {
		m.Proto, m.Opens = "tcp", a.Verb == Redirect
		rules = append(rules, Rule{ChainPrerouting, why, m, a})
	}
	for _, name := range c.VirtualInterfaces {
		add("what comes from inside the pod is outbound",
			Match{In: Iface{Name: name}}, Action{Verb: Redirect, Port: PortOutbound})
		add("and never inbound", Match{In: Iface{Name: name}}, Action{Verb: Return})
	}
	if c.BypassInbound {
		return rules
	}
	if probe.IsValid() {
		add("kubelet's probes go to the application",
			Match{Src: Net{Prefix: hostPrefix(probe)}}, Action{Verb: Accept})
	}
	add("inbound, but for HBONE, which the proxy takes as it is, and what the proxy sends to the application",
		Match{Dst: Net{loopback, true}, DstPort: Port{PortHBONE, true}, Mark: proxyMark(true)},
		Action{Verb: Redirect, Port: PortInbound})
	return rules
}

func natOutput(c Config, loopback netip.Prefix, probe netip.Addr) (rules []Rule) {
	add := func(why string, m Match, a Action) {
		m.Opens = m.Proto == "tcp" && a.Verb == Redirect
		rules = append(rules, Rule{ChainOutput, why, m, a})
	}
	if probe.IsValid() {
		add("answers to kubelet's probes",
			Match{Dst: Net{Prefix: hostPrefix(probe)}, Proto: "tcp"}, Action{Verb: Accept})
	}
	if c.DNS {
		add("DNS over UDP, but for resolvers inside the pod and the proxy's own queries",
			Match{Out: Iface{"lo", true}, Proto: "udp", DstPort: Port{Number: portDNS}, Mark: proxyMark(true)},
			Action{Verb: Redirect, Port: PortDNS})
		add("DNS over TCP",
			Match{Dst: Net{loopback, true}, Proto: "tcp", DstPort: Port{Number: portDNS}, Mark: proxyMark(true)},
			Action{Verb: Redirect, Port: PortDNS})
	}
	add("answers to what the proxy brought in",
		Match{Proto: "tcp", Mark: connMark()}, Action{Verb: Accept})
	add("the pod to itself",
		Match{Dst: Net{loopback, true}, Out: Iface{Name: "lo"}}, Action{Verb: Accept})
	add("outbound, but for the proxy's own connections",
		Match{Dst: Net{loopback, true}, Proto: "tcp", Mark: proxyMark(true)}, Action{Verb: Redirect, Port: PortOutbound})
	return rules
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

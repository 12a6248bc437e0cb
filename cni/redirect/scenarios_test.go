package redirect

import "net/netip"

// scenario is one configuration that the golden texts and the kernel tests
// share.
type scenario struct {
	name string
	c    Config
}

func with(change func(*Config)) Config {
	c := Defaults()
	change(&c)
	return c
}

func scenarios() []scenario {
	ifaces := []string{"vm0", "docker0"}
	return []scenario{
		{"default", Defaults()},
		{"dns", with(func(c *Config) { c.DNS = true })},
		{"bypass_inbound", with(func(c *Config) { c.BypassInbound = true })},
		{"virtual_interfaces", with(func(c *Config) { c.VirtualInterfaces = ifaces })},
		{"dns_and_bypass_inbound", with(func(c *Config) { c.DNS, c.BypassInbound = true, true })},
		{"dns_and_virtual_interfaces", with(func(c *Config) { c.DNS, c.VirtualInterfaces = true, ifaces })},
		{"bypass_inbound_and_virtual_interfaces", with(func(c *Config) { c.BypassInbound, c.VirtualInterfaces = true, ifaces })},
		{"all", with(func(c *Config) { c.DNS, c.BypassInbound, c.VirtualInterfaces = true, true, ifaces })},
		{"without_probes", with(func(c *Config) { c.ProbeIP4, c.ProbeIP6 = netip.Addr{}, netip.Addr{} })},
	}
}

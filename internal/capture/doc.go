// Package capture counts what crosses a network interface, so that a claim
// about the wire ("these bytes were TLS to 15008") is measured and not
// assumed.
//
// Kind: test support; the demo and the tests of e2e use it.
package capture

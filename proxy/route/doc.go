// Package route decides where a connection goes.
//
// Kind: pure. No I/O, no clock, no goroutine: a View, the pod that the connection
// came from or arrived at, and its addresses go in, a Decision comes out, and the
// proxy carries it out without asking about policy again.
//
// Outbound resolves an application's connection to an endpoint; Inbound checks
// what a tunnel asks for. The header codecs of HBONE are here as well: authority,
// baggage, forwarded and traceparent.
//
// What cannot be decided is an error, never a way around: a service whose
// waypoint is unknown is unreachable, not reached directly.
package route

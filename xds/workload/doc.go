// Package workload is the mesh's one model: who runs where, which services they
// form and which policies guard them.
//
// Kind: pure. No I/O and no clock; the only concurrency is the Store's own.
//
// Writers: xds/client, xds/file and LOCAL_XDS_PATH in the proxy, xds/translate in
// the control plane. Readers: proxy/route, proxy/rbac, the proxy's admin port and
// xds/server.
//
// A Workload, Service or Policy is never changed once it has been given to a
// Store; an update is a new object. A View is one consistent, immutable state of
// everything; a Store swaps views. An update copies only the shards it touches,
// so that one endpoint among a hundred thousand costs microseconds.
//
// The wire form is istio.workload and istio.security of
// istio.io/istio/pkg/workloadapi. Conversions are strict: a resource that is not
// understood completely is rejected with a reason rather than taken in part,
// because a policy with a piece missing may let more through.
package workload

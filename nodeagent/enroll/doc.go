// Package enroll decides which pods of this node are in the mesh and takes them
// there and back.
//
//	          ADD, or eligible while running
//	absent ──────────────────────────────────▶ redirected ──▶ enrolled
//	  ▲     rules, then listeners (ADD)            │             │
//	  │     listeners, then rules (running)        │ a failure   │ DEL, or no
//	  │                                            ▼ undoes      ▼ longer eligible
//	  └──────────────────────────────────────── removed ◀── leaving
//
// A new pod is redirected before anything listens for it: it is blocked for that
// moment, never carried in plaintext. A running pod is served first and then
// redirected, and leaves in the opposite order: no capture of new connections,
// a wait for those that the proxy carries, no listeners, no rules.
//
// Every way there is a list of steps that are undone in reverse (steps.go). What
// to do with a pod is decided by pure functions of its phase and of what the
// objects say (next.go, view.go).
//
// One goroutine at a time changes a pod; pods do not wait for each other. What
// the runtime asks for interrupts what the agent does of its own accord.
//
// Each attachment (containerID, ifname) is a file in the state directory, written
// before anything is changed, so that the agent's successor finds every pod
// again, and undoes an ADD that it finds half done.
//
// Kind: pure core; what it needs of the outside are the small interfaces in
// enroll.go. Used by nodeagent; podwatch makes its View.
package enroll

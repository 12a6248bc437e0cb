package relay

import "github.com/warren-mesh/warren/proxy/ready"

// TakeAllPipes has getPipe fail until the returned function is called.
func TakeAllPipes() (giveBack func()) {
	pipesUsed.Add(maxPipes)
	return func() { pipesUsed.Add(-maxPipes) }
}

// PipesInUse is how many pipes flows have now.
func PipesInUse() int { return int(pipesUsed.Load()) }

// NotifyApp tells a flow between sockets about its application's, as a loop does.
func NotifyApp(f *Flow, e ready.Events) { f.c.(*socketFlow).ends[0].Notify(e, nil) }

package enroll

import "time"

// Times are the bounds; the zero value of each is the default.
type Times struct {
	Pod   time.Duration // an ADD waits so long for its pod's object: 2 s
	Add   time.Duration // the agent's own work for one ADD, undoing aside: 3.8 s
	Drain time.Duration // a leaving pod's connections may go on so long: 15 s; negative: to their end
	Blind time.Duration // so long where the proxy cannot say how many there are: 15 s
	// Linger is how long a leaving pod is served after its mark went: others have
	// to hear of it. 0: not at all.
	Linger time.Duration
	Sweep  time.Duration // between looks at what nothing announces: 1 s
	// Inspect is how often the whole of a pod is looked at in which nothing seems to
	// happen: 2 min
	Inspect time.Duration
	Retry   time.Duration // first wait after a failure on our own accord: 1 s
	Live    time.Duration // the proxy may take so long to open a running pod's listeners: 10 s
	// Rival is how long another mesh's agent may be away before its pods are taken: 10 s
	Rival time.Duration
}

func (t Times) withDefaults() Times {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Pod, 2 * time.Second},
		{&t.Add, 3800 * time.Millisecond},
		{&t.Drain, 15 * time.Second},
		{&t.Blind, 15 * time.Second},
		{&t.Sweep, time.Second},
		{&t.Inspect, 2 * time.Minute},
		{&t.Retry, time.Second},
		{&t.Live, 10 * time.Second},
		{&t.Rival, 10 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return t
}

// maxRetry is the longest wait between attempts.
const maxRetry = 30 * time.Second

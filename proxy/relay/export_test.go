package relay

// TakeAllPipes has getPipe fail until the returned function is called.
func TakeAllPipes() (giveBack func()) {
	pipesUsed.Add(maxPipes)
	return func() { pipesUsed.Add(-maxPipes) }
}

// PipesInUse is how many pipes flows have now.
func PipesInUse() int { return int(pipesUsed.Load()) }

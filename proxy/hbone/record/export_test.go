package record

// AskKeyUpdate has ours change its key with the next Seal, and ask the peer to.
func AskKeyUpdate(l Layer) {
	if o, ours := l.(*own); ours {
		o.want(&o.ask)
	}
}

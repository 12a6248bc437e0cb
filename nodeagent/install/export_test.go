package install

// SetStep makes f be called before each change on the host; its error makes the
// change fail.
func (i *Installer) SetStep(f func(op, name string) error) { i.step = f }

// Round makes one round without watching.
func (i *Installer) Round() { i.round(nil) }

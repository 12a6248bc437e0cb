package nodeagent

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"
)

// collectMistakes keeps a flag with a bad value from hiding the mistakes behind it:
// the flags that fs has now only note what is wrong with their values. The
// returned function says all of it once fs is parsed.
func collectMistakes(fs *pflag.FlagSet) func() error {
	var errs []error
	fs.VisitAll(func(f *pflag.Flag) {
		f.Value = patientValue{f.Value, func(value string, err error) {
			errs = append(errs, fmt.Errorf("--%s: %q: %w", f.Name, value, err))
		}}
	})
	return func() error { return errors.Join(errs...) }
}

// patientValue is a flag's value that accepts everything, and tells of what it
// does not take.
type patientValue struct {
	pflag.Value
	bad func(value string, err error)
}

// Set implements pflag.Value.
func (v patientValue) Set(s string) error {
	before := v.Value.String()
	if err := v.Value.Set(s); err != nil {
		_ = v.Value.Set(before) // which some have lost by now; it would be a second mistake
		v.bad(s, err)
	}
	return nil
}

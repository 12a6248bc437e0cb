package redirect

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const detectTimeout = 5 * time.Second

// Detect picks the iptables variant that the rules of the process's own
// namespace, the host's, are in, so that the two do not mix on one node. Where
// it has none it is nft. Where the PATH has no iptables it is nftables without
// one, if the kernel has that.
func Detect() (Backend, error) {
	b, err := DetectIPTables()
	if !errors.Is(err, ErrNoIPTables) {
		return b, err
	}
	if kernelErr := nftablesWork(here); kernelErr != nil {
		return nil, fmt.Errorf("%w, and %w", err, kernelErr)
	}
	return &native{defaultLimits()}, nil
}

// DetectIPTables is Detect where nothing but iptables will do. ErrNoIPTables
// where the PATH has none.
func DetectIPTables() (Backend, error) {
	nft, legacy, err := lookupBoth()
	switch {
	case err != nil:
		return nil, err
	case nft == nil:
		return legacy, nil
	case legacy == nil:
		return nft, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), detectTimeout)
	defer cancel()
	if legacy.hostRules(ctx) > nft.hostRules(ctx) {
		return legacy, nil
	}
	return nft, nil
}

// nftablesWork asks a namespace's kernel.
func nftablesWork(within func(func() error) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), detectTimeout)
	defer cancel()
	n, err := openNetfilterIn(within)
	if err == nil {
		defer n.close()
		q := query{subsystem: unix.NFNL_SUBSYS_NFTABLES, get: unix.NFT_MSG_GETTABLE, got: unix.NFT_MSG_NEWTABLE}
		err = n.dump(ctx, q, func([]byte) bool { return true })
	}
	if err != nil && !interrupted(err) {
		return fmt.Errorf("the kernel has no nftables: %w", err)
	}
	return nil
}

// Named returns the backend of that name, as another process detected it.
func Named(name string) (Backend, error) {
	switch name {
	case NameNFTables:
		return &native{defaultLimits()}, nil
	case NameNFT, NameLegacy:
	default:
		return nil, fmt.Errorf("redirect: no backend is called %q; there are %s, %s and %s", name, NameNFT, NameLegacy, NameNFTables)
	}
	nft, legacy, err := lookupBoth()
	if err != nil {
		return nil, err
	}
	for _, b := range []*iptables{nft, legacy} {
		if b != nil && b.name == name {
			return b, nil
		}
	}
	return nil, fmt.Errorf("redirect: %w: not the variant %s", ErrNoIPTables, name)
}

// lookupBoth finds the variants; one of them may be nil.
func lookupBoth() (nft, legacy *iptables, err error) {
	nft, errNFT := lookup(NameNFT)
	legacy, errLegacy := lookup(NameLegacy)
	if errNFT != nil && errLegacy != nil {
		return nil, nil, fmt.Errorf("redirect: %w: %w", ErrNoIPTables, errors.Join(errNFT, errLegacy))
	}
	if errNFT == nil && errLegacy == nil {
		nft.other, legacy.other = legacy, nft
		legacy.turns = nft.turns
	}
	return nft, legacy, nil
}

// lookup finds a variant's programs: under the variant's name, or under the
// plain one if that is the variant.
func lookup(name string) (*iptables, error) {
	_, variant, _ := strings.Cut(name, "-")
	b := &iptables{limits: defaultLimits(), name: name, tools: map[Family]tool{}}
	t, err := lookupTool("iptables", variant)
	if err != nil {
		return nil, err
	}
	b.tools[IPv4] = t
	if t, err := lookupTool("ip6tables", variant); err == nil {
		b.tools[IPv6] = t
	}
	return b, nil
}

func lookupTool(program, variant string) (t tool, err error) {
	if t, err = lookPair(program + "-" + variant); err == nil {
		return t, nil
	}
	t, plainErr := lookPair(program)
	if plainErr != nil {
		return t, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), detectTimeout)
	defer cancel()
	version, err := runTool(ctx, here, "", t.save, "-V")
	if err != nil {
		return t, err
	}
	if got := variantOf(version); got != variant {
		return t, fmt.Errorf("%s is the %s variant", t.save, got)
	}
	return t, nil
}

func lookPair(prefix string) (t tool, err error) {
	save, errSave := exec.LookPath(prefix + "-save")
	restore, errRestore := exec.LookPath(prefix + "-restore")
	return tool{save, restore}, errors.Join(errSave, errRestore)
}

// variantOf reads "iptables-save v1.8.9 (nf_tables)". Before 1.8 there was one
// variant and no word for it.
func variantOf(version string) string {
	if strings.Contains(version, "(nf_tables)") {
		return "nft"
	}
	return "legacy"
}

// hostRules counts the rules of this process's own namespace that a variant
// sees.
func (b *iptables) hostRules(ctx context.Context) (n int) {
	if b.name == NameLegacy {
		if used, err := legacyInUse(here); err != nil || !used {
			return 0
		}
	}
	for _, t := range b.tools {
		// One that cannot be read has no rules to follow.
		if out, err := runTool(ctx, here, "", t.save); err == nil {
			n += strings.Count(out, "\n-A ")
		}
	}
	return n
}

// here is the process's own namespace.
func here(fn func() error) error { return fn() }

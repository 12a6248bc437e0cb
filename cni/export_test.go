package cni

import "time"

// MainWithin is Main with another lifetime.
func MainWithin(version string, lifetime time.Duration) int { return mainWithin(version, lifetime) }

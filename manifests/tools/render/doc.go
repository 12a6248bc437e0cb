// Package render renders Warren's manifests without a cluster: the Helm chart
// with any values, also as an install beside objects that are there already, and
// kustomize folders. It takes the place of helm and kubectl in tests.
package render

// Package dirwatch says when folders are worth a look.
//
// Kind: bottom. Used by xds/file and nodeagent/install, which look at folders now and then
// anyhow: a watch only makes them do it sooner.
package dirwatch

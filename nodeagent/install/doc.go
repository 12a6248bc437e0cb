// Package install puts the plugin's binary and its entry in the primary CNI's
// configuration on the host, keeps them there, and takes them away again.
//
// Runtimes take the first network configuration in the order of file names, at
// once when the folder changes, and containerd takes none at all while that
// first file is broken. So every file appears and changes by a rename in its
// own folder, the binary is there before anything names it, and nothing names
// it any more when it goes. What cannot be understood is left untouched.
//
// The entry is put into the primary's file, or into a copy of ours that sorts
// before it. A change of the primary's file is an exchange of two files: what
// comes out is looked at, and goes back if it is not what was read. So nothing
// that the primary writes meanwhile is lost, by renaming or in place.
//
//	primary's file    .conflist           .conf, .json, a link
//	Chained           entry put into it   copy beside it (10-x-warren.conflist)
//	not Chained       copy, before all other files (00-00-warren.conflist)
//
// Beside multus, whose file comes first and holds a copy of another one in the
// same folder, the entry always goes to that other one.
//
// Each round (pass.go) looks at the folders, plans as a pure function of what is
// there (plan.go) and carries that out. Folders are watched and polled. The
// copy's extra key says whose copy it is and that the file is ours to remove.
//
// Kind: adapter.
package install

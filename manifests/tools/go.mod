module github.com/warren-mesh/warren/manifests/tools

go 1.26.0

require (
	github.com/google/go-containerregistry v0.22.1
	pault.ag/go/debian v0.19.0
)

require (
	github.com/kjk/lzma v0.0.0-20161016003348-3fd93898850d // indirect
	github.com/klauspost/compress v1.19.2 // indirect
	github.com/opencontainers/go-digest v1.0.0 // indirect
	github.com/opencontainers/image-spec v1.1.1 // indirect
	github.com/xi2/xz v0.0.0-20171230120015-48954b6210f8 // indirect
	golang.org/x/crypto v0.40.0 // indirect
	pault.ag/go/topsort v0.1.1 // indirect
)

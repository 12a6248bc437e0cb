# Warren: `make demo` and `make test` are the two commands to know; `make help` lists the rest.

GO      ?= go
BIN     := bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X main.version=$(VERSION)
ifdef FIPS
# FIPS=1: cryptography by Go's FIPS 140-3 module in its validated version, and by nothing else.
export GOFIPS140 := v1.0.0
endif

# Privileged tests make network namespaces. As root they run as they are; anyone
# else gets a user, network and mount namespace, where the kernel allows it: with
# a /run of its own (for named namespaces) and a loopback that is up.
ifeq ($(shell id -u),0)
ROOTLY :=
else
ROOTLY := unshare --map-root-user --net --mount -- sh -c 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$$@"' sh
endif
TESTENV := env "PATH=$$PATH:/usr/sbin:/sbin" WARREN_BINS=$(CURDIR)/$(BIN)

CNI_PLUGINS := github.com/containernetworking/plugins/plugins/main/bridge github.com/containernetworking/plugins/plugins/ipam/host-local
FUZZTIME    ?= 10s

ARCHS       ?= amd64 arm64

.PHONY: help deps build plugins e2e-spire test-apiserver test-istiod test-envoy render helm manifests images images-lock demo test test-race e2e bench bench-go lint fuzz ci clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

deps: ## install the system packages that are missing (or name them)
	@sh ./e2e/deps.sh

build: ## the four programs, into bin/ (FIPS=1: with Go's FIPS 140-3 module)
	$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN)/ ./*/cmd/*

plugins: ## the CNI plugins that the demo and the tests chain with, from their Go module
	$(GO) build -o $(BIN)/ $(CNI_PLUGINS)

render: ## what renders the manifests, from its Go module
	$(GO) -C manifests/tools build -o $(CURDIR)/$(BIN)/render ./cmd/render

helm: ## helm itself, of the version that the chart is tried with
	$(GO) -C manifests/tools/helm build -o $(CURDIR)/$(BIN)/helm helm.sh/helm/v3/cmd/helm

manifests: render ## the kustomize folders, out of the chart
	$(BIN)/render split manifests/charts/warren manifests/kustomize

images: ## one tar a program and architecture for docker load, into bin/images, tagged VERSION (ARCHS=amd64 for one)
	@for arch in $(ARCHS); do \
		CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) build -trimpath -buildvcs=false -ldflags '-s -w $(LDFLAGS)' -o $(BIN)/linux-$$arch/ ./*/cmd/* || exit 1; \
	done
	$(GO) -C manifests/tools build -o $(CURDIR)/$(BIN)/images-builder ./cmd/images
	$(BIN)/images-builder -version $(VERSION) -arch "$$(echo $(ARCHS) | tr ' ' ,)" $(IMAGESFLAGS)

images-lock: ## take the newest Debian packages for the images, and remember them
	$(GO) -C manifests/tools build -o $(CURDIR)/$(BIN)/images-builder ./cmd/images
	$(BIN)/images-builder -relock

demo: deps build plugins ## a two-node mesh on this machine, real requests, and the proof (KEEP=1 leaves it running)
	$(GO) build -o $(BIN)/demo ./e2e/demo/cmd/demo
	$(ROOTLY) $(TESTENV) $(BIN)/demo -bin $(BIN) $(if $(KEEP),-keep)

test: deps build plugins render ## every test that needs no cluster
	@$(GO) list -test -deps ./... >/dev/null # modules are fetched here: inside the namespace there is no network
	$(GO) -C manifests/tools test -count=1 ./...
	$(ROOTLY) $(TESTENV) sh ./e2e/test.sh '-count=1 -timeout 15m' ./...

test-race: deps build plugins render ## the same under the race detector, but for the whole-mesh tests
	$(ROOTLY) $(TESTENV) sh ./e2e/test.sh '-race -count=1 -timeout 20m' $$($(GO) list ./... | grep -v /e2e/)

e2e: deps build plugins ## the whole-mesh tests alone
	$(ROOTLY) $(TESTENV) $(GO) test -count=1 -timeout 15m -v ./e2e/onehost/...

e2e-spire: ## the sources of certificates against a real SPIRE (SPIRE_SERVER_BIN, SPIRE_AGENT_BIN: its programs; as root)
	$(GO) test -tags spire -count=1 -timeout 15m $(TESTFLAGS) ./e2e/spire

e2e-kube: e2e-kube-where e2e-kube-images render helm ## the mesh on the cluster of $$KUBECONFIG, whose nodes get the images by E2E_LOAD='a command' (unset: they are there); TESTFLAGS='-run TestPaths'
	$(E2E_KUBE) ./e2e/kube/run.sh $(TESTFLAGS)

e2e-kind: e2e-kube-images render helm ## the same on a cluster that kind makes (KIND_IMAGE, KIND, E2E_KEEP=1)
	$(E2E_KUBE) ./e2e/kube/kind.sh $(TESTFLAGS)

# The application of the cluster tests has an image as well, which is not released.
E2E_ARCH ?= $(shell $(GO) env GOARCH)
E2E_KUBE := env "PATH=$$PATH" GO=$(GO) VERSION=$(VERSION) E2E_ARCH=$(E2E_ARCH) sh
.PHONY: e2e-kube e2e-kind e2e-kube-where e2e-kube-images
e2e-kube-where:
	@test -n "$$KUBECONFIG" || { echo 'KUBECONFIG is not set: name the file that leads to the cluster under test, or run make e2e-kind, which makes one' >&2; exit 1; }
e2e-kube-images:
	CGO_ENABLED=0 GOOS=linux GOARCH=$(E2E_ARCH) $(GO) build -trimpath -buildvcs=false -ldflags '-s -w' -o $(BIN)/linux-$(E2E_ARCH)/ ./e2e/kube/app/cmd/meshapp
	$(MAKE) images ARCHS=$(E2E_ARCH) VERSION=$(VERSION) IMAGESFLAGS=-for-tests

test-apiserver: ## the control plane on a real API server: WARREN_KUBE_BIN is the folder with kube-apiserver and etcd
	$(GO) test -count=1 -tags apiserver -timeout 15m ./xds/controlplane

test-istiod: build plugins ## scenarios under Istio's own control plane: ISTIOD_BIN, KUBE_APISERVER_BIN and ETCD_BIN name the programs
	$(ROOTLY) $(TESTENV) $(GO) test -count=1 -tags istiod -timeout 30m ./e2e/istiod

test-envoy: build plugins ## a real Envoy as waypoint and as HBONE peer: ENVOY_BIN names the program
	$(ROOTLY) $(TESTENV) $(GO) test -count=1 -tags envoy -timeout 15m $(TESTFLAGS) ./e2e/envoy

bench: deps build plugins ## what the mesh costs (about 25 minutes); PEER=/path/to/proxy measures another beside ours, BENCHFLAGS='-list' names the loads
	$(GO) build -o $(BIN)/bench ./e2e/bench/cmd/bench
	$(ROOTLY) $(TESTENV) $(BIN)/bench -bin $(BIN) $(if $(PEER),-peer $(PEER)) $(BENCHFLAGS)

bench-go: ## benchmarks of the inner pieces, with allocations
	$(GO) test -run '^$$' -bench . -benchmem ./proxy/... ./xds/workload/... ./xds/client/... ./ca/mtls/...

lint: ## gofmt, vet, staticcheck and the repository's own rules
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags kube,apiserver,istiod,spire,envoy ./e2e/kube ./e2e/istiod ./e2e/spire ./e2e/envoy ./xds/controlplane
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 ./internal/archtest

fuzz: ## every fuzz target for FUZZTIME each
	@sh ./e2e/fuzz.sh $(FUZZTIME)

ci: lint test test-race fuzz demo ## precisely what .ci/run runs

clean: ## remove what was built
	rm -rf $(BIN) out

{{/* What a platform's nodes have where. Go's table of the same is nodeagent/install's. */}}
{{- define "warren.platforms" -}}
default: {confDir: /etc/cni/net.d, binDir: /opt/cni/bin, chained: true}
gke: {confDir: /etc/cni/net.d, binDir: /home/kubernetes/bin, chained: true}
k3s: {confDir: /var/lib/rancher/k3s/agent/etc/cni/net.d, binDir: /var/lib/rancher/k3s/data/cni, chained: true}
k3d: {confDir: /var/lib/rancher/k3s/agent/etc/cni/net.d, binDir: /bin, chained: true}
microk8s: {confDir: /var/snap/microk8s/current/args/cni-network, binDir: /var/snap/microk8s/current/opt/cni/bin, chained: true}
minikube: {confDir: /etc/cni/net.d, binDir: /opt/cni/bin, chained: true, netnsDir: /var/run/docker/netns}
openshift: {confDir: /etc/kubernetes/cni/net.d, binDir: /var/lib/cni/bin, chained: false, keepBinary: true}
{{- end }}

{{- define "warren.platform" -}}
{{- $p := index (include "warren.platforms" . | fromYaml) .Values.platform }}
{{- $cni := .Values.nodeagent.cni }}
{{- $chained := $p.chained }}
{{- if not (kindIs "invalid" $cni.chained) }}{{ $chained = $cni.chained }}{{ end }}
{{- $keep := $p.keepBinary | default false }}
{{- if not (kindIs "invalid" $cni.keepBinary) }}{{ $keep = $cni.keepBinary }}{{ end -}}
confDir: {{ $cni.confDir | default $p.confDir }}
binDir: {{ $cni.binDir | default $p.binDir }}
chained: {{ $chained }}
keepBinary: {{ $keep }}
netnsDir: {{ .Values.nodeagent.netnsDir | default $p.netnsDir | default "/var/run/netns" }}
{{- end }}

{{/* An image by its short name: (list . "warren-proxy") */}}
{{- define "warren.image" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}
{{- with $root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $name }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{/* Labels of every object: (list . "component") */}}
{{- define "warren.labels" -}}
app: {{ index . 1 }}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/part-of: warren
{{- end }}

{{/* Labels of a pod of ours: never in a mesh itself, this one or another. */}}
{{- define "warren.podLabels" -}}
{{ include "warren.labels" . }}
istio.io/dataplane-mode: none
sidecar.istio.io/inject: "false"
{{- end }}

{{- define "warren.proxyAccount" -}}
{{ .Values.proxy.serviceAccountName | default .Values.proxy.name }}
{{- end }}

{{- define "warren.controlPlaneAddress" -}}
{{- if .Values.controlPlane.address -}}
{{ .Values.controlPlane.address }}
{{- else -}}
warren-controlplane.{{ .Release.Namespace }}.svc:15012
{{- end }}
{{- end }}

{{/* The folders of a SPIFFE agent's sockets, each once: paths on the node and in the pod. */}}
{{- define "warren.socketDirs" -}}
{{- $dirs := list }}
{{- with .Values.proxy.identity.sockets }}
{{- range list .workloadAPI .broker .admin }}
{{- if . }}{{ $dirs = append $dirs (dir .) }}{{ end }}
{{- end }}
{{- end }}
{{- $dirs | uniq | toJson }}
{{- end }}

{{/* Whether the proxy proves to SPIRE which process is a pod's, and must see them. */}}
{{- define "warren.attestsProcesses" -}}
{{- with .Values.proxy.identity }}{{ if and .sockets.admin (eq .attest "pid") }}yes{{ end }}{{ end }}
{{- end }}

{{/* A value as an argument of a program: quoted, whatever is in it. */}}
{{- define "warren.arg" -}}
- {{ printf "--%s=%v" (index . 0) (index . 1) | toJson }}
{{- end }}

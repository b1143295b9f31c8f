{{/* Names, labels, and what several objects have in common. */}}

{{- define "virtkit.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* 40 characters leave room for "-openvswitch" and for what controllers add to names of pods. */}}
{{- define "virtkit.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "virtkit.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "virtkit.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that never change: (list ROOT COMPONENT). They are those of selectors and pods, so that
a new version of the chart alone replaces no pod. */}}
{{- define "virtkit.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "virtkit.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "virtkit.labels" -}}
{{- $root := index . 0 -}}
{{ include "virtkit.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "virtkit.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end -}}

{{/* What every pod has. None of them speaks to the API server, so none has a token for it. All are
on their node's network: they are there before there is any other. */}}
{{- define "virtkit.pod" -}}
serviceAccountName: {{ include "virtkit.fullname" . }}
automountServiceAccountToken: false
hostNetwork: true
dnsPolicy: Default
enableServiceLinks: true
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Where the fabric database is, for nvctl. kubelet tells the Service's address to every container
of its namespace, and kube-proxy serves it to processes of the node also: so it is found before
there is a pod network and cluster DNS, wherever the database runs. */}}
{{- define "virtkit.db" -}}
- name: VIRTKIT_DB
{{- if .Values.database.enabled }}
  {{- $service := printf "%s-database" (include "virtkit.fullname" .) | upper | replace "-" "_" }}
  value: tcp:$({{ $service }}_SERVICE_HOST):$({{ $service }}_SERVICE_PORT)
{{- else }}
  value: {{ required "database.address: database.enabled is false, so say where the fabric database is: tcp:IP:PORT." .Values.database.address }}
{{- end }}
{{- end -}}

{{/* A container of root that may nothing else: it writes files of root's on the node. SELinux would
not let it; spc_t is the type that containers with the node's files have, elsewhere it says
nothing. */}}
{{- define "virtkit.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
seLinuxOptions:
  type: spc_t
{{- end -}}

{{/* A container that touches nothing of the node. */}}
{{- define "virtkit.nobody" -}}
runAsNonRoot: true
runAsUser: 65534
runAsGroup: 65534
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* What keeps pods from nodes that have no network yet, and must not keep these. */}}
{{- define "virtkit.early" -}}
- key: node.kubernetes.io/not-ready
  operator: Exists
- key: node.kubernetes.io/network-unavailable
  operator: Exists
- key: node.cloudprovider.kubernetes.io/uninitialized
  operator: Exists
- key: node-role.kubernetes.io/control-plane
  operator: Exists
{{- end -}}

{{- /* Names, labels and images: what more than one template says. */ -}}

{{- define "inferencerun.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Of objects that belong to no namespace: two releases of one name may be in two namespaces. */ -}}
{{- define "inferencerun.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "inferencerun.fullname" .) -}}
{{- end -}}

{{- define "inferencerun.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "inferencerun.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "inferencerun.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: {{ .Chart.Name }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "inferencerun.controllerAccount" -}}
{{- if .Values.controller.serviceAccount.create -}}
{{- .Values.controller.serviceAccount.name | default (include "inferencerun.fullname" .) -}}
{{- else -}}
{{- .Values.controller.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- /* Empty = the default account of the namespace a run is in. */ -}}
{{- define "inferencerun.workerAccount" -}}
{{- if .Values.worker.serviceAccount.create -}}
{{- .Values.worker.serviceAccount.name | default (printf "%s-worker" (include "inferencerun.fullname" .)) -}}
{{- else -}}
{{- .Values.worker.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* Namespaces in which workers get objects of their own: as YAML, for fromYamlArray. */ -}}
{{- define "inferencerun.workerNamespaces" -}}
{{- .Values.worker.namespaces | default (list (.Values.controller.watchNamespace | default .Release.Namespace)) | uniq | toYaml -}}
{{- end -}}

{{- /* Takes a list: the root, and the image's values. */ -}}
{{- define "inferencerun.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $root.Values.imageRegistry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{- define "inferencerun.workerLabels" -}}
{{- include "inferencerun.labels" . | replace "component: controller" "component: worker" -}}
{{- end -}}

{{- /* Of what the Prometheus operator reads, which often selects by a label. */ -}}
{{- define "inferencerun.monitorLabels" -}}
{{- include "inferencerun.labels" . }}
{{- with .Values.metrics.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "inferencerun.egress" -}}
- ports: # names
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
- ports: # the API server, and the store
    {{- range .Values.networkPolicy.egressPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
- to: # credentials that belong to the pod's service account: GKE, EKS
    - ipBlock: {cidr: 169.254.0.0/16}
  ports:
    - {port: 80, protocol: TCP}
    - {port: 988, protocol: TCP}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}

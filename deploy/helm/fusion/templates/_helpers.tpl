{{- define "fusion.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "fusion.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "fusion.selector" . }}
{{- end -}}

{{- define "fusion.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fusion.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "fusion.name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "fusion.scheduler" -}}
{{ ternary "tls" "tcp" (not (empty .Values.tls.secretName)) }}://{{ include "fusion.name" . }}-scheduler:8786
{{- end -}}

{{- /* image reference of a dictionary with repository, tag, digest; `latest` is refused: a retried job must meet the same code */ -}}
{{- define "fusion.image" -}}
{{- $image := .image -}}
{{- $tag := $image.tag | default .context.Chart.AppVersion -}}
{{- if and (eq $tag "latest") (not $image.digest) -}}
{{- fail "image.tag latest may change between two pods of one job: name a version or a digest" -}}
{{- end -}}
{{- if $image.digest -}}{{ $image.repository }}@{{ $image.digest }}{{- else -}}{{ $image.repository }}:{{ $tag }}{{- end -}}
{{- end -}}

{{- /* what every pod has: no API token, an unprivileged user */ -}}
{{- define "fusion.pod" -}}
serviceAccountName: {{ include "fusion.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- range $key, $value := .Values.identity }}
  {{- if not (kindIs "invalid" $value) }}
  {{ $key }}: {{ $value | int64 }}
  {{- end }}
  {{- end }}
  {{- if not (kindIs "invalid" .Values.identity.fsGroup) }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "fusion.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "fusion.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{- /* environment of every container; `data`: also what reads and writes data */ -}}
{{- define "fusion.environment" -}}
{{- $name := include "fusion.name" .context -}}
envFrom:
  - configMapRef:
      name: {{ $name }}-environment
  {{- if .data }}
  {{- range .context.Values.credentials }}
  - secretRef:
      name: {{ . }}
  {{- end }}
  {{- end }}
env:
  - name: DASK_CONFIG
    value: /etc/dask
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  {{- if .data }}
  {{- range $key, $value := mergeOverwrite (dict) .context.Values.env (.env | default dict) }}
  - name: {{ $key }}
    value: {{ $value | quote }}
  {{- end }}
  {{- end }}
{{- end -}}

{{- define "fusion.mounts" -}}
- name: dask
  mountPath: /etc/dask
  readOnly: true
- name: scratch
  mountPath: /scratch
{{- if .context.Values.tls.secretName }}
- name: tls
  mountPath: /etc/dask-tls
  readOnly: true
{{- end }}
{{- if .data }}
- name: cache
  mountPath: /cache
{{- range $i, $file := .context.Values.secretFiles }}
- name: secret-{{ $i }}
  mountPath: {{ $file.mountPath }}
  readOnly: true
{{- end }}
{{- range $i, $volume := .context.Values.volumes }}
- name: volume-{{ $i }}
  mountPath: {{ $volume.mountPath }}
  {{- with $volume.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
  readOnly: {{ $volume.readOnly | default false }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "fusion.volumes" -}}
- name: dask
  configMap:
    name: {{ include "fusion.name" .context }}-dask
- name: scratch
  emptyDir:
    sizeLimit: {{ .scratch }}
{{- if .context.Values.tls.secretName }}
- name: tls
  secret:
    secretName: {{ .context.Values.tls.secretName }}
    defaultMode: 0440
{{- end }}
{{- if .data }}
- name: cache
  {{- if .cache.claimName }}
  persistentVolumeClaim:
    claimName: {{ .cache.claimName }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .cache.size }}
  {{- end }}
{{- range $i, $file := .context.Values.secretFiles }}
- name: secret-{{ $i }}
  secret:
    secretName: {{ $file.secretName }}
    defaultMode: 0440
{{- end }}
{{- range $i, $volume := .context.Values.volumes }}
- name: volume-{{ $i }}
  persistentVolumeClaim:
    claimName: {{ $volume.claimName }}
    readOnly: {{ $volume.readOnly | default false }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* the job's text, checked for the two mistakes that only show in a cluster */ -}}
{{- define "fusion.job" -}}
{{- $job := required "job is empty: --set-file job=job.toml" .Values.job -}}
{{- $store := regexFind "store\\s*=\\s*[\"'][^\"']+" $job | regexFind "[^\"']+$" -}}
{{- if and $store (not (hasPrefix "/" $store)) (not (contains "://" $store)) -}}
{{- fail (printf "output.store = %q is relative: no two pods share it. Give s3://, gs://, az://, or a path under one of `volumes`" $store) -}}
{{- end -}}
{{- if and $store (hasPrefix "/" $store) -}}
{{- $held := false -}}
{{- range .Values.volumes -}}
{{- if and (not .readOnly) (hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $store) -}}{{- $held = true -}}{{- end -}}
{{- end -}}
{{- if not $held -}}
{{- fail (printf "output.store = %q is in none of the writable `volumes`: it would be lost with its pod" $store) -}}
{{- end -}}
{{- end -}}
{{- $job -}}
{{- end -}}

{{- define "name" -}}
isobard{{ template "suffix" . }}
{{- end }}
{{- define "suffix" -}}
{{ if .Values.revision }}{{ if ne .Values.revision "default" }}-{{ .Values.revision }}{{ end }}{{ end }}
{{- end }}
{{- define "labels" -}}
app: {{ template "name" . }}
    app.kubernetes.io/name: isobard
    app.kubernetes.io/component: control-plane
    app.kubernetes.io/part-of: isobar
    app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
{{- define "tag" -}}
{{ if .Values.global.tag }}{{ .Values.global.tag }}{{ else }}{{ .Chart.AppVersion }}{{ end }}
{{- end }}

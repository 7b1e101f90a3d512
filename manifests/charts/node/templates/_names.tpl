{{- define "labels" -}}
app.kubernetes.io/component: node
    app.kubernetes.io/part-of: isobar
    app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
{{- define "tag" -}}
{{ if .Values.global.tag }}{{ .Values.global.tag }}{{ else }}{{ .Chart.AppVersion }}{{ end }}
{{- end }}

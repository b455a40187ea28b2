{{- define "windlass.labels" -}}
app.kubernetes.io/name: windlass
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .service }}
{{- end }}

{{- define "windlass.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* Where each service answers /healthz, /readyz and /metrics. */}}
{{- define "windlass.port" -}}
{{- get (dict "api" "7400" "scheduler" "7401" "executor" "7402" "notifier" "7403" "auditor" "7404") . -}}
{{- end }}

{{- /* The key files of a service: what it needs and no more. */}}
{{- define "windlass.keys" -}}
{{- get (dict
  "api" "master.key approval.nk agents-account.nk api.creds"
  "scheduler" "scheduler.creds"
  "executor" "master.key executor.nk executor.creds agents.creds"
  "notifier" "master.key notifier.creds"
  "auditor" "auditor.nk auditor.creds") . -}}
{{- end }}

{{- define "windlass.security" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "windlass.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- /* The pod of a service; the same for deployments and the stateful set. */}}
{{- define "windlass.pod" -}}
metadata:
  labels:
    {{- include "windlass.labels" . | nindent 4 }}
  annotations:
    checksum/settings: {{ include (print .root.Template.BasePath "/settings.yaml") .root | sha256sum }}
    {{- with .root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  # It hands its leases over when it is told to stop.
  terminationGracePeriodSeconds: 40
  securityContext:
    {{- include "windlass.security" . | nindent 4 }}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "windlass.labels" . | nindent 10 }}
  initContainers:
    # Key files must belong to whoever reads them and to nobody else; files of a Secret belong to root.
    - name: keys
      image: {{ include "windlass.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      command: [/bin/sh, -c, "umask 077 && mkdir -p /state/keys && cp -L /secret/keys/* /state/keys/"]
      securityContext:
        {{- include "windlass.container-security" . | nindent 8 }}
      resources: { requests: { cpu: 10m, memory: 16Mi }, limits: { memory: 64Mi } }
      volumeMounts:
        - { name: keys, mountPath: /secret/keys, readOnly: true }
        - { name: state, mountPath: /state }
  containers:
    - name: {{ .service }}
      image: {{ include "windlass.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args: [{{ .service }}, --config, /etc/windlass/windlass.toml]
      env:
        - { name: WINDLASS__NATS__SERVICES_CREDS, value: /state/keys/{{ .service }}.creds }
      securityContext:
        {{- include "windlass.container-security" . | nindent 8 }}
      ports:
        - { name: http, containerPort: {{ include "windlass.port" .service }} }
      # A first start may wait for the database and for the migration.
      startupProbe: { httpGet: { path: /healthz, port: http }, periodSeconds: 2, failureThreshold: 60 }
      livenessProbe: { httpGet: { path: /healthz, port: http }, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6 }
      readinessProbe: { httpGet: { path: /readyz, port: http }, periodSeconds: 3, timeoutSeconds: 3 }
      resources:
        {{- toYaml (get .root.Values.resources .service) | nindent 8 }}
      volumeMounts:
        - { name: settings, mountPath: /etc/windlass, readOnly: true }
        - { name: database, mountPath: /etc/windlass-database, readOnly: true }
        - { name: state, mountPath: /state }
        - { name: tmp, mountPath: /tmp }
        {{- if .root.Values.nats.caConfigMap }}
        - { name: nats-ca, mountPath: /etc/windlass-nats, readOnly: true }
        {{- end }}
  volumes:
    - name: settings
      configMap: { name: {{ .root.Release.Name }}-settings }
    - name: database
      secret:
        secretName: {{ .root.Values.database.existingSecret }}
        defaultMode: 0440
        items: [{ key: {{ .service }}, path: url }]
    - name: keys
      secret:
        secretName: {{ .root.Values.keys.existingSecret }}
        defaultMode: 0440
        items:
          {{- range splitList " " (include "windlass.keys" .service) }}
          - { key: {{ . }}, path: {{ . }} }
          {{- end }}
    {{- if ne .service "auditor" }}
    - name: state
      emptyDir: {}
    {{- end }}
    - name: tmp
      emptyDir: {}
    {{- if .root.Values.nats.caConfigMap }}
    - name: nats-ca
      configMap: { name: {{ .root.Values.nats.caConfigMap }} }
    {{- end }}
{{- end }}

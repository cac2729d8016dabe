{{- /* The pod of a role, "cell" or "front". */}}
{{- define "zimage.pod" -}}
{{- $root := .root -}}
{{- $v := $root.Values -}}
{{- $own := ternary $v.front $v.cell (eq .role "front") -}}
{{- $platform := $v.front.enabled -}}
{{- $gpus := ternary 0 (int $v.cell.gpus) (eq .role "front") -}}
{{- $scheme := ternary "HTTPS" "HTTP" (eq (include "zimage.speaksTls" .) "true") -}}
{{- $upSeconds := ($v.config.timeouts | default dict).up_timeout_s | default 1200 -}}
metadata:
  labels:
    {{- include "zimage.labels" . | nindent 4 }}
  annotations:
    checksum/config: {{ include "zimage.toml" . | sha256sum }}
    {{- with $own.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- with $v.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- if and $gpus $v.cell.runtimeClassName }}
  runtimeClassName: {{ $v.cell.runtimeClassName }}
  {{- end }}
  # Longer than the drain: what was accepted is drawn.
  terminationGracePeriodSeconds: {{ include "zimage.graceSeconds" $root }}
  securityContext:
    {{- include "zimage.podSecurity" . | nindent 4 }}
  {{- if $platform }}
  initContainers:
    # Alone with the authority's key: what runs afterwards cannot make itself another host or front.
    - name: enrol
      {{- include "zimage.enrolment" (dict "root" $root "role" .role "what" "enrol") | nindent 6 }}
  {{- end }}
  containers:
    - name: zimage
      image: {{ include "zimage.image" . }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      securityContext:
        {{- include "zimage.containerSecurity" . | nindent 8 }}
      env:
        {{- include "zimage.environment" . | nindent 8 }}
        - {name: ZIMAGE_SECRETS, value: /run/secrets/zimage}
        {{- if include "zimage.speaksTls" . }}
        # A renewed certificate is taken on; no connection ends.
        - {name: ZIMAGE_RELOAD_S, value: "3600"}
        {{- end }}
        {{- if not $gpus }}
        - {name: NVIDIA_VISIBLE_DEVICES, value: void}
        {{- end }}
      ports:
        - {name: http, containerPort: 7860}
        {{- if and $platform (eq .role "cell") }}
        - {name: cluster, containerPort: 7862}
        {{- end }}
      # loading: not started yet. A front has started once its nginx has: hosts may come later.
      startupProbe:
        httpGet: {path: {{ ternary "/healthz" "/readyz" (eq .role "front") }}, port: http, scheme: {{ $scheme }}}
        periodSeconds: 5
        timeoutSeconds: 6
        failureThreshold: {{ max 1 (div (ceil $upSeconds) 5) }}
      # ready and busy: takes requests. draining, and stuck or dead workers and none beside them: none
      # is sent here.
      readinessProbe:
        httpGet: {path: /readyz, port: http, scheme: {{ $scheme }}}
        periodSeconds: 5
        timeoutSeconds: 6
        failureThreshold: 2
      # nginx itself. Stuck and dead workers are the guard's, who is quicker and ends nobody else's
      # request; without supervisord the container ends.
      livenessProbe:
        httpGet: {path: /healthz, port: http, scheme: {{ $scheme }}}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      lifecycle:
        preStop:
          exec:
            {{- if $platform }}
            command: [sh, -c, "zimage hosts leave; sleep {{ $v.preStopSeconds }}"]
            {{- else }}
            command: [sleep, "{{ $v.preStopSeconds }}"]
            {{- end }}
      resources:
        {{- include "zimage.resources" (dict "resources" $own.resources "gpus" $gpus) | nindent 8 }}
      volumeMounts:
        - {name: state, mountPath: /var/lib/zimage}
        - {name: run, mountPath: /run/zimage}
        - {name: tmp, mountPath: /tmp}
        - {name: config, mountPath: /etc/zimage, readOnly: true}
        {{- if include "zimage.secretSources" $root }}
        - {name: secrets, mountPath: /run/secrets/zimage, readOnly: true}
        {{- end }}
        {{- if include "zimage.speaksTls" . }}
        - {name: tls, mountPath: /run/secrets/tls, readOnly: true}
        {{- end }}
        {{- if and $v.cell.sharedMemory (eq .role "cell") }}
        - {name: shared-memory, mountPath: /dev/shm}
        {{- end }}
        {{- with $own.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- if $v.monitoring.enabled }}
    - name: metrics
      image: {{ include "zimage.image" . }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      command: [nginx, -e, stderr, -c, /etc/zimage/metrics.conf]
      securityContext:
        {{- include "zimage.containerSecurity" . | nindent 8 }}
      ports:
        - {name: metrics, containerPort: 9464}
      resources:
        requests: {cpu: 5m, memory: 16Mi}
        limits: {memory: 64Mi}
      volumeMounts:
        - {name: metrics-tmp, mountPath: /tmp}
        - {name: config, mountPath: /etc/zimage, readOnly: true}
    {{- end }}
  volumes:
    {{- include "zimage.volumes" . | nindent 4 }}
    {{- if $v.monitoring.enabled }}
    - name: metrics-tmp
      emptyDir: {}
    {{- end }}
    {{- if include "zimage.speaksTls" . }}
    - name: tls
      secret: {secretName: {{ include "zimage.tlsSecret" $root }}, defaultMode: 0440}
    {{- end }}
    {{- if or (eq .role "front") (not $v.cell.persistence.enabled) }}
    - name: state
      emptyDir: {}
    {{- end }}
    {{- if and $v.cell.sharedMemory (eq .role "cell") }}
    - name: shared-memory
      emptyDir: {medium: Memory, sizeLimit: {{ $v.cell.sharedMemory }}}
    {{- end }}
  {{- with $own.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $own.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  affinity:
    {{- with $own.affinity }}
    {{- toYaml . | nindent 4 }}
    {{- else }}
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          podAffinityTerm:
            topologyKey: kubernetes.io/hostname
            labelSelector:
              matchLabels:
                {{- include "zimage.selector" . | nindent 16 }}
    {{- end }}
{{- end }}

{{- /* A container that takes a pod's place in the cluster, or signs for others: `what`. */}}
{{- define "zimage.enrolment" -}}
image: {{ include "zimage.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [/opt/zimage/deploy/container/pod, {{ .what }}, /etc/zimage/cluster.toml, /run/secrets/authority]
securityContext:
  {{- include "zimage.containerSecurity" . | nindent 2 }}
env:
  {{- include "zimage.environment" . | nindent 2 }}
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: POD_IP
    valueFrom: {fieldRef: {fieldPath: status.podIP}}
volumeMounts:
  - {name: state, mountPath: /var/lib/zimage}
  - {name: run, mountPath: /run/zimage}
  - {name: tmp, mountPath: /tmp}
  - {name: config, mountPath: /etc/zimage, readOnly: true}
  - {name: secrets, mountPath: /run/secrets/zimage, readOnly: true}
  - {name: authority, mountPath: /run/secrets/authority, readOnly: true}
  {{- with (index .root.Values .role).extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "zimage.environment" -}}
- {name: ZIMAGE_CONFIG, value: {{ ternary "/run/zimage/cluster.toml" "/etc/zimage/cluster.toml" .root.Values.front.enabled }}}
{{- end }}

{{- define "zimage.volumes" -}}
- name: run
  emptyDir: {}
- name: tmp
  emptyDir: {}
- name: config
  configMap:
    name: {{ include "zimage.fullname" .root }}-{{ .role }}
{{- with include "zimage.secretSources" .root }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- . | nindent 6 }}
{{- end }}
{{- if .root.Values.front.enabled }}
- name: authority
  secret: {secretName: {{ .root.Values.cluster.existingSecret }}, defaultMode: 0440}
{{- end }}
{{- with (index .root.Values .role).extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "zimage.secretSources" -}}
{{- $sources := list -}}
{{- with .Values.keys.existingSecret -}}
{{- $sources = append $sources (dict "name" . "key" "zimage-key" "path" "zimage-key") -}}
{{- end -}}
{{- if and .Values.database.url .Values.database.existingSecret -}}
{{- $sources = append $sources (dict "name" .Values.database.existingSecret "key" .Values.database.passwordKey "path" "database-password") -}}
{{- end -}}
{{- if .Values.objects.url -}}
{{- $sources = append $sources (dict "name" .Values.objects.existingSecret "key" .Values.objects.credentialsKey "path" "bucket-credentials") -}}
{{- end -}}
{{- range $sources }}
- secret:
    name: {{ .name }}
    items: [{key: {{ .key }}, path: {{ .path }}}]
{{- end }}
{{- end }}

{{- define "zimage.resources" -}}
{{- $all := deepCopy .resources -}}
{{- if .gpus -}}
{{- $_ := set $all "limits" (merge (dict "nvidia.com/gpu" .gpus) ($all.limits | default dict)) -}}
{{- end -}}
{{- toYaml $all -}}
{{- end }}

{{- define "zimage.podSecurity" -}}
runAsNonRoot: true
runAsUser: 7860
runAsGroup: 7860
fsGroup: 7860
# Once, when the volume is new: files that are their owner's alone stay so.
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "zimage.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "zimage.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "zimage.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "zimage.labels" -}}
{{ include "zimage.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Who has clients' requests: the fronts, or the only cell. */}}
{{- define "zimage.entrance" -}}
{{- ternary "front" "cell" .Values.front.enabled -}}
{{- end }}

{{- define "zimage.image" -}}
{{- $image := ternary .root.Values.front.image .root.Values.image (eq .role "front") -}}
{{- printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) -}}
{{- end }}

{{- /* "": people come by plain HTTP, or what is in front of the pods speaks HTTPS. */}}
{{- define "zimage.tlsSecret" -}}
{{- if .Values.tls.certManager.issuer.name -}}
{{- include "zimage.fullname" . }}-tls
{{- else -}}
{{- .Values.tls.existingSecret -}}
{{- end -}}
{{- end }}

{{- define "zimage.speaksTls" -}}
{{- $v := .root.Values -}}
{{- $entrance := eq .role (include "zimage.entrance" .root) -}}
{{- if and $entrance (include "zimage.tlsSecret" .root) (not (or $v.ingress.enabled $v.gateway.enabled)) -}}
true
{{- end -}}
{{- end }}

{{- /* nginx and then all workers may take as long as docs/install.md says. */}}
{{- define "zimage.graceSeconds" -}}
{{- $timeouts := .Values.config.timeouts | default dict -}}
{{- $drain := $timeouts.drain_timeout_s | default 120 -}}
{{- add (ceil (mulf 2 $drain)) 90 (mul 2 .Values.preStopSeconds) 30 -}}
{{- end }}

{{- /* Names of workers, for who asks each for its metrics. */}}
{{- define "zimage.workers" -}}
{{- $workers := .Values.config.workers | default "auto" -}}
{{- $count := 0 -}}
{{- if kindIs "slice" $workers -}}
{{- range $workers }}{{ $count = add $count (.count | default 1) }}{{ end -}}
{{- else -}}
{{- $count = .Values.cell.gpus | default 3 -}}
{{- end -}}
{{- $count -}}
{{- end }}

{{- /* cluster.toml of a role. JSON's scalars and lists are TOML's. */}}
{{- define "zimage.toml" -}}
{{- $values := .root.Values -}}
{{- $config := deepCopy $values.config -}}
{{- range $section := list "cell" "listen" -}}
{{- $_ := set $config $section (index $config $section | default dict) -}}
{{- end -}}
{{- $cell := dict "name" .root.Values.cluster.name "var_dir" "/var/lib/zimage" "run_dir" "/run/zimage/cell" -}}
{{- $_ := set $config "cell" (merge $config.cell $cell) -}}
{{- $_ := set $config "listen" (merge $config.listen (dict "address" "0.0.0.0" "port" 7860 "auth" "keys")) -}}
{{- if include "zimage.speaksTls" . -}}
{{- $pair := dict "certificate" "/run/secrets/tls/tls.crt" "key" "/run/secrets/tls/tls.key" -}}
{{- $_ := set $config "tls" (merge $pair ($config.tls | default dict)) -}}
{{- end -}}
{{- with $values.database.url -}}
{{- $database := dict "url" . -}}
{{- if $values.database.existingSecret -}}
{{- $_ := set $database "password_file" "/run/secrets/zimage/database-password" -}}
{{- end -}}
{{- $_ := set $config "database" $database -}}
{{- end -}}
{{- with $values.objects.url -}}
{{- $files := dict "url" . "endpoint" $values.objects.endpoint "credentials_file" "/run/secrets/zimage/bucket-credentials" -}}
{{- $_ := set $config "objects" (merge $files ($config.objects | default dict)) -}}
{{- end -}}
{{- if $values.front.enabled -}}
{{- $cluster := dict "name" $values.cluster.name "host" "POD_NAME" "role" (ternary "front" "host" (eq .role "front")) -}}
{{- if eq .role "cell" -}}{{- $_ := set $cluster "address" "POD_ADDRESS:7862" -}}{{- end -}}
{{- $_ := set $config "cluster" $cluster -}}
{{- end -}}
{{- range $key, $value := $config }}
{{- if not (or (kindIs "map" $value) (kindIs "slice" $value)) }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- range $key, $value := $config }}
{{- if kindIs "map" $value }}
{{- include "zimage.table" (dict "path" $key "table" $value) }}
{{- else if kindIs "slice" $value }}
{{- range $value }}
[[{{ $key }}]]
{{- range $name, $each := . }}
{{ $name }} = {{ toJson $each }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "zimage.table" }}
[{{ .path }}]
{{- range $key, $value := .table }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- $path := .path }}
{{- range $key, $value := .table }}
{{- if kindIs "map" $value }}
{{- include "zimage.table" (dict "path" (printf "%s.%s" $path $key) "table" $value) }}
{{- end }}
{{- end }}
{{- end }}

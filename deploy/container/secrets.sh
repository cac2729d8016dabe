#!/bin/sh
# Make what compose.yaml mounts as secrets, each once: deploy/container/secrets.sh. What is there stays.
# The folder is its owner's alone; within containers, where the services have other users, each file
# can be read by those of the service that it is mounted into.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets
cd secrets

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
make() {   # name of the file; its text on standard input
    if [ -e "$1" ]; then cat >/dev/null; else cat >"$1" && chmod 444 "$1"; fi
}

random | make postgres-password
random | make grafana-password
printf 'zimage_%s\n' "$(random)" | make zimage-key
if [ ! -e s3-credentials ] || [ ! -e s3-config.json ]; then
    id=$(random) secret=$(random)
    rm -f s3-credentials s3-config.json
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\nregion = us-east-1\n' \
        "$id" "$secret" | make s3-credentials
    printf '{"identities": [{"name": "zimage", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}\n' \
        "$id" "$secret" | make s3-config.json
fi
echo "made in $PWD, where they were missing"

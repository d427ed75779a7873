#!/bin/sh
# Starts the server with redis.conf from this script's folder and the password from REDIS_PASSWORD. The password
# goes in through standard input, so that it is neither in the arguments, which `ps` shows, nor in a file.
# Options after the script's name go to the server.
set -eu
: "${REDIS_PASSWORD:?set REDIS_PASSWORD}"
folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
quoted=$(printf '%s' "$REDIS_PASSWORD" | sed 's/[\\"]/\\&/g')
exec "$(command -v valkey-server || command -v redis-server)" "$folder/redis.conf" "$@" - <<END
requirepass "$quoted"
END

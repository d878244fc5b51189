#!/usr/bin/env bash
# Start Ray on this machine, in a session of its own, with a token:  clusters/local/up.sh [OPTION OF ray start …]
# LINGU_RAY_STATE: where token and log are (~/.lingu_ray); LINGU_RAY_PORT: of the dashboard (8265), two more follow it.
set -euo pipefail

state=${LINGU_RAY_STATE:-$HOME/.lingu_ray}/local
port=${LINGU_RAY_PORT:-8265}
if [[ -e $state/session ]]; then
    echo "A cluster is up already, or was not ended: clusters/local/down.sh" >&2
    exit 1
fi
for used in "$port" $((port + 1)) $((port + 2)); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$used") 2>/dev/null; then
        echo "Something else has port $used: LINGU_RAY_PORT=… for another one" >&2
        exit 1
    fi
done

# Who has the token may run anything in this cluster; the file is its owner's alone.
umask 077
mkdir -p "$state"
python -c 'import secrets; print(secrets.token_hex(32))' >"$state/token"
cat >"$state/env" <<END
unset RAY_AUTH_TOKEN # of another cluster, which Ray would take first
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH='$state/token' RAY_API_SERVER_ADDRESS=http://127.0.0.1:$port
export no_proxy=127.0.0.1,\${no_proxy:-\${NO_PROXY:-}} # a proxy, which Ray's commands would ask, does not reach it
END
# shellcheck source=/dev/null
source "$state/env"

# Ray ends at once when it is told to: down.sh stops the jobs before. Freed memory is used again at once.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 RAY_free_objects_batch_size=1
setsid ray start --head --block --disable-usage-stats --node-ip-address=127.0.0.1 --port=0 \
    --dashboard-host=127.0.0.1 --dashboard-port="$port" --ray-client-server-port=$((port + 1)) \
    --dashboard-agent-listen-port=$((port + 2)) "$@" </dev/null >"$state/log" 2>&1 &
session=$!
echo "$session" >"$state/session"

until ray job list >/dev/null 2>&1; do
    if ! kill -0 "$session" 2>/dev/null || ((SECONDS > 120)); then
        tail -n 20 "$state/log" >&2
        "$(dirname "$0")/down.sh"
        exit 1
    fi
    sleep 0.5
done
echo "Ray is up. In each shell that uses it: source $state/env"

#!/usr/bin/env bash
# Let the jobs of the cluster that up.sh started save and stop, then end it. Other clusters on this machine stay.
set -euo pipefail

state=${LINGU_RAY_STATE:-$HOME/.lingu_ray}/local
if [[ ! -e $state/session ]]; then
    echo "No cluster is up."
    exit
fi
session=$(<"$state/session")
members() { # processes of the session; the number may be another program's after a restart of the machine
    ps -o pid=,args= -s "$session" | awk '/ray/ { print $1 }'
}
end() {
    local pids
    mapfile -t pids < <(members)
    [[ ${#pids[@]} == 0 ]] || kill "-$1" "${pids[@]}" 2>/dev/null || true
}

if [[ $(members) ]]; then
    # shellcheck source=/dev/null
    source "$state/env"
    python - <<'END' || echo "Its jobs could not be stopped; they are ended without saving." >&2
import sys, time
from ray.job_submission import JobSubmissionClient

try:
    client = JobSubmissionClient()
except ConnectionError:
    sys.exit("Its head does not answer.")
def running():
    return [job for job in client.list_jobs() if job.submission_id and not job.status.is_terminal()]

for job in running():
    print("stopping", job.submission_id)
    client.stop_job(job.submission_id)
while running():
    time.sleep(0.5)
END
    end TERM
    for _ in {1..40}; do
        [[ $(members) ]] || break
        sleep 0.5
    done
    end KILL
fi
rm -f "$state/session" "$state/token" "$state/env"

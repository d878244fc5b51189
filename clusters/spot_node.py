"""Runs Ray on a spot machine, and ends it gently when the cloud says that it takes the machine away.

    python spot_node.py {aws,gcp} ray start --block --address=HEAD:6379

Ray drains a node on SIGTERM to `ray start --block`: runs save, and leave it. Ray's launcher does not ask the cloud, so
its files start workers by this. Standard library alone. The metadata service is asked where AWS's and Google's own
libraries ask it: AWS_EC2_METADATA_SERVICE_ENDPOINT and GCE_METADATA_HOST name another one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

EVERY_S = 5.0
AWS = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/") + "/latest"
GCP = f"http://{os.environ.get('GCE_METADATA_HOST', 'metadata.google.internal')}/computeMetadata/v1"
_DIRECT = build_opener(ProxyHandler({}))
"""Past the proxies of the environment: to them the service is another machine's, or none."""


def asked(url: str, method: str = "GET", **headers: str) -> str:
    """What the metadata service answers. Raises OSError where it does not."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with _DIRECT.open(Request(url, method=method, headers=named), timeout=2) as answer:
            return answer.read().decode()
    except (HTTPException, UnicodeDecodeError) as error:  # no HTTP, or cut off
        raise OSError(repr(error)) from error


def taken_by_aws() -> bool:
    """Two minutes before the end there is an action; until then, 404. AWS: "spot instance interruption notices"."""
    token = asked(f"{AWS}/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    try:
        return bool(asked(f"{AWS}/meta-data/spot/instance-action", X_aws_ec2_metadata_token=token))
    except HTTPError as error:
        if error.code == 404:
            return False
        raise


def taken_by_gcp() -> bool:
    """Thirty seconds before the end it is TRUE. https://cloud.google.com/compute/docs/instances/preemptible"""
    return asked(f"{GCP}/instance/preempted", Metadata_Flavor="Google").strip() == "TRUE"


CLOUDS = {"aws": taken_by_aws, "gcp": taken_by_gcp}


def run(cloud: str, command: list[str]) -> int:
    """Run the command to its end, sooner at the notice; returns its exit status."""
    node, silent = subprocess.Popen(command), False
    signal.signal(signal.SIGTERM, lambda *_: node.terminate())
    while node.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            node.wait(EVERY_S)
        try:
            if node.poll() is None and CLOUDS[cloud]():
                print(f"{cloud} takes this machine away: Ray drains it", flush=True)
                node.terminate()
                node.wait()
        except OSError as error:
            if not silent:  # said once: a service that is away may come back
                print(f"the metadata service of {cloud} does not answer, and is asked again: {error}", flush=True)
            silent = True
    return node.returncode


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in CLOUDS:
        sys.exit(__doc__)
    sys.exit(run(sys.argv[1], sys.argv[2:]))

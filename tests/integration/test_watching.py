"""A run is watched from outside: a real Prometheus scrapes the cluster, and the dashboard's queries ask it."""

import json
import re
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import commands
import pytest
from tinyrun import write_settings

from benchmarks.ports import free_port
from lingu_ray.runtime.tracking import metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]

TESTS = Path(__file__).parents[1]
DASHBOARD = TESTS.parent / "clusters" / "grafana" / "lingu_ray.json"
NODES = "prom_metrics_service_discovery.json"


def queries() -> list[str]:
    """Every query of the dashboard, for all runs, and that of its list of runs."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    lists = [one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    found += [re.sub(r"label_values\((\w+), (\w+)\)", r"count by (\2) (\1)", one) for one in lists]
    return [query.replace("$run", ".*") for query in found]


class Prometheus:
    """A real one that scrapes the nodes of the file every second."""

    def __init__(self, nodes: Path, folder: Path, stack: ExitStack):
        self.port = free_port()
        scrape = {"job_name": "ray", "scrape_interval": "1s", "file_sd_configs": [{"files": [str(nodes)]}]}
        settings = folder / "prometheus.json"  # JSON is YAML
        settings.write_text(json.dumps({"scrape_configs": [scrape]}))
        argv = ["prometheus", f"--config.file={settings}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        argv += [f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"]
        self.command = stack.enter_context(commands.Command(argv))

    def ask(self, query: str) -> list[dict]:
        """The query's series; none where it does not answer yet."""
        address = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return json.load(answer)["data"]["result"]
        except (ConnectionError, urllib.error.URLError, TimeoutError):
            return []


def test_every_query_of_the_dashboard_has_data_during_a_run(data: Path, warm_workers: Path, tmp_path: Path) -> None:
    """Each of our metrics is asked for by some panel, each query answers while a run trains, and the values of
    Prometheus are those that the run records."""
    asked = queries()
    names = [*metrics.OF_RECORDS, metrics.PLANNED_STEPS, metrics.REJECTED_ROWS, metrics.CHECKPOINT_TIME]
    assert not [name for name in names if not any(f"ray_lingu_{name}{{" in query for query in asked)]

    train = {"steps": 100000, "checkpoint_every": 50, "validate_every": 50, "sample_every": 0}
    settings = write_settings(tmp_path / "run.yaml", data, tmp_path / "runs", name="watched", train=train)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True)))
        words = ["watchedrun", str(folder), str(free_port()), str(settings)]
        run = stack.enter_context(commands.Command(words, TESTS, warm=True))
        prometheus = Prometheus(folder / NODES, tmp_path, stack)
        for query in asked:
            run.wait_for(lambda query=query: prometheus.ask(query), seconds=400)
        (planned,) = prometheus.ask("ray_lingu_planned_steps")
        assert planned["metric"]["run"] == "watched" and planned["value"][1] == "100000"
        rejected = prometheus.ask("ray_lingu_rejected_rows")
        assert {one["metric"]["source"]: one["value"][1] for one in rejected} == {"text": "0", "pictures": "0"}
        (age,) = prometheus.ask("time() - ray_lingu_checkpoint_timestamp_seconds")
        assert 0 <= float(age["value"][1]) < 120
        (loss,), lines = prometheus.ask("ray_lingu_loss"), (tmp_path / "runs/watched/metrics.jsonl").read_text()
        assert float(loss["value"][1]) in [json.loads(line).get("loss") for line in lines.splitlines()]

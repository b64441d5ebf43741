"""Metrics of a live run as a real Prometheus sees them, and its actors as Ray's dashboard does."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import metric_events
from ray.util.state import list_actors
from run_process import WAIT_S, free_ports
from served import RECIPE, Served
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iris_ray.metrics import METRICS, tables

ROOT = Path(__file__).parents[1]
GRAFANA = ROOT / "cluster" / "grafana"
ROLES = ("controller", "sample-buffer", "weight-store", "generator-pool", "generator-0")


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
        time.sleep(0.5)
    return result


@pytest.fixture(scope="module")
def run(served: Served) -> Path:
    """Its folder, once an iteration is over."""
    served.wait_for(lambda: served.run.events("iteration"))
    return served.folder


@pytest.fixture(scope="module")
def prometheus(served: Served, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Prometheus with the configuration of cluster/, but for Ray's folder and more often."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    text = (ROOT / "cluster" / "prometheus.yaml").read_text()
    configuration = folder / "prometheus.yaml"
    configuration.write_text(text.replace("/tmp/ray/", f"{served.ray_folder}/ray/").replace("10s", "1s"))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [program, f"--config.file={configuration}", f"--storage.tsdb.path={folder}/data"]
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"], stdout=output, stderr=output
        )
    try:
        wait_for(lambda: is_ready(f"http://{address}/-/ready"), "Prometheus")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(WAIT_S)


def is_ready(url: str) -> bool:
    try:
        return requests.get(url, timeout=60).ok
    except (requests.ConnectionError, requests.Timeout):
        return False


def ask(prometheus: str, path: str, **parameters: str) -> Any:
    answer = requests.get(f"{prometheus}/api/v1/{path}", parameters, timeout=60)
    assert answer.ok, answer.text
    return answer.json()["data"]


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    return ask(prometheus, "query", query=expression)["result"]


def scraped(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """Waits for the next scrape if the last one came too late."""
    found: list[dict[str, Any]] = wait_for(lambda: query(prometheus, expression), expression)
    return found


def panels() -> list[dict[str, Any]]:
    return json.loads((GRAFANA / "iris-ray.json").read_text())["panels"]


def test_the_dashboard_is_what_its_program_makes() -> None:
    """Of Grafana's own classes, which know its schema."""
    made = subprocess.run(
        [sys.executable, GRAFANA / "dashboard.py"], check=True, capture_output=True, text=True
    ).stdout
    assert made == (GRAFANA / "iris-ray.json").read_text()
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len({panel["id"] for panel in panels()}) == len(panels())


def test_every_query_of_the_dashboard_returns_data(prometheus: str) -> None:
    queries = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    wanted = [each.replace("$run", "served").replace("$__rate_interval", "10s") for each in queries]
    assert len(wanted) > 30

    def missing() -> list[str]:
        return [expression for expression in wanted if not query(prometheus, expression)]

    try:
        wait_for(lambda: not missing(), "data")
    except AssertionError:
        assert missing() == []


def test_every_metric_is_there_as_it_is_documented(prometheus: str) -> None:
    for metric in [each for metrics in METRICS.values() for each in metrics]:
        name = f"ray_{metric.name}"
        series = wait_for(lambda name=name: query(prometheus, f'{name}{{run="served"}}'), name)
        assert all(set(metric.labels) <= set(each["metric"]) for each in series)
        family = name.removesuffix("_total")  # as Prometheus calls it
        (told,) = ask(prometheus, "metadata", metric=family)[family]
        assert told["type"] == ("counter" if metric.is_counter else "gauge")
        assert told["help"] == metric.help
    assert tables() in (ROOT / "docs" / "metrics.md").read_text()


def test_metrics_tell_what_the_run_does(prometheus: str, run: Path) -> None:
    (pairs,) = scraped(prometheus, "ray_iris_trained_pairs_total")
    time.sleep(0.5)
    written = sum(event["pairs"] for event in metric_events(run, "step"))
    assert 0 < float(pairs["value"][1]) <= written
    (iterations,) = scraped(prometheus, "ray_iris_iterations")
    assert float(iterations["value"][1]) == RECIPE["schedule"]["iterations"]
    states = {
        each["metric"]["state"]: each["value"][1] for each in scraped(prometheus, "ray_iris_generators")
    }
    assert states == {"starting": "0", "ready": "1", "draining": "0", "failed": "0"}


def test_actors_have_names_in_the_dashboard(run: Path) -> None:
    cluster = json.loads((run / "cluster.json").read_text())["address"]
    actors = list_actors(cluster, filters=[("state", "=", "ALIVE")])
    assert {f"served/{role}" for role in ROLES} <= {actor.name for actor in actors}


def test_tensorboard_has_its_curves(run: Path) -> None:
    shown = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("step/loss")
    written = {event["global_step"]: event["loss"] for event in metric_events(run, "step")}
    assert [each.step for each in shown] == list(range(1, len(shown) + 1))
    assert [each.value for each in shown] == pytest.approx([written[each.step] for each in shown])

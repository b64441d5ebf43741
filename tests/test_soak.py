"""What the soak knows without playing: kinds of processes, the plan, slopes, going back, visits."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from benchmarks.kinds import kind_of
from benchmarks.soak.faults import FAULTS, Planned, plan
from benchmarks.soak.progress import Incident, Progress
from benchmarks.soak.sampling import Sample
from benchmarks.soak.settings import Settings, recipe
from benchmarks.soak.slopes import slope
from benchmarks.soak.verdict import by_kind, reasons
from benchmarks.soak.visitors import Visit, settled, totals
from iris_ray.config import RunConfig
from iris_ray.tracking.follower import Follower


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["ray::SampleBuffer.share"], "buffer"),
        (["ray::Generator"], "generator"),
        (["VLLM::EngineCore"], "engine"),
        (["ray::ServeReplica:iris-ray-demo-1:gateway"], "gateway"),
        (["ray::RayTrainWorker"], "learner"),
        (["ray::demo-1/learner"], "train"),
        (["/venv/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=x"], "raylet"),
        (["/venv/ray/core/src/ray/gcs/gcs_server"], "gcs"),
        (["/venv/bin/python3", "-u", "/venv/ray/_private/log_monitor.py"], "monitors"),
        (["/venv/bin/python3", "/venv/bin/iris-ray", "run", "x.yaml"], "driver"),
        (["ray-dashboard-NodeHead-0 (python -c x)"], "dashboard"),
        (["/venv/bin/python3", "-c", "from multiprocessing.spawn import spawn_main"], "other"),
        ([], "other"),
    ],
)
def test_processes_are_told_by_their_names(command: list[str], kind: str) -> None:
    assert kind_of(command) == kind


def test_the_same_seed_plans_the_same_and_every_fault_comes() -> None:
    def cards(seed: int, calm: bool = False) -> list[Planned]:
        return list(islice(plan(seed, 30.0, calm), 100))

    assert cards(3) == cards(3) != cards(4)
    decks = Counter(card.fault for card in cards(3)[: 2 * sum(fault.times for fault in FAULTS)])
    assert decks == {fault: 2 * fault.times for fault in FAULTS}
    assert all(card.fault.calm for card in cards(3, calm=True))
    gaps = [card.after_s for card in cards(3)]
    assert 12 <= min(gaps) <= max(gaps) <= 48


def test_the_recipe_is_the_demo(tmp_path) -> None:
    config = RunConfig.from_dict(recipe("demo-1", tmp_path, 8000, endless=False))
    assert (config.schedule.iterations, config.schedule.prompts_per_iteration) == (3, 2560)
    assert RunConfig.from_dict(recipe("demo-1", tmp_path, 8000, endless=True)).schedule.iterations > 1000


def test_slopes_of_processes_that_come_and_go() -> None:
    """All gain 36 an hour. Each has a level of its own, and jumps in its first half and at its end."""
    rng = np.random.default_rng(0)

    def life(begin: float, seconds: float, level: float) -> tuple[np.ndarray, np.ndarray]:
        at = np.arange(begin, begin + seconds, 5.0)
        value = level + 0.01 * (at - begin) + rng.normal(0, 0.5, len(at))
        return at, value - 500.0 * (at < begin + seconds / 3) + 200.0 * (at > begin + seconds - 20)

    lives = [life(0, 1500, 100), life(1500, 900, 400), life(2400, 100, 7)]
    found = slope(lives)
    assert found is not None
    assert found.lives == 2
    assert abs(found.per_hour - 36) < 4 * found.error < 5
    assert found.exceeds(30)
    assert not found.exceeds(36)
    assert slope(lives[2:]) is None
    short = slope([life(0, 800, 0)])
    assert short is not None
    assert not short.exceeds(1)  # not watched long enough to be judged


def test_two_processes_of_one_number_are_two_lives() -> None:
    def life(started: float, mib: float) -> list[Sample]:
        times = np.arange(started, started + 900, 5.0)
        return [Sample(at, "generator", 7, started, mib, mib, 9, 3) for at in times]

    (row,) = by_kind([*life(0, 100), *life(2000, 500)])
    assert row["lives"] == 2
    assert row["memory_mib_per_hour"].per_hour == pytest.approx(0, abs=1e-6)


def test_what_grows_fails_it_but_where_ray_has_a_bound_of_its_own() -> None:
    grows = {"per_hour": 200.0, "error": 5.0, "lives": 1, "longest_s": 900.0}
    flat = grows | {"per_hour": 20.0}

    def kind(name: str, memory: dict, handles: dict | None) -> dict:
        return {"kind": name, "memory_mib_per_hour": memory, "handles_per_hour": handles}

    kinds = [kind("learner", grows, flat), kind("buffer", flat, None), kind("gcs", grows, grows)]
    report = {"problems": [], "runs": [], "orphans": [], "kinds": kinds, "http": {"broken": 0}}
    assert reasons(report, Settings()) == [
        "learner: gains 200 ± 5 MiB an hour; 60 are allowed",
        "gcs: gains 200 ± 5 file handles an hour; 30 are allowed",
    ]
    assert reasons(report, Settings(memory_margin=300, handles_margin=300)) == []
    report |= {"orphans": ["ray::Generator 7"], "http": {"broken": 2, "requests": 9}}
    assert reasons(report, Settings(memory_margin=300, handles_margin=300)) == [
        "orphan: ray::Generator 7",
        "2 of 9 requests were broken",
    ]


def test_events_that_are_cut_off_are_not_told_twice(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path, since=0.0)
    assert follower.new() == []

    def line(number: int, time: float) -> str:
        return json.dumps({"event": "step", "time": time, "global_step": number}) + "\n"

    path.write_text(line(1, 1.0) + line(2, 2.0) + '{"event": "st')
    assert [event["global_step"] for event in follower.new()] == [1, 2]
    assert follower.new() == []
    path.write_text(line(1, 1.0) + line(2, 4.0) + line(3, 5.0))  # back to the first, and on
    assert [event["time"] for event in follower.new()] == [4.0, 5.0]
    with path.open("a") as file:
        file.write(line(4, 6.0))
    assert [event["global_step"] for event in follower.new()] == [4]


def test_what_goes_back_is_over_when_steps_follow() -> None:
    progress = Progress(prompts=100)
    progress.begin_run("demo-1")
    progress.take({"event": "step", "time": 1.0, "global_step": 9})
    progress.take_status({"iteration": 2, "buffer": {"pairs": 100, "written": 80, "leased": 4}})
    learner = Incident("kill learner", 2.0, goes_back=True, run="demo-1")
    engine = Incident("kill engine", 2.0, goes_back=False, run="demo-1")
    progress.incidents += [learner, engine]
    progress.take({"event": "step", "time": 3.0, "global_step": 10})  # was under way
    assert (engine.seconds, learner.seconds) == (1.0, None)
    progress.take({"event": "resumed", "time": 9.0, "global_step": 6})
    progress.take_status({"iteration": 2, "buffer": {"pairs": 0, "written": 0, "leased": 0}})
    progress.take_status({"iteration": 2, "buffer": {"pairs": 100, "written": 50, "leased": 0}})
    assert progress.is_waiting
    progress.take({"event": "step", "time": 11.0, "global_step": 7})
    assert learner.seconds == 9.0
    assert not progress.is_waiting
    assert (progress.repeated_steps, progress.written_again) == (4, 30)


def test_who_finds_nobody_while_the_run_is_away_counts_apart() -> None:
    visits = [
        Visit(10.0, "chat", "answered", 0.5, ""),
        Visit(100.0, "chat", "broken", 0.1, "ConnectError: refused"),
        Visit(200.0, "/status", "broken", 0.1, "500 no"),
        Visit(201.0, "stream", "refused", 0.1, "503"),
    ]
    told = totals(settled(visits, away=[[90.0, 120.0]]))
    counts = Counter({name: told[name] for name in ("answered", "away", "broken", "refused")})
    assert counts == {"answered": 1, "away": 1, "broken": 1, "refused": 1}
    assert told["talk_s_p50"] == 0.5
    assert told["look_s_p50"] is None

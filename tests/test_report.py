"""The page of a run and the page that compares runs, made of folders as runs leave them."""

import json
import logging
import math
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SECONDS
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from iris_ray.cli import main
from iris_ray.config import Alpha, RunConfig
from iris_ray.contracts import SelfPlayPair, StepReport, Update, VersionSpan
from iris_ray.errors import RunFolderError
from iris_ray.game import Round
from iris_ray.gap import PairMeans
from iris_ray.preparation import Prepared, prepare
from iris_ray.records import Records
from iris_ray.report import rewrite_report, write_comparison, write_report
from iris_ray.report.comparison import differences, distinct_names
from iris_ray.report.decimation import decimate
from iris_ray.report.history import History, read_history
from iris_ray.report.page import run_page
from iris_ray.report.pairs_shown import in_turn, shown_pairs
from iris_ray.report.rates import pairs_per_second
from iris_ray.report.shading import MOST_PIECES, NotShadedError, Piece, shade
from iris_ray.report.shared_prompts import shared_prompts
from iris_ray.report.timeline import Spell, timeline
from iris_ray.run_folder import RunFolder
from iris_ray.samples import write_samples
from iris_ray.scratch.model import build_model
from iris_ray.versions import versions

HOSTILE = "<script>alert('x')</script>&amp;<img src=x>"
PROMPTS = 12
STEPS = 6  # of an iteration
STEP = StepReport(
    loss=-0.25,
    reward_real=0.5,
    reward_synthetic=-0.5,
    reward_real_sd=0.25,
    reward_synthetic_sd=0.75,
    ess_real=3.0,
    ess_synthetic=2.0,
    grad_norm=1.5,
    skipped=False,
    learning_rate=1e-3,
    pairs=4,
    truncated=1,
    identical=1,
    response_tokens=5.0,
    abs_reward_mean=0.1,
    abs_reward_max=0.4,
)
END = PairMeans(
    reward_real=0.625,
    reward_synthetic=-0.375,
    reference_real=-5.0,
    reference_synthetic=-3.0,
    tokens_real=6.0,
    tokens_synthetic=4.0,
    loss=-0.3,
    iris_loss=-0.5,
    alpha=1.25,
)
RECIPE = {
    "model": {
        "dtype": "float32",
        "scratch": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 1, "kv_heads": 1},
    },
    "data": {
        "sort_digits": {"examples": 64, "min_digits": 3, "max_digits": 5},
        "holdout": 8,
        "max_prompt_tokens": 64,
        "max_response_tokens": 64,
    },
    "schedule": {"iterations": 2},
}


def config_of(folder: Path, name: str, **sections: dict) -> RunConfig:
    run = {"run": {"folder": str(folder), "name": name}}
    return RunConfig.from_dict(RECIPE | run | sections)


def pairs_of(prepared: Prepared, iteration: int) -> list[SelfPlayPair]:
    """Every other annotated response is met, in the second iteration two of three; one is HTML."""
    tokenizer, pairs = prepared.tokenizer, []
    for row in prepared.data.train.select(range(PROMPTS)):
        number, real = row["prompt_id"], row["response_tokens"]
        met = number % (iteration + 1) != 0
        wrong = [*tokenizer.encode(HOSTILE if number == 0 else f"äöü {number}"), tokenizer.eos_token_id]
        written = real if met else wrong
        pairs.append(
            SelfPlayPair(
                iteration,
                number,
                row["prompt_tokens"],
                real,
                written,
                "stop",
                iteration - 1,
                [VersionSpan(iteration - 1, len(written))],
            )
        )
    return pairs


def play(records: Records, iteration: int, steps: int = STEPS) -> None:
    """An iteration from its opening to its last step, each step with a loss of its own."""
    records.round_opened(Round(iteration, iteration - 1, 1 + iteration / 4, iteration / 8, "why"), steps)
    for number in range(steps):
        records.stepped(replace(STEP, loss=0.5 - 0.25 * number), [0], SECONDS)
    records.round_written()
    records.round_closed(END)


def whole_run(root: Path, name: str, prepared: Prepared | None = None, **sections: dict) -> RunFolder:
    """A finished run of two iterations with models, samples and summary."""
    config = config_of(root, name, **sections)
    folder = RunFolder.create(config)
    prepared = prepared or prepare(config, folder)
    records = Records(folder, Alpha())
    records.updated(Update("generator-0", 0, 3.0, 0.5, 2e-6))
    records.generator("generator-0", "ready", None)
    records.evaluated(0, {"exact_match": 0.25})
    play(records, 1)
    records.generator("generator-0", "died", "lost its node")
    records.evaluated(1, {"exact_match": 0.5, "distinct_2": 0.5, "self_bleu": 0.125, "held_out_margin": None})
    play(records, 2)
    records.evaluated(2, {"exact_match": 0.75, "distinct_2": 0.25, "self_bleu": 0.5})
    for iteration in (1, 2):
        path = folder.samples / f"iteration-{iteration:03d}.parquet"
        write_samples(path, [pairs_of(prepared, iteration)], prepared.tokenizer)
    assert config.model.scratch
    for seed, path in enumerate((folder.start, folder.final)):
        build_model(config.model.scratch, prepared.tokenizer, config.window, seed).save_pretrained(path)
        prepared.tokenizer.save_pretrained(path)
    summary = records.summary() | {
        "run": name,
        "status": "finished",
        "versions": versions(),
        "ledger": {"committed": 48, "lost": 3, "duplicated": 1},
        "generators": {"deaths": 1, "busy_share": 0.625},
        "throughput": {"pairs_per_s": 12.0, "generated_tokens_per_s": 345.0},
        "model": {"parameters": prepared.parameters, "dtype": "float32"},
        "objective": config.objective.model_dump(),
        "data": prepared.data.report.to_dict(),
    }
    folder.write_summary(summary)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    """Not to be written to."""
    return whole_run(tmp_path_factory.mktemp("runs"), "first")


@pytest.fixture(scope="module")
def page(finished: RunFolder) -> str:
    return run_page(read_history(finished))


@pytest.fixture
def begun(tmp_path) -> tuple[RunFolder, Records]:
    """A folder in which nothing happened yet."""
    folder = RunFolder.create(config_of(tmp_path, "begun"))
    return folder, Records(folder, Alpha())


class Page(HTMLParser):
    """Checks that elements are closed in the order they were opened in; collects what can be asked for."""

    BLOCKS = frozenset({"td", "th", "div", "p", "h1", "h2", "a"})
    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1] == tag
        if tag in self.BLOCKS:
            self.handle_data(" ")
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag] = self.texts.get(tag, "") + data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def words(page: str) -> str:
    """What a reader of the page sees, white space as single spaces."""
    return " ".join(Page(page).texts["body"].split())


def check_self_contained(page: str) -> None:
    parsed = Page(page)
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    links = parsed.values("href") + parsed.values("xlink:href")
    assert links
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(link.startswith("#") for link in links)
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {f"#{name}" for name in ids}
    assert not parsed.tags.keys() & {"script", "img", "link", "iframe", "object", "embed", "base", "form"}
    assert not [name for _, name, _ in parsed.attributes if name == "src" or name.startswith("on")]
    assert "@import" not in page
    assert "default-src 'none'" in " ".join(parsed.values("content"))


def test_the_page_is_whole_html_that_loads_nothing(page):
    assert page.startswith("<!doctype html>")
    check_self_contained(page)


def test_what_models_wrote_cannot_become_part_of_the_page(finished, page):
    assert HOSTILE in words(page)
    assert "script" not in Page(page).tags
    without_weights = read_history(finished, summary={"model": {"parameters": 10**12}})
    text = run_page(without_weights)
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;amp;&lt;img src=x&gt;" in text
    assert "script" not in Page(text).tags


@pytest.mark.parametrize(
    "told",
    [
        "first finished",
        "25.0% → 75.0%",
        "2 of 2 iterations",
        "48 pairs trained on",
        "64 to train on, 8 held out",
        "max_response_tokens: 64",
        "1 1.250 0.125 −0.3 +0.625 −0.375 50.0% 24 6 0",
        "2 1.500 0.25",
        "generators that were ready wrote 62.5% of the time",
        "48 committed, 3 lost, 1 duplicated",
        "345 response tokens per second",
        "1 weight updates, all proven",
        "at most 2e−06 nats per token",
        "generator-0 died lost its node",
        "--set run.name=first-again",
        "Warnings None",
        f"torch {versions()['torch']}",
    ],
)
def test_the_page_tells(page, told):
    assert told in words(page)


def test_every_curve_is_there_and_said_in_words(page):
    labels = Page(page).values("aria-label")
    for title in ("Exact match", "Loss", "Order α", "Gap D̂", "Rewards", "Effective sample size"):
        assert any(label.startswith(title) for label in labels), title
    for title in ("|r| per token", "Gradient norm", "Learning rate", "Pairs per second", "Timeline"):
        assert any(label.startswith(title) for label in labels), title
    assert "Exact match from 25.0% to 75.0%, best 75.0%" in labels
    assert any(label.startswith("Diversity: distinct-2 first 0.5, last 0.25") for label in labels)
    assert not any(label.startswith("Held-out margin") for label in labels)
    assert "Loss: first 0.5, last -0.75, least -0.75, largest 0.5" in labels
    assert not any(label.startswith("Staleness") for label in labels)  # 0 throughout


def test_a_warning_is_told_once_with_its_cause_and_its_iterations(begun):
    folder, records = begun
    for iteration in (1, 2):
        records.round_opened(Round(iteration, 0, 1.0, 0.0, "why"), STEPS)
        for _ in range(STEPS):
            records.stepped(replace(STEP, truncated=4), [0], SECONDS)
    text = words(run_page(read_history(folder)))
    assert text.count("mostly_truncated") == 1
    assert "mostly_truncated first at iteration 1, step 5; in iterations 1, 2" in text
    assert "Raise data.max_response_tokens" in text


def test_stale_pairs_get_a_curve(begun):
    folder, records = begun
    records.round_opened(Round(1, 0, 1.0, 0.0, "why"), STEPS)
    records.stepped(STEP, [0, 2], SECONDS)
    records.stepped(STEP, [1, 1], SECONDS)
    labels = Page(run_page(read_history(folder))).values("aria-label")
    (staleness,) = [label for label in labels if label.startswith("Staleness")]
    assert "mean first 1, last 1" in staleness
    assert "largest first 2, last 1" in staleness


def test_a_run_that_failed_before_its_first_step(begun):
    folder, _ = begun
    error = "ResourceError: no <GPU> left"
    text = run_page(read_history(folder, summary={"run": "begun", "status": "failed", "error": error}))
    check_self_contained(text)
    for told in (
        "The run failed.",
        error,
        "No step was taken",
        "No iteration was begun",
        "0 of 2 iterations",
    ):
        assert told in words(text)
    assert "iris-ray run --resume" in text
    assert "No pairs were archived" in text


def test_a_run_that_goes_on(begun):
    folder, records = begun
    records.evaluated(0, {"exact_match": 0.25})
    play(records, 1)
    records.evaluated(1, {"exact_match": 0.5})
    records.round_opened(Round(2, 1, 1.5, 0.5, "why"), STEPS)
    records.stepped(replace(STEP, loss=float("nan"), grad_norm=None, skipped=True), [0], SECONDS)
    records.stepped(STEP, [0], SECONDS)
    with folder.metrics.open("a") as file:
        file.write('{"event": "st')  # in the middle of being written
    page = run_page(read_history(folder))
    check_self_contained(page)
    text = words(page)
    assert "begun not ended" in text
    assert "the run goes on, or its process was killed" in text
    assert "1 of 2 iterations" in text
    assert "25.0% → 50.0%" in text
    assert "2 (open) 1.500 0.5 −0.25 – – – 8 2 1" in text
    assert "marks at the bottom: steps skipped" in text


def test_a_run_without_evaluation_and_without_an_order(tmp_path):
    folder = RunFolder.create(config_of(tmp_path, "plain", objective={"name": "sft"}))
    records = Records(folder, None)
    records.evaluated(0, {"exact_match": None})
    play(records, 1)
    records.evaluated(1, {"exact_match": None})
    page = run_page(read_history(folder))
    check_self_contained(page)
    assert "the run was not evaluated" in page
    assert "The objective has no order α." in words(page)
    labels = Page(page).values("aria-label")
    assert any(label.startswith("Loss") for label in labels)
    assert not any(label.startswith(("Exact match", "Order")) for label in labels)


def test_an_objective_of_a_plug_in_that_is_not_here(tmp_path):
    run = {"folder": str(tmp_path), "name": "foreign", "plugins": ["nowhere_to_be_found"]}
    folder = RunFolder.create(config_of(tmp_path, "foreign", objective={"name": "theirs"}, run=run))
    play(Records(folder, Alpha()), 1)
    assert "theirs" in words(run_page(read_history(folder)))


def test_there_is_nothing_to_report_before_the_first_event(begun):
    folder, records = begun
    with pytest.raises(RunFolderError, match=r"begun: there is nothing to report yet"):
        rewrite_report(folder.path)
    records.evaluated(0, {"exact_match": 0.5})
    assert rewrite_report(folder.path) == folder.report


def test_metrics_that_cannot_be_read_are_told_by_line(begun):
    folder, records = begun
    records.evaluated(0, {"exact_match": 0.5})
    with folder.metrics.open("a") as file:
        file.write("{\n")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl, line 2: is not JSON"):
        read_history(folder)


def test_a_page_that_cannot_be_drawn_does_not_fail_the_run(begun, caplog):
    folder, _ = begun
    folder.metrics.write_text("{\n")
    with caplog.at_level(logging.WARNING):
        write_report(folder, folder.read_config(), {"run": "begun", "status": "finished"})
    assert "report.html could not be written" in caplog.text
    assert f"iris-ray report {folder.path}" in caplog.text
    assert not folder.report.exists()


def test_the_end_of_a_run_leaves_its_page(finished, tmp_path, monkeypatch):
    summary = json.loads(finished.summary.read_text())
    monkeypatch.setattr(finished, "report", tmp_path / "page.html")
    write_report(finished, finished.read_config(), summary)
    assert "25.0% → 75.0%" in words(finished.report.read_text())


def test_the_summary_of_an_earlier_stop_is_not_the_runs_any_more(begun):
    folder, records = begun
    play(records, 1)
    folder.write_summary(records.summary() | {"status": "stopped"})
    assert read_history(folder).status == "stopped"
    records.load_state_dict(records.state_dict())
    later = time.time() + 60
    folder.append_metrics("baseline", {"exact_match": 0.5, "time": later})
    history = read_history(folder)
    assert history.status == "not ended"
    assert len(history.iterations) == 1  # from its steps


def test_rewards_and_times_without_number_are_kept_apart(finished):
    history = read_history(finished)
    assert history.last_steps == [STEPS, 2 * STEPS]
    assert history.exact_matches == [(0, 0.25), (STEPS, 0.5), (2 * STEPS, 0.75)]
    assert history.held_out("distinct_2") == [(STEPS, 0.5), (2 * STEPS, 0.25)]
    assert history.pairs == 8 * STEPS
    assert history.steps["loss"].tolist() == [0.5 - 0.25 * n for n in range(STEPS)] * 2
    assert history.steps_of(2)["step"].tolist() == list(range(1, STEPS + 1))


# Curves

numbers = st.floats(-1e6, 1e6) | st.just(math.nan)


@given(st.lists(numbers, max_size=200), st.integers(1, 20))
def test_decimated_curves_keep_extremes_and_means(values, points):
    given_values = np.array(values)
    curve = decimate(np.arange(len(values)), given_values, points)
    assert len(curve.x) == min(points, len(values))
    finite = given_values[~np.isnan(given_values)]
    assert np.isnan(curve.mean).all() == (not len(finite))
    if len(finite):
        assert np.nanmin(curve.low) == finite.min()
        assert np.nanmax(curve.high) == finite.max()
    defined = ~np.isnan(curve.mean)
    assert (curve.low[defined] <= curve.mean[defined] + 1e-6).all()
    assert (curve.mean[defined] <= curve.high[defined] + 1e-6).all()


def test_a_bin_holds_consecutive_values_without_those_that_are_missing():
    values = np.array([1.0, 3.0, math.nan, 5.0, math.nan, math.nan])
    curve = decimate(np.arange(1, 7), values, 3)
    assert curve.x.tolist() == [1.5, 3.5, 5.5]
    assert curve.mean[:2].tolist() == [2.0, 5.0]
    assert curve.low[:2].tolist() == [1.0, 5.0]
    assert curve.high[:2].tolist() == [3.0, 5.0]
    assert np.isnan([curve.mean[2], curve.low[2], curve.high[2]]).all()


def test_a_long_run_makes_a_small_page(begun):
    folder, records = begun
    records.round_opened(Round(1, 0, 1.0, 0.0, "why"), 20_000)
    records.stepped(STEP, [0], SECONDS)
    (line,) = folder.metrics.read_text().splitlines()
    step = json.loads(line)
    losses = np.random.default_rng(0).normal(size=20_000)
    with folder.metrics.open("w") as file:
        for number, loss in enumerate(losses, 1):
            changed = {"step": number, "loss": loss, "grad_norm": 10**loss, "time": step["time"] + number}
            file.write(json.dumps(step | changed) + "\n")
    page = run_page(read_history(folder))
    assert len(page.encode()) < 1_000_000
    assert "drawn as at most 300 points" in words(page)
    assert f"least {losses.min():.4g}" in page


def steps_at(folder: RunFolder, times: list[float], iteration: int = 1) -> None:
    for number, at in enumerate(times, 1):
        values = asdict(STEP) | {"iteration": iteration, "step": number, "alpha": 1.0, "gap": 0.0, "time": at}
        folder.append_metrics("step", values)


def test_speed_counts_only_the_time_between_steps_of_an_iteration(begun):
    folder, _ = begun
    steps_at(folder, [10.0, 10.5, 11.0, 11.5, 12.0])
    steps_at(folder, [100.0, 102.0, 104.0, 106.0, 108.0], iteration=2)
    steps, rates = pairs_per_second(read_history(folder))
    assert steps.tolist() == [5, 10]
    assert rates.tolist() == [4 / 0.5, 4 / 2.0]


def test_speed_does_not_count_the_time_before_a_resume(begun):
    folder, _ = begun
    steps_at(folder, [10.0, 10.5, 11.0])
    folder.append_metrics("resumed", {"iteration": 1, "step": 3, "time": 500.0})
    steps_at(folder, [500.5, 501.0])
    steps, rates = pairs_per_second(read_history(folder))
    assert (steps.tolist(), rates.tolist()) == ([5], [4 / 0.5])


# The timeline


def test_a_timeline_has_the_times_of_the_events(begun):
    folder, _ = begun

    def event(kind: str, at: float, **values: object) -> None:
        folder.append_metrics(kind, values | {"time": at})

    event("generator", 1000.0, generator="generator-0", state="ready", reason=None)
    event("generator", 1001.0, generator="generator-1", state="ready", reason=None)
    steps_at(folder, [1004.0, 1005.0, 1006.0, 1012.0, 1013.0])
    event("written", 1012.5, iteration=1)
    event("generator", 1007.0, generator="generator-1", state="died", reason="gone")
    event("update", 1015.0, generator="generator-0", version=1, seconds=1.5, paused_seconds=0.5)
    event("iteration", 1016.0, iteration=1, seconds=11.0, generation_seconds=10.5, pairs=20)
    line = timeline(read_history(folder))
    assert line is not None
    assert line.seconds == 16.0
    assert line.writing == [Spell(2.0, 12.5, "1")]
    assert line.stepping == [Spell(4.0, 13.0, "1")]
    assert line.slow == [Spell(6.0, 11.0)]  # 6 s where 1 s is usual
    assert line.alive == {"generator-0": [Spell(0.0, 16.0)], "generator-1": [Spell(1.0, 7.0)]}
    assert line.deaths == {"generator-0": [], "generator-1": [7.0]}
    assert line.updates == {"generator-0": [Spell(13.5, 15.0)]}


def test_a_timeline_leaves_out_what_was_lost_before_a_resume(begun):
    folder, _ = begun
    ready = {"generator": "generator-0", "state": "ready", "reason": None}
    folder.append_metrics("generator", ready | {"time": 1000.0})
    steps_at(folder, [1002.0, 1003.0])
    folder.append_metrics("resumed", {"iteration": 1, "step": 2, "time": 90_000.0})
    folder.append_metrics("generator", ready | {"time": 90_004.0})
    steps_at(folder, [90_005.0], iteration=2)
    line = timeline(read_history(folder))
    assert line is not None
    assert line.resumes == [3.0]
    assert line.seconds == 8.0
    assert line.stepping == [Spell(2.0, 3.0, "1"), Spell(8.0, 8.0, "2")]
    assert line.alive == {"generator-0": [Spell(0.0, 3.0), Spell(7.0, 8.0)]}


def test_nothing_recorded_has_no_timeline(begun):
    assert timeline(read_history(begun[0])) is None


# Pairs


def test_prompts_of_both_iterations_are_counted_and_shown_by_kind(finished):
    pairs = shown_pairs(finished, 4)
    assert pairs is not None
    assert pairs.iterations == [1, 2]
    met = {number: (number % 2 != 0, number % 3 != 0) for number in range(PROMPTS)}
    assert list(pairs.counts.values()) == [
        sum(value == kind for value in met.values())
        for kind in ((False, True), (True, False), (False, False), (True, True))
    ]
    shown = [(prompt.kind, [writing.prompt_id for writing in prompt.writings]) for prompt in pairs.prompts]
    kinds = list(pairs.counts)
    assert shown == list(zip(kinds, ([2, 2], [3, 3], [0, 0], [1, 1]), strict=True))
    assert [writing.iteration for writing in pairs.prompts[0].writings] == [1, 2]


def test_an_archive_that_was_cut_off_is_left_out(begun, finished):
    folder, _ = begun
    whole = (finished.samples / "iteration-001.parquet").read_bytes()
    (folder.samples / "iteration-001.parquet").write_bytes(whole)
    (folder.samples / "iteration-002.parquet").write_bytes(whole[: len(whole) // 2])
    pairs = shown_pairs(folder)
    assert pairs is not None
    assert pairs.iterations == [1]
    assert sum(pairs.counts.values()) == PROMPTS


def test_iterations_that_share_no_prompt_show_the_last(begun, finished):
    folder, _ = begun
    tokenizer = AutoTokenizer.from_pretrained(finished.final)
    for iteration in (1, 2):
        pair = SelfPlayPair(iteration, iteration, [5], [6, 7], [6, 7], "stop", 0, [VersionSpan(0, 2)])
        again = replace(pair, synthetic_tokens=[7, 7], replica=1)
        write_samples(folder.samples / f"iteration-{iteration:03d}.parquet", [[pair, again]], tokenizer)
    pairs = shown_pairs(folder)
    assert pairs is not None
    assert pairs.iterations == [2]
    (prompt,) = pairs.prompts
    assert (prompt.kind, prompt.writings[0].synthetic_tokens) == ("the annotated response", [6, 7])


def test_no_archive_shows_no_pairs(begun):
    assert shown_pairs(begun[0]) is None


@given(st.lists(st.integers(0, 5), max_size=4), st.integers(0, 12))
def test_groups_are_drawn_from_in_turn(sizes, most):
    groups = [np.arange(10 * group, 10 * group + size) for group, size in enumerate(sizes)]
    taken = in_turn(groups, most)
    assert len(taken) == min(most, sum(sizes))
    counts = [sum(value // 10 == group for value in taken) for group in range(len(sizes))]
    firsts = [int(value) for group, count in zip(groups, counts, strict=True) for value in group[:count]]
    assert taken == firsts
    for size, count in zip(sizes, counts, strict=True):
        assert count >= min(size, max(counts) - 1)


# Log-ratios


def expected_ratios(folder: RunFolder, prompt: list[int], response: list[int]) -> list[float]:
    """By the models' own forward pass, one sequence at a time."""
    found = []
    for path in (folder.start, folder.final):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1)[range(len(response)), response])
    return (found[1] - found[0]).tolist()


def groups_of(folder: RunFolder) -> list:
    from iris_ray.learner.token_batch import PromptGroup

    pairs = shown_pairs(folder)
    assert pairs is not None
    return [
        PromptGroup(
            prompt.writings[0].prompt_tokens,
            [prompt.writings[0].real_tokens, *(writing.synthetic_tokens for writing in prompt.writings)],
        )
        for prompt in pairs.prompts
    ]


def test_log_ratios_are_those_of_the_two_models(finished):
    tokenizer = AutoTokenizer.from_pretrained(finished.final)
    groups = groups_of(finished)
    shaded = shade(read_history(finished), groups)
    assert len(shaded) == len(groups)
    several = 0
    for group, mine in zip(groups, shaded, strict=True):
        for response, shown in zip(group.responses, mine, strict=True):
            expected = expected_ratios(finished, group.prompt, response)
            assert shown.nats == pytest.approx(sum(expected), abs=1e-5)
            assert sum(piece.nats for piece in shown.pieces) == pytest.approx(shown.nats, abs=1e-9)
            assert "".join(piece.text for piece in shown.pieces) == tokenizer.decode(response)
            assert (shown.tokens, shown.left_out) == (len(response), 0)
            if len(shown.pieces) == len(response):
                nats = [piece.nats for piece in shown.pieces]
                assert nats == pytest.approx(expected, abs=1e-5)
            else:
                several += 1  # characters of several tokens
    assert several
    assert max(abs(shown.nats) for mine in shaded for shown in mine) > 0.1


def test_the_page_shows_log_ratios(page, finished):
    first = shade(read_history(finished), groups_of(finished))[0][0]
    value = f"{first.nats:+.2f}".replace("-", "−")
    assert f"annotated, {value} nats" in words(page)


@pytest.mark.parametrize(
    ("nats", "level"),
    [(0.0, 0), (0.049, 0), (-0.049, 0), (0.05, 1), (-0.3, -2), (1.0, 3), (2.5, 4), (-40.0, -4)],
)
def test_colours_get_stronger_with_the_log_ratio(nats, level):
    assert Piece("x", nats).level == level


def test_long_responses_are_shown_in_part_and_summed_in_whole(finished):
    from iris_ray.learner.token_batch import PromptGroup

    history = read_history(finished)
    long = [7] * (MOST_PIECES + 5)
    ((shown,),) = shade(replace_window(history), [PromptGroup([5, 6], [long])])
    assert (shown.tokens, shown.left_out) == (len(long), 5)
    assert sum(piece.nats for piece in shown.pieces) != pytest.approx(shown.nats)
    assert shown.nats == pytest.approx(sum(expected_ratios(finished, [5, 6], long)), abs=1e-3)


def replace_window(history: History) -> History:
    data = history.config.data.model_copy(update={"max_response_tokens": 512})
    return replace(history, config=history.config.model_copy(update={"data": data}))


def test_large_models_are_scored_only_when_asked_to(finished):
    large = read_history(finished, summary={"model": {"parameters": 7 * 10**9}})
    groups = groups_of(finished)
    with pytest.raises(NotShadedError, match=r"7\.0 B parameters.*iris-ray report .* --score"):
        shade(large, groups)
    assert shade(large, groups, asked=True)
    assert "--score" in words(run_page(large))
    assert "Point at a token" in words(run_page(large, score=True))


def test_models_with_code_of_their_own_are_not_run_unasked(finished):
    history = read_history(finished)
    model = history.config.model.model_copy(update={"trust_remote_code": True})
    with pytest.raises(NotShadedError, match="brings code of its own"):
        shade(
            replace(history, config=history.config.model_copy(update={"model": model})), groups_of(finished)
        )


def test_without_models_the_page_says_so(begun, finished):
    folder, records = begun
    play(records, 1)
    archive = finished.samples / "iteration-001.parquet"
    (folder.samples / archive.name).write_bytes(archive.read_bytes())
    assert "the start model that was made for the run is not on this machine" in words(
        run_page(read_history(folder))
    )
    folder.start.mkdir()
    assert "there is no final model yet" in words(run_page(read_history(folder)))
    folder.final.mkdir()
    (folder.final / "config.json").write_text("{}")
    assert "the models could not be scored with" in words(run_page(read_history(folder)))


def test_a_start_model_of_the_hub_is_taken_from_the_cache(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model = {"path": "somebody/something", "scratch": None, "dtype": "float32"}
    folder = RunFolder(tmp_path)
    folder.final = finished.final
    history = replace(read_history(finished), folder=folder, config=config_of(tmp_path, "x", model=model))
    groups = groups_of(finished)
    with pytest.raises(NotShadedError, match="the start model somebody/something is not on this machine"):
        shade(history, groups)
    cached = tmp_path / "cache" / "models--somebody--something"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("1" * 40)
    shutil.copytree(finished.start, cached / "snapshots" / ("1" * 40))
    assert shade(history, groups) == shade(read_history(finished), groups)


# Several runs


@pytest.fixture(scope="module")
def second(finished: RunFolder, tmp_path_factory) -> RunFolder:
    """A run like the first, with another objective and a list for its learning rates."""
    root = tmp_path_factory.mktemp("more")
    config = config_of(root, "second", objective={"name": "spin"}, learner={"learning_rate": [1e-4, 1e-5]})
    folder = RunFolder.create(config)
    records = Records(folder, None)
    records.evaluated(0, {"exact_match": 0.25})
    play(records, 1)
    records.evaluated(1, {"exact_match": 0.375})
    for path in finished.samples.iterdir():
        (folder.samples / path.name).write_bytes(path.read_bytes())
    return folder


def test_runs_side_by_side(finished, second, tmp_path):
    out = write_comparison([finished.path, second.path], tmp_path / "both.html")
    page = out.read_text()
    check_self_contained(page)
    text = words(page)
    assert "2 runs compared" in text
    assert "first finished iris 25.0% 75.0% 75.0% 2 48" in text
    assert "second not ended spin 25.0% 37.5% 37.5% 1 24" in text
    assert "objective.name iris spin" in text
    assert "max_response_tokens" not in text
    labels = Page(page).values("aria-label")
    assert "Exact match: first from 25.0% to 75.0%, second from 25.0% to 37.5%" in labels
    assert any(label.startswith("Loss: first ends at -0.75, second ends at -0.75") for label in labels)
    assert any(label.startswith("Order α: first ends at 1.5") and "second" not in label for label in labels)


def test_only_settings_that_differ_are_listed(finished, second):
    histories = [read_history(folder) for folder in (finished, second)]
    assert differences(histories) == {
        "objective.name": ["iris", "spin"],
        "learner.learning_rate": [5e-7, [1e-4, 1e-5]],
    }
    assert differences([histories[0], histories[0]]) == {}


def test_the_same_prompts_are_shown_of_all_runs(finished, second):
    histories = [read_history(folder) for folder in (finished, second)]
    shared = shared_prompts(histories, 4)
    assert shared is not None
    met = sum(number % 3 != 0 for number in range(PROMPTS))
    assert (shared.count, shared.met) == (PROMPTS, [met, met])
    assert len(shared.shown) == 4
    for prompt in shared.shown:
        assert {writing.prompt for writing in prompt.written} == {prompt.prompt}
        assert [writing.iteration for writing in prompt.written] == [2, 2]
    assert {prompt.real == prompt.written[0].synthetic for prompt in shared.shown} == {True, False}


def test_runs_without_common_prompts_say_so(finished, begun, tmp_path):
    folder, records = begun
    records.evaluated(0, {"exact_match": 0.5})
    page = write_comparison([finished.path, folder.path], tmp_path / "x.html").read_text()
    assert "no prompt that all of these runs have" in words(page)


def test_runs_of_one_name_are_told_apart_by_their_folders(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [RunFolder.create(config_of(tmp_path / place, "same")) for place in ("a", "b")]
    assert distinct_names([read_history(folder) for folder in folders]) == ["a/same", "b/same"]
    assert distinct_names([read_history(finished)]) == ["first"]


# The command


@pytest.fixture
def command(monkeypatch, capsys) -> Iterator:
    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["iris-ray", "report", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), " ".join((printed.out + printed.err).split())

    return run


def test_the_command_writes_the_page_of_a_run(command, begun, tmp_path):
    folder, records = begun
    records.evaluated(0, {"exact_match": 0.5})
    assert command(str(folder.path)) == (0, f"The page lies in {folder.report}")
    assert "50.0%" in folder.report.read_text()
    elsewhere = tmp_path / "elsewhere.html"
    assert command(str(folder.path), "--out", str(elsewhere)) == (0, f"The page lies in {elsewhere}")
    assert elsewhere.exists()


def test_the_command_compares_runs(command, begun, second, tmp_path, monkeypatch):
    folder, records = begun
    records.evaluated(0, {"exact_match": 0.5})
    monkeypatch.chdir(tmp_path)
    assert command(str(folder.path), str(second.path)) == (0, "The page lies in comparison.html")
    assert "2 runs compared" in (tmp_path / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere holds no run"),
        (["begun"], "begun: there is nothing to report yet"),
        (["begun", "nowhere"], "nowhere holds no run"),
        (["begun", "begun", "--score"], "--score: shades the pairs of one run"),
    ],
)
def test_the_command_says_what_is_wrong(command, begun, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "nowhere" in arguments:
        begun[1].evaluated(0, {"exact_match": 0.5})
    code, printed = command(*arguments)
    assert code == 1
    assert message in printed
    assert "Traceback" not in printed


def test_a_place_that_cannot_be_written_to_is_named(command, begun, tmp_path):
    begun[1].evaluated(0, {"exact_match": 0.5})
    out = tmp_path / "missing" / "page.html"
    code, printed = command(str(begun[0].path), "--out", str(out))
    assert code == 1
    assert f"{out}: the page cannot be written there" in printed

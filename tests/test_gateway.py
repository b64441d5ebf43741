"""A run over HTTP while it trains: real Ray Serve, vLLM and DeepSpeed, OpenAI's client, a browser."""

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import schemathesis
from hypothesis import given, settings
from run_process import WAIT_S
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served import BODY_KIB, LONGEST, MOST, PROMPTS, Served

from actors.steering import live_run
from iris_ray.report.decimation import decimate

LONG = {"timeout": 600}  # in seconds, for orders that a learner obeys when it can
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def told(answer: httpx.Response) -> str:
    """What an error says; it has the shape that OpenAI clients read."""
    error = answer.json()["error"]
    assert error["code"] == answer.status_code
    return error["message"]


def test_status_is_what_the_command_line_tells(served: Served) -> None:
    now = served.http.get("/status").json()
    with live_run(served.folder) as live:
        told_there = live.status()
    assert now.keys() == told_there.keys()
    assert now["state"] == "running"
    assert [one["name"] for one in now["generators"]] == ["generator-0"]
    assert now["generators"][0].keys() == told_there["generators"][0].keys()
    assert json.loads((served.folder / "cluster.json").read_text())["gateway"] == f"{served.url}/"


def test_curves_are_those_of_the_metrics(served: Served) -> None:
    metrics = served.wait_for(lambda: (now := served.http.get("/metrics").json())["ends"] and now)
    steps = served.run.events("step")[: metrics["steps"]]
    losses = np.array([step["loss"] for step in steps])
    curve = decimate(np.arange(1, len(steps) + 1), losses)  # as it is, unless it is long
    assert metrics["curves"]["loss"]["x"] == pytest.approx(curve.x)
    assert metrics["curves"]["loss"]["y"] == pytest.approx(curve.mean)
    assert {"alpha", "gap", "reward_real", "ess_real", "staleness_max", "exact_match"} <= metrics[
        "curves"
    ].keys()


def test_pairs_are_shown_as_texts(served: Served) -> None:
    pairs = served.wait_for(lambda: served.http.get("/pairs").json())
    assert all("<|im_start|>user\n" in pair["prompt"] for pair in pairs)
    assert all(pair["real"].endswith("<|im_end|>") for pair in pairs)
    ends, shown = len(served.run.events("iteration")), []
    while len(served.run.events("iteration")) < ends + 3:  # between two rounds as well
        shown.append(len(served.http.get("/pairs").json()))
    assert set(shown) == {len(pairs)}


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}])
def test_who_has_no_token_changes_nothing(served: Served, header: dict[str, str]) -> None:
    for path in ("/pause", "/resume", "/checkpoint", "/stop", "/generators", "/demonstrations"):
        answer = served.http.post(path, headers=header, json={"count": 3})
        assert answer.status_code == 401
        assert "gateway.token" in told(answer)
    now = served.http.get("/status").json()
    assert (now["state"], now["generators_wanted"]) == ("running", 1)
    assert served.folder.joinpath("gateway.token").stat().st_mode & 0o077 == 0


def test_it_pauses_and_goes_on(served: Served) -> None:
    paused = served.post("/pause", params=LONG).json()
    assert paused["state"] == "paused"
    steps = served.steps()
    # An answer that took long to find out is given again for some seconds.
    served.wait_for(lambda: served.http.get("/status").json()["state"] == "paused")
    time.sleep(1.5)
    assert served.steps() == steps
    assert served.post("/resume", params=LONG).json()["state"] == "running"
    served.wait_for(lambda: served.steps() > steps + 2)


def test_a_checkpoint_is_taken(served: Served) -> None:
    before = served.http.get("/status").json()["last_checkpoint"]
    name = served.post("/checkpoint", params=LONG).json()["last_checkpoint"]
    assert re.fullmatch(r"iteration-\d+(-step-\d+)?", name)
    assert name != before


def test_demonstrations_are_trained_on_in_the_next_iteration(served: Served) -> None:
    turns = [{"role": "user", "content": "9 1"}, {"role": "assistant", "content": "1 9"}]
    for wrong in ({}, {"demonstrations": []}, {"demonstrations": [{"messages": turns[:1] * 2}]}):
        assert served.post("/demonstrations", json=wrong).status_code == 422
    answer = served.post("/demonstrations", json={"demonstrations": [{"messages": turns}] * 3})
    assert (answer.status_code, answer.json()["demonstrations"]) == (202, 3)
    (added,) = served.wait_for(lambda: served.run.events("added"))
    assert (added["files"], added["rows"]) == ([answer.json()["file"]], 3)
    iteration = served.wait_for(lambda: [e for e in served.run.events("iteration") if e["added"]])[0]
    assert iteration["iteration"] == added["iteration"]
    assert iteration["pairs"] == PROMPTS + 3


def test_it_is_scaled(served: Served) -> None:
    assert served.post("/generators", json={"count": 2}).json()["generators_wanted"] == 2
    for wrong in ({"count": 0}, {"count": "many"}, {}, {"count": 1, "more": 1}):
        answer = served.post("/generators", json=wrong)
        assert answer.status_code == 422
        assert told(answer)
    assert served.post("/generators", json={"count": 1}).json()["generators_wanted"] == 1


def test_bodies_have_a_bound(served: Served) -> None:
    answer = served.post("/generators", content=b" " * (BODY_KIB << 10) + b'{"count": 2}')
    assert answer.status_code == 413
    assert "gateway.max_body_kib" in told(answer)

    def unending() -> Iterator[bytes]:
        for _ in range(BODY_KIB + 1):
            yield b" " * 1024

    assert served.post("/generators", content=unending()).status_code == 413


def test_another_host_name_is_refused(served: Served) -> None:
    assert served.http.get("/status", headers={"Host": "elsewhere.example"}).status_code == 400


def test_the_policy_is_listed_and_completes(served: Served) -> None:
    assert [model.id for model in served.openai.models.list()] == ["served"]
    answer = served.openai.completions.create(model="served", prompt="3 1 2", max_tokens=5, temperature=0)
    assert 0 < answer.usage.completion_tokens <= 5
    version = int(answer.system_fingerprint.removeprefix("weights-version-"))
    assert version <= max(update["version"] for update in served.run.events("update"))


def test_it_talks_while_it_trains(served: Served) -> None:
    """Streamed or not, a greedy answer is the same as long as the weights are."""
    messages: Any = [{"role": "user", "content": "4 2 9"}]

    def once() -> tuple[set[str], list[str]]:
        ask: Any = {"model": "served", "messages": messages, "temperature": 0}
        whole = served.openai.chat.completions.create(**ask)
        pieces = list(served.openai.chat.completions.create(**ask, stream=True))
        written = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        versions = {whole.system_fingerprint, pieces[-1].system_fingerprint}
        return versions, [whole.choices[0].message.content, written]

    steps = served.steps()
    _, answers = served.wait_for(lambda: (got := once()) and len(got[0]) == 1 and got)
    assert answers[0] == answers[1] != ""
    raw = served.openai.chat.completions.with_raw_response.create(model="served", messages=messages)
    assert f"weights-version-{raw.headers['x-weights-version']}" == raw.parse().system_fingerprint
    served.wait_for(lambda: served.steps() > steps)


def test_answers_are_bounded(served: Served) -> None:
    ask: Any = {"model": "served", "prompt": "1"}
    assert served.openai.completions.create(**ask, temperature=0).usage.completion_tokens <= LONGEST
    with pytest.raises(openai.BadRequestError, match=r"gateway\.max_tokens"):
        served.openai.completions.create(**ask, max_tokens=LONGEST + 1)
    with pytest.raises(openai.RateLimitError, match=r"gateway\.max_requests"):
        served.openai.completions.create(**ask, n=MOST + 1)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        served.openai.completions.create(model="another", prompt="1")
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        served.openai.completions.create(model="served", prompt="1 2 3 " * 100)
    with pytest.raises(openai.UnprocessableEntityError, match="prompt_logprobs"):
        served.openai.completions.create(**ask, extra_body={"prompt_logprobs": 1})


def test_many_visitors_do_not_stop_the_training(served: Served) -> None:
    steps, over = served.steps(), threading.Event()

    def visit(_: int) -> list[int]:
        seen: list[int] = []
        while not over.is_set():
            ask = {"model": "served", "prompt": "5 4", "stream": True}
            with served.http.stream("POST", "/v1/completions", json=ask) as answer:
                seen.append(answer.status_code)
                if len(seen) % 2:
                    answer.read()  # else this visitor hangs up
        return seen

    with ThreadPoolExecutor(MOST + 3) as visitors:
        visits = visitors.map(visit, range(MOST + 3))
        try:
            time.sleep(3)
            served.wait_for(lambda: served.steps() > steps + 2)
        finally:
            over.set()
        seen = [status for each in visits for status in each]
    assert set(seen) <= {200, 429}
    assert seen.count(200) > MOST
    # Nobody holds a place for ever.
    served.wait_for(
        lambda: (
            served.http.post("/v1/completions", json={"model": "served", "prompt": "1", "n": MOST}).is_success
        )
    )


def test_every_endpoint_answers_as_the_schema_says(served: Served) -> None:
    """Without the token, whatever is asked: status codes, content types and bodies are the schema's."""
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) == 12
    for operation in operations:
        ask_at_random(operation)


def ask_at_random(operation: Any) -> None:
    # Which prompts fit, and which numbers are tokens, depends on the model; how large a body is, too.
    depends = operation.path.startswith(("/v1", "/demonstrations"))
    left_out = [positive_data_acceptance] if depends else []

    @given(case=operation.as_strategy())
    @settings(max_examples=15)
    def asked(case: schemathesis.Case) -> None:
        case.call_and_validate(timeout=60, excluded_checks=left_out)

    asked()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_a_browser_shows_the_live_page(served: Served, tmp_path: Path) -> None:
    assert CHROMIUM
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--window-size=1200,1600",
    ]
    shown = subprocess.run(
        [CHROMIUM, *options, "--virtual-time-budget=6000", "--dump-dom", served.url],
        capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    page = shown.stdout
    assert 'class="badge running"' in page
    for title in ("Order α", "Gap", "Loss", "Rewards", "Effective sample size", "Throughput", "Staleness"):
        assert f'aria-label="{title}: ' in page
    assert "generator-0" in page
    assert "&lt;|im_start|&gt;" in page
    assert "http://" not in page.replace(served.url, "").replace("http://www.w3.org/2000/svg", "")


def test_while_a_generator_is_replaced_visitors_are_told_to_come_again(served: Served) -> None:
    def ask() -> httpx.Response:
        body = {"model": "served", "prompt": "sort 21", "max_tokens": 4}
        return served.http.post("/v1/completions", json=body)

    for process in served.run.called("VLLM::EngineCore")["VLLM::EngineCore"]:
        process.kill()
    answers = []
    while not answers or answers[-1].status_code == 200 or len(answers) < 20:
        answers.append(ask())
        time.sleep(0.1)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {503}, [told(answer) for answer in refused]
    assert all(answer.headers["Retry-After"] for answer in refused)


def test_it_stops_at_a_checkpoint(served: Served) -> None:
    answer = served.post("/stop", params=LONG)
    assert answer.status_code == 200, answer.text
    name = answer.json()["last_checkpoint"]
    assert served.run.process.wait(WAIT_S) == 0, served.run.printed()
    summary = served.run.summary()
    assert summary["status"] == "stopped"
    assert summary["ledger"]["lost"] == summary["ledger"]["duplicated"] == 0
    assert list((served.folder / "checkpoints").glob(f"**/{name}"))
    # Ray's processes end a little after the run that started them.
    deadline = time.monotonic() + WAIT_S
    while is_open(served.url):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_open(url: str) -> bool:
    try:
        httpx.get(f"{url}/status")
    except httpx.ConnectError:
        return False
    except httpx.TransportError:
        pass  # it is just ending
    return True

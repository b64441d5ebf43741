"""People and programs at the gateway: a steady number of requests a second, whatever becomes of them."""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import httpx
import numpy as np

from benchmarks.soak.game import Game

# As it should be; 503 or 429 with Retry-After, as no generator is there yet or too many ask; an answer that
# ended in the middle; no run was there to answer, as its program was stopped or ended; everything else.
Outcome = Literal["answered", "refused", "cut", "away", "broken"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
TIMEOUT_S = 60.0
ENDING_S = 15.0  # before a program's end its gateway goes away
MOST = 40  # under way at the same time; then no new ones are sent
TALK = {"chat": 4, "stream": 3, "completion": 1}
LOOK = {"/status": 2, "/": 1, "/metrics": 1, "/pairs": 1}
GIVE = {"demonstration": 0.2}


class Visit(NamedTuple):
    """`time`: when it began, in s since 1970."""

    time: float
    what: str
    outcome: Outcome
    seconds: float
    told: str


class Visitors(threading.Thread):
    """Sends requests until it is stopped."""

    def __init__(self, game: Game, rate: float, seed: int, tell: Callable[[dict[str, Any]], None]):
        """`tell` hears each status."""
        super().__init__(daemon=True)
        self.game = game
        self.rate = rate
        self.random = random.Random(seed)
        self.tell = tell
        self.visits: list[Visit] = []
        self.over = threading.Event()

    def run(self) -> None:
        asyncio.run(self._visit())

    def stop(self) -> None:
        self.over.set()
        self.join()

    async def _visit(self) -> None:
        weights = TALK | LOOK | GIVE
        under_way: set[asyncio.Task[None]] = set()
        async with httpx.AsyncClient(base_url=self.game.url, timeout=TIMEOUT_S) as client:
            while not self.over.is_set():
                (what,) = self.random.choices(list(weights), list(weights.values()))
                if len(under_way) < MOST:
                    task = asyncio.create_task(self._once(client, what))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                await asyncio.sleep(1 / self.rate)
            await asyncio.gather(*under_way)

    async def _once(self, client: httpx.AsyncClient, what: str) -> None:
        began, told = time.time(), ""
        outcome: Outcome = "broken"
        try:
            async with client.stream(**self._request(what)) as answer:
                try:
                    await answer.aread()
                except httpx.HTTPError:
                    outcome = "cut"
                    raise
            outcome, told = self._judge(what, answer)
        except (httpx.HTTPError, ValueError, LookupError) as error:  # no answer, or none of this kind
            told = f"{type(error).__name__}: {error}"
        self.visits.append(Visit(began, what, outcome, time.time() - began, told))

    def _request(self, what: str) -> dict[str, Any]:
        """Arguments of httpx."""
        if what in LOOK:
            return {"method": "GET", "url": what}
        numbers = [self.random.randrange(10) for _ in range(self.random.randint(3, 8))]
        asked, sorted_ = (" ".join(map(str, row)) for row in (numbers, sorted(numbers)))
        messages = [{"role": "user", "content": asked}]
        if what == "demonstration":
            shown = [*messages, {"role": "assistant", "content": sorted_}]
            return {
                "method": "POST",
                "url": "/demonstrations",
                "json": {"demonstrations": [{"messages": shown}]},
                "headers": {"Authorization": f"Bearer {self.game.token()}"},
            }
        body: dict[str, Any] = {"model": self.game.run.folder.name}
        body |= {"prompt": asked} if what == "completion" else {"messages": messages}
        if what == "stream":
            body["stream"] = True
        path = "completions" if what == "completion" else "chat/completions"
        return {"method": "POST", "url": f"/v1/{path}", "json": body}

    def _judge(self, what: str, answer: httpx.Response) -> tuple[Outcome, str]:
        told = f"{answer.status_code} {answer.text[:200]}"
        if answer.status_code in (429, 503) and "retry-after" in answer.headers:
            return "refused", told
        if not answer.is_success:
            return "broken", told
        if what == "/status":
            self.tell(answer.json())
        if what == "stream":
            return ("answered", "") if answer.text.rstrip().endswith("data: [DONE]") else ("cut", told)
        if what in TALK and not answer.json()["choices"][0]["finish_reason"]:
            return "broken", told
        return "answered", ""


def settled(visits: Sequence[Visit], away: Sequence[Sequence[float]]) -> list[Visit]:
    """`visits`, and which of the broken ones found nobody as the run was away, from when until when."""
    return [
        visit._replace(outcome="away")
        if visit.outcome != "answered"
        and any(visit.time < until and visit.time + visit.seconds > since - ENDING_S for since, until in away)
        else visit
        for visit in visits
    ]


def totals(visits: Sequence[Visit]) -> dict[str, Any]:
    """Counts by outcome, latencies of answers in s, and what the broken ones were told."""
    groups: dict[str, dict[str, Any]] = {"talk": TALK, "look": LOOK, "give": GIVE}
    seconds = {
        kind: [visit.seconds for visit in visits if visit.what in of and visit.outcome == "answered"]
        for kind, of in groups.items()
    }
    latencies = {
        f"{kind}_s_p{q}": float(np.quantile(taken, q / 100)) if taken else None
        for kind, taken in seconds.items()
        for q in (50, 99)
    }
    counts = Counter(visit.outcome for visit in visits)
    broken = Counter(f"{visit.what}: {visit.told}" for visit in visits if visit.outcome in ("broken", "cut"))
    return {
        "requests": len(visits),
        **{outcome: counts[outcome] for outcome in OUTCOMES},
        **latencies,
        "told": dict(broken.most_common(10)),
    }

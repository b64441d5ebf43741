"""The hour: runs, faults, visitors and samples together."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.soak.books import audit
from benchmarks.soak.faults import plan
from benchmarks.soak.game import Game
from benchmarks.soak.injection import Injection
from benchmarks.soak.progress import Progress
from benchmarks.soak.sampling import Sampler
from benchmarks.soak.settings import Settings
from benchmarks.soak.visitors import Visitors, settled
from iris_ray.run_folder import RunFolder
from iris_ray.tracking.follower import Follower

POLL_S = 0.3
DEADLY = {f"{means} {victim}" for means in ("kill", "hang") for victim in ("generator", "engine")}
STALL_S = 300.0  # without a step: the run stands still
MOST_FAILURES = 3  # of a program that nobody stopped


class Stalled(Exception):
    """The run stands still, or ends again and again; there is no point in going on."""


class Soak:
    """One soak; `play` runs it, then all that it found lies in its parts."""

    def __init__(self, settings: Settings, folder: Path, port: int, say: Callable[[str], None]):
        self.settings = settings
        self.say = say
        self.game = Game(folder, port)
        self.progress = Progress(0)
        self.injection = Injection(self.game, settings)
        self.visitors = Visitors(self.game, settings.rate, settings.seed, self.progress.take_status)
        self.began = time.time()  # the first step, once there is one
        self.sampler = Sampler(self.game, settings.every_s, self.began)
        self.problems: list[str] = []
        self.follower: Follower
        self.failures = 0
        self.ends_known = 0  # of the run's program, after which it was started again
        self.stepped_since_start = False
        self.started_at = 0.0

    def play(self) -> None:
        self.sampler.start()
        try:
            self._begin(endless=False)
            while not self.stepped_since_start:
                self._look()
            self.began = time.time()
            self.visitors.start()
            self._play()
            self._end()
        except Stalled as stalled:
            self.problems.append(str(stalled))
        finally:
            self.visitors.over.set()
            if self.visitors.is_alive():
                self.visitors.join()
            self.sampler.stop()
            self.game.close()
        self.problems += self.injection.problems

    def _play(self) -> None:
        settings = self.settings
        plans = {calm: plan(settings.seed, settings.gap_s, calm) for calm in (False, True)}
        calm, planned, since = False, next(plans[False]), time.time()
        while (now := time.time()) < self.began + settings.seconds:
            self._look()
            if not calm and now > self.began + settings.half_s:
                calm, planned = True, next(plans[True])
            if not self.stepped_since_start:
                since = now
            if now < since + planned.after_s:
                continue
            if (incident := self.injection.bring_about(planned.fault, planned.draw, calm)) is None:
                continue
            if incident.name in DEADLY:  # until a status tells anew, these are counted once
                incident.leased, self.progress.leased = self.progress.leased, 0
            self.progress.incidents.append(incident)
            told = f"{incident.name} {incident.told}"
            self.say(f"{(now - self.began) / 60:.1f} min, step {self.progress.last_step}: {told}")
            planned, since = next(plans[calm]), time.time()
            if len(self.game.run.ends) > self.ends_known:
                self._go_on()

    def _go_on(self) -> None:
        """After an end: with the same run, or with the next one if it was through just then."""
        for event in self.follower.new():
            self.progress.take(event)
        if RunFolder(self.game.run.folder).read_summary().get("status") == "finished":
            self._begin(endless=time.time() - self.began > self.settings.half_s)
        else:
            self._started(self.game.resume)

    def _look(self) -> None:
        """One look at the run: its events, whether it plays, whether it goes on."""
        time.sleep(POLL_S)
        for event in self.follower.new():
            self.progress.take(event)
            self.stepped_since_start = self.stepped_since_start or event["event"] == "step"
        self.game.answers()
        if self.game.process.poll() is not None:
            self._ended()
        elif time.time() - max(self.progress.last_time, self.started_at) > STALL_S:
            raise Stalled(f"no step in {STALL_S:g} s; {self.game.run.folder.name} printed: {self._printed()}")

    def _ended(self) -> None:
        """The program ended by itself: as it should if its run is finished."""
        if code := self.game.ended():
            self.failures += 1
            told = f"{self.game.run.folder.name} ended by itself with exit code {code}: {self._printed()}"
            if self.failures > MOST_FAILURES:
                raise Stalled(told)
            self.problems.append(told)
        self._go_on()

    def _begin(self, endless: bool) -> None:
        self._started(lambda: self.game.begin(endless))
        self.follower = Follower(RunFolder(self.game.run.folder).metrics, since=0.0)
        self.progress.prompts = self.game.run.prompts
        self.progress.begin_run(self.game.run.folder.name)

    def _started(self, start: Callable[[], None]) -> None:
        start()
        self.stepped_since_start, self.started_at = False, time.time()
        self.ends_known = len(self.game.run.ends)

    def _end(self) -> None:
        """Let the run get going again, then stop it as its user would."""
        self.visitors.stop()
        self.say("stopping")
        deadline = time.time() + STALL_S
        while not self.stepped_since_start or self.progress.is_waiting:
            self._look()
            if time.time() > deadline:
                self.problems.append(f"{STALL_S:g} s after the last fault the run is not over it")
                break
        for order in self.injection.orders:
            order.join()
        if (code := self.game.stop()) != 0:
            self.problems.append(f"stopped at the end with exit code {code}: {self._printed()}")
        for event in self.follower.new():
            self.progress.take(event)

    def _printed(self) -> str:
        return self.game.output.read_text()[-1500:]

    def found(self) -> dict[str, Any]:
        """What is known of runs, steps and visitors."""
        return {
            "runs": [audit(run) for run in self.game.runs],
            "orphans": self.game.orphans,
            "visits": settled(self.visitors.visits, self.game.away),
            "problems": self.problems,
        }

"""Faults and orders, brought about."""

import signal
import threading
import time
from contextlib import suppress

import httpx
import psutil

from benchmarks.kinds import STATE, kind_of
from benchmarks.soak.faults import Fault
from benchmarks.soak.game import Game
from benchmarks.soak.progress import Incident
from benchmarks.soak.settings import Settings
from iris_ray.run_folder import RunFolder

ORDER_S = 120.0  # in which an order must be taken
PAUSED_S = (3.0, 12.0)
GOES_BACK = {"learner", "train", *STATE, "SIGINT", "SIGKILL", "stop"}


class Injection:
    """Does to a game what is planned, and takes note of it."""

    def __init__(self, game: Game, settings: Settings):
        self.game = game
        self.settings = settings
        self.orders: list[threading.Thread] = []
        self.problems: list[str] = []

    def bring_about(self, fault: Fault, draw: float, calm: bool) -> Incident | None:
        """`None` if there is no such process right now: try again soon. While `calm` the newest dies."""
        incident = Incident(fault.name, time.time(), fault.victim in GOES_BACK, run=self.game.run.folder.name)
        if fault.means in ("kill", "hang"):
            if (victim := self._victim(fault, draw, calm)) is None:
                return None
            number = signal.SIGKILL if fault.means == "kill" else signal.SIGSTOP
            try:
                victim.send_signal(number)
            except psutil.NoSuchProcess:
                return None
            incident.told = f"process {victim.pid}"
        elif fault.means == "driver":
            code = self.game.interrupt(signal.Signals[fault.victim])
            self._expect(incident, code, {"SIGINT": 130, "SIGKILL": -signal.SIGKILL}[fault.victim])
        elif fault.victim == "stop":
            self._stop(incident)
        else:
            self._order(fault, draw, incident)
        return incident

    def _stop(self, incident: Incident) -> None:
        """Asked again while the run starts anew or has just ended, and says so."""
        deadline = time.monotonic() + ORDER_S
        while True:
            try:
                self._expect(incident, self.game.stop(), 0)
                return
            except RuntimeError as error:
                if self._finished():
                    incident.told = "too late: it was through"
                    return
                asked_again = "starting anew" in str(error) or "does not play" in str(error)
                if not asked_again or time.monotonic() > deadline:
                    self.problems.append(str(error))
                    return
            time.sleep(2)

    def _expect(self, incident: Incident, code: int, wanted: int) -> None:
        incident.told = f"exit code {code}, gone after {time.time() - incident.time:.1f} s"
        if code != wanted and not (code == 0 and self._finished()):
            self.problems.append(f"{incident.name}: exit code {code}, not {wanted}")

    def _finished(self) -> bool:
        return RunFolder(self.game.run.folder).read_summary().get("status") == "finished"

    def _victim(self, fault: Fault, draw: float, calm: bool) -> psutil.Process | None:
        """One of the kind; the newest while it is calm, so that the oldest is watched for long."""
        found = []
        for process in self.game.processes():
            with suppress(psutil.Error):
                if kind_of(process.cmdline()) == fault.victim:
                    found.append((process.create_time(), process.pid, process))
        if not found:
            return None
        found.sort()
        return found[-1 if calm else int(draw * len(found))][2]

    def _order(self, fault: Fault, draw: float, incident: Incident) -> None:
        """In a thread, as it is answered once the learner has obeyed."""

        def give() -> None:
            if fault.victim == "scale":
                count = 1 + int(draw * self.settings.most_generators)
                self._post("/generators", incident, {"count": count})
            elif fault.victim == "pause":
                self._post("/pause", incident)
                time.sleep(PAUSED_S[0] + draw * (PAUSED_S[1] - PAUSED_S[0]))
                self._post("/resume", incident)
            else:
                self._post("/checkpoint", incident)

        thread = threading.Thread(target=give, daemon=True)
        thread.start()
        self.orders = [*(one for one in self.orders if one.is_alive()), thread]

    def _post(self, path: str, incident: Incident, body: dict[str, int] | None = None) -> None:
        """Until it is taken, or the run is another one: what nobody is there to take is asked again."""
        deadline = time.monotonic() + ORDER_S
        ends = self.game.ends
        said = ""
        while time.monotonic() < deadline and self.game.ends == ends:
            try:
                answer = httpx.post(
                    f"{self.game.url}{path}",
                    json=body,
                    headers={"Authorization": f"Bearer {self.game.token()}"},
                    timeout=60,
                )
                if answer.is_success:
                    incident.told += f"{path} {answer.status_code} "
                    return
                said = answer.text[:200]
                if answer.status_code not in (404, 503):  # 404: Ray Serve is there, the run is not yet
                    break
            except httpx.HTTPError as error:
                said = f"{type(error).__name__}: {error}"
            time.sleep(2)
        if self.game.ends == ends:
            self.problems.append(f"{incident.name}: {path} was not taken: {said}")

"""The public façade: one run from configuration to summary."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iris_ray.checkpoints import CheckpointStorage, StoredCheckpoint, storage_errors
from iris_ray.config import RunConfig
from iris_ray.errors import LostActorError
from iris_ray.interrupt import interrupts_heard
from iris_ray.model_card import write_model_card
from iris_ray.preparation import Prepared, check_free, check_names, make_model, prepare, reopen
from iris_ray.report import write_report
from iris_ray.resumption import resumed_config
from iris_ray.run_folder import RunFolder
from iris_ray.tracking import Tracking
from iris_ray.versions import versions
from iris_ray.view import View

if TYPE_CHECKING:
    from actors.cluster import Cluster

ERROR_CHARACTERS = 4000


class SelfPlay:
    """Self-play fine-tuning as one call: `SelfPlay(RunConfig.from_yaml(path)).run()`.

    `view` is told of the progress; by default nothing is shown. `SelfPlay.resume(folder).run()` goes on with
    a run that ended before its time.
    """

    def __init__(self, config: RunConfig, view: View | None = None):
        self.config = config
        self.view = view or View()
        self.resumes = False

    @classmethod
    def resume(
        cls, folder: str | Path, overrides: list[str] | None = None, view: View | None = None
    ) -> "SelfPlay":
        """The run in `folder`, to be gone on with from its last checkpoint.

        `overrides` change settings (`section.key=value`), such as the number of learner ranks. Raises
        `RunFolderError` if there is no run or it is finished, `ConfigError` for settings that cannot change;
        `run` raises `RunFolderError` if the run is still being played.
        """
        play = cls(resumed_config(RunFolder.open(Path(folder)), overrides or []), view)
        play.resumes = True
        return play

    def run(self) -> dict[str, Any]:
        """Play the whole game; returns what summary.json holds.

        Joins the Ray cluster at hand or starts a local one. Raises an `IrisRayError` for what the user
        can mend, before any actor starts where that is possible. Whatever happens later, the run folder
        says so in summary.json.
        """
        check_names(self.config)
        with ExitStack() as begun:
            if self.resumes:
                folder = RunFolder.open(self.config.folder)
                begun.enter_context(folder.alone())
                folder.write_config(self.config)
                prepared = reopen(self.config, folder)
                cluster = self._begin(begun, folder, prepared)
            else:
                check_free(self.config)
                folder = RunFolder.create(self.config)
                with folder.discarded_on_error():  # nothing has run yet, so the name stays free
                    begun.enter_context(folder.alone())
                    prepared = prepare(self.config, folder)
                    cluster = self._begin(begun, folder, prepared)
            checkpoint = self._checkpoint()
            if self.resumes:
                self.view.resuming(checkpoint)
            with folder.playing_on(cluster.where):
                return self._play(cluster, folder, prepared, checkpoint)

    def _begin(self, begun: ExitStack, folder: RunFolder, prepared: Prepared) -> "Cluster":
        """Join the cluster, open trackers and gateway, for as long as `begun` stays open."""
        from actors.cluster import Cluster
        from actors.gateway import gateway

        self.view.prepared(self.config, prepared)
        cluster = begun.enter_context(Cluster(self.config, prepared.parameters, self.view.waiting))
        begun.enter_context(Tracking(self.config, folder, self.view))
        cluster.where["gateway"] = begun.enter_context(gateway(self.config.with_absolute_paths()))
        return cluster

    def _play(
        self, cluster: "Cluster", folder: RunFolder, prepared: Prepared, checkpoint: StoredCheckpoint | None
    ) -> dict[str, Any]:
        from actors.run_metrics import RunMetrics
        from actors.service import Service

        summary: dict[str, Any] = {"run": self.config.run.name, "status": "stopped", "versions": versions()}
        service: Service | None = None
        try:
            config = self.config.with_absolute_paths()
            model_path = config.model.path or self._make_model(folder, prepared)
            self.view.starting(cluster.where)
            metrics = RunMetrics(config.run.name)  # one, as Ray counts on when actors start anew
            with interrupts_heard() as interrupts:
                for failures_left in reversed(range(config.run.max_failures + 1)):
                    resume_from = checkpoint.path if checkpoint else None
                    service = Service(config, prepared, model_path, metrics, resume_from)
                    try:
                        service.play(self.view, interrupts)
                        break
                    except LostActorError as error:
                        if interrupts.at_once.is_set():
                            raise KeyboardInterrupt from error
                        if not failures_left:
                            raise
                        service.stop()
                        service.give_back_room()
                        service = None
                        checkpoint = self._checkpoint()
                        self.view.lost(error, checkpoint)
            assert service
            prepared.tokenizer.save_pretrained(folder.final)
            folder.write_probe(service.probe())
            write_model_card(folder.final, self.config, service.summary(), prepared.data.report)
            summary["status"] = "finished"
        except Exception as error:
            # An error out of an actor may carry the traceback of every task it took along.
            summary |= {
                "status": "failed",
                "error": f"{type(error).__name__}: {str(error)[:ERROR_CHARACTERS]}",
            }
            raise
        finally:
            if service:
                summary |= service.summary()
            summary["cluster"] = cluster.where
            summary["model"] = {"parameters": prepared.parameters, "dtype": self.config.model.dtype}
            summary["objective"] = self.config.objective.model_dump()
            summary["data"] = prepared.data.report.to_dict()
            folder.write_summary(summary)  # first of all: whoever ends the run may not wait for long
            # From now on the summary tells of the run, and not its actors.
            folder.cluster.unlink(missing_ok=True)
            if service:
                service.stop()
            write_report(folder, self.config, summary)
        return summary

    def _checkpoint(self) -> StoredCheckpoint | None:
        """The newest checkpoint, to go on from; all others are deleted."""
        with storage_errors(self.config):
            return CheckpointStorage(self.config).keep_newest()

    def _make_model(self, folder: RunFolder, prepared: Prepared) -> str:
        if not folder.start.exists():
            self.view.warmed_up(make_model(self.config, folder, prepared, self.view.warmup))
        return str(folder.start)

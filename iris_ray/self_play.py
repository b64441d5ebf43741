"""The public façade: one run from configuration to summary."""

from typing import Any

from iris_ray.config import RunConfig
from iris_ray.preparation import Prepared, check_names, make_model, prepare
from iris_ray.report import write_report
from iris_ray.run_folder import RunFolder
from iris_ray.versions import versions
from iris_ray.view import View

ERROR_CHARACTERS = 4000


class SelfPlay:
    """Self-play fine-tuning as one call: `SelfPlay(RunConfig.from_yaml(path)).run()`.

    `view` is told of the progress; by default nothing is shown.
    """

    def __init__(self, config: RunConfig, view: View | None = None):
        self.config = config
        self.view = view or View()

    def run(self) -> dict[str, Any]:
        """Play the whole game; returns what summary.json holds.

        Joins the Ray cluster at hand or starts a local one. Raises an `IrisRayError` for what the user
        can mend, before any actor starts where that is possible. Whatever happens later, the run folder
        says so in summary.json.
        """
        from actors.cluster import Cluster

        check_names(self.config)
        folder = RunFolder.create(self.config)
        with folder.discarded_on_error():  # nothing has run yet, so the name stays free
            prepared = prepare(self.config, folder)
            self.view.prepared(self.config, prepared)
            cluster = Cluster(self.config, prepared.parameters)
        with cluster:
            return self._play(cluster, folder, prepared)

    def _play(self, cluster: Any, folder: RunFolder, prepared: Prepared) -> dict[str, Any]:
        from actors.service import Service

        summary: dict[str, Any] = {"run": self.config.run.name, "status": "finished", "versions": versions()}
        service = None
        try:
            model_path = self._start_model(folder, prepared)
            self.view.starting(cluster.dashboard_url)
            service = Service(self.config, prepared, model_path)
            service.play(self.view)
            prepared.tokenizer.save_pretrained(folder.final)
            folder.write_probe(service.probe())
        except KeyboardInterrupt:
            summary["status"] = "stopped"
            raise
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
                service.stop()
            summary["model"] = {"parameters": prepared.parameters, "dtype": self.config.model.dtype}
            summary["objective"] = self.config.objective.model_dump()
            summary["data"] = prepared.data.report.to_dict()
            folder.write_summary(summary)
            write_report(folder, self.config, summary)
        return summary

    def _start_model(self, folder: RunFolder, prepared: Prepared) -> str:
        if self.config.model.path:
            return self.config.model.path
        self.view.warmed_up(make_model(self.config, folder, prepared, self.view.warmup))
        return str(folder.start)

"""TensorBoard's files in the run folder."""

from torch.utils.tensorboard import SummaryWriter

from iris_ray.config import RunConfig
from iris_ray.run_folder import RunFolder
from iris_ray.tracking.tracker import End, Tracker


class TensorBoard(Tracker):
    def __init__(self, config: RunConfig, folder: RunFolder, known: str | None):
        self.folder = folder.tensorboard
        first = not self.folder.exists()
        self.writer = SummaryWriter(self.folder)
        if first:
            self.writer.add_text("config", f"```yaml\n{config.to_yaml()}```")

    def tell(self, values: dict[str, float], step: int, time: float) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, time)

    def go_back(self, step: int) -> None:
        # TensorBoard then forgets what the folder's older files hold behind this step.
        self.writer.close()
        self.writer = SummaryWriter(self.folder, purge_step=step + 1)

    def flush(self) -> None:
        self.writer.flush()

    def close(self, end: End) -> None:
        self.writer.close()

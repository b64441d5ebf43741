"""One side in a process of its own: `python -m benchmarks.learner.worker JOB`, started by the parent."""

import logging
import sys
import warnings

from benchmarks.learner.channel import Channel
from benchmarks.learner.job import Job


def main(job: Job) -> None:
    """Build the side, tell the memory that imports and built side take, then answer requests."""
    channel = Channel()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    import torch

    from benchmarks.learner.memory import resident_mib

    torch.set_num_threads(job.threads)
    if job.side == "ours":
        from benchmarks.learner.ours import OurSide as Side
    else:
        from benchmarks.learner.peer import PeerSide as Side  # type: ignore[assignment]
    imported = resident_mib()
    side = Side(job)
    channel.answer({"imported_mib": imported, "built_mib": resident_mib()})
    side.serve(channel)


if __name__ == "__main__":
    main(Job.from_json(sys.argv[1]))

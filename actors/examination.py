"""A run's generators examined in tasks of lm-eval, beside the training."""

from typing import Any

import ray

from actors import names
from iris_ray.config import RunConfig
from iris_ray.contracts import Answer, Question


@ray.remote(num_cpus=0)
def examine(config: RunConfig, model_path: str, version: int) -> dict[str, float]:
    """Scores of weights `version` in `evaluation.tasks`, as `task_<name>`."""
    from transformers import AutoTokenizer

    from iris_ray.harness.asking_model import AskingModel
    from iris_ray.harness.evaluate import Protocol, examined

    evaluation = config.evaluation
    pool = names.find(config.run.name, names.GENERATOR_POOL)

    def ask(questions: list[Question]) -> list[Answer]:
        answers: Any = pool.answer.remote(questions, version)
        return ray.get(answers)

    tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=config.model.trust_remote_code)
    # vLLM scores a sequence only if one more token would fit behind it.
    model = AskingModel(tokenizer, config.window - 1, ask, config.data.chat_template_options)
    protocol = Protocol(evaluation.tasks_limit, config.data.chat_template)
    scores = examined(model, evaluation.tasks, protocol, evaluation.tasks_folder)
    return {f"task_{score.task.name}": score.value for score in scores}

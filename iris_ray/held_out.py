"""What a model is worth on held-out prompts, from one evaluation to the next."""

from collections.abc import Sequence
from itertools import chain, pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from iris_ray.config import RunConfig
from iris_ray.contracts import Answer, Question
from iris_ray.evaluation import SCORERS, exact_match
from iris_ray.run_folder import RunFolder

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

COMPARED = 32  # answers for self-BLEU: each with all others
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.int64()),
        ("prompt", pa.string()),
        ("real", pa.string()),
        ("answer", pa.string()),
        ("answer_tokens", pa.list_(pa.int32())),
        ("answer_logprob", pa.float64()),
        ("real_logprob", pa.float64()),
    ]
)


class HeldOut:
    """Asks the prompts and scores the answers; keeps them in the run folder, where the next model finds them.

    `rows` are those of the split `holdout`.
    """

    def __init__(
        self, config: RunConfig, folder: RunFolder, rows: "Dataset", tokenizer: "PreTrainedTokenizerBase"
    ):
        self.config = config.evaluation
        self.folder = folder
        self.rows = rows.select(range(min(self.config.prompts, len(rows))))
        self.tokenizer = tokenizer

    def questions(self, iteration: int) -> list[Question]:
        """What is asked of the model that `iteration` made; 0 is the start model."""
        before = self._answers(iteration - 1)
        questions = []
        for index, row in enumerate(self.rows):
            likely = [row["response_tokens"]] if self.config.likelihoods else []
            likely += [before[index]["answer_tokens"]] if before else []
            questions.append(Question(row["prompt_tokens"], likely))
        return questions

    def scores(self, iteration: int, answers: Sequence[Answer]) -> dict[str, float | None]:
        """Scores of the model that `iteration` made, with `answers` to `questions(iteration)`.

        - `exact_match`: share of answers that equal the annotated response (`evaluation.answer_pattern`)
        - `score`: mean of `evaluation.scorer`
        - `answer_tokens`: mean length, end token included
        - `distinct_2`: share of different ones among all pairs of neighbouring tokens (Li et al. 2016)
        - `self_bleu`: mean BLEU-4 of an answer against the others, 0 to 1 (Zhu et al. 2018), of 32 at most
        - `held_out_nll`: −log p of the annotated responses, in nats per token
        - `held_out_margin`: mean of r(y) − r(y'), in nats, with r = log p/p₋ against the model before, y the
          annotated response and y' that model's greedy answer

        Empty (`None`): not asked for, or there was no model before.
        """
        if not answers:
            return {"exact_match": None}
        texts = self.tokenizer.batch_decode([answer.tokens for answer in answers], skip_special_tokens=True)
        before = self._answers(iteration - 1)
        self._write(iteration, texts, answers)
        real = self.rows["response_text"]
        return {
            "exact_match": exact_match(texts, real, self.config.answer_pattern),
            "score": self._score(texts),
            "answer_tokens": fmean(len(answer.tokens) for answer in answers),
            "distinct_2": distinct_2([answer.tokens for answer in answers]),
            "self_bleu": self_bleu(texts[:COMPARED]),
            **self._likelihoods(answers, before),
        }

    def _score(self, texts: Sequence[str]) -> float | None:
        if self.config.scorer is None:
            return None
        scorer = SCORERS[self.config.scorer]
        prompts = self.tokenizer.batch_decode(list(self.rows["prompt_tokens"]), skip_special_tokens=True)
        return fmean(map(scorer, prompts, texts, self.rows["response_text"]))

    def _likelihoods(
        self, answers: Sequence[Answer], before: list[dict[str, Any]]
    ) -> dict[str, float | None]:
        if not self.config.likelihoods:
            return {"held_out_nll": None, "held_out_margin": None}
        tokens = sum(map(len, self.rows["response_tokens"]))
        nll = -sum(answer.logprobs[0] for answer in answers) / tokens
        margins = [
            (answer.logprobs[0] - old["real_logprob"]) - (answer.logprobs[1] - old["answer_logprob"])
            for answer, old in zip(answers, before, strict=False)
        ]
        return {"held_out_nll": nll, "held_out_margin": fmean(margins) if margins else None}

    def _answers(self, iteration: int) -> list[dict[str, Any]]:
        """What was kept of an earlier model, if its likelihoods are known."""
        path = self.folder.held_out(iteration)
        if not self.config.likelihoods or not path.exists():
            return []
        rows = pq.read_table(path).to_pylist()
        asked = [row["prompt_id"] for row in rows] == list(self.rows["prompt_id"])
        return rows if asked and rows[0]["answer_logprob"] is not None else []

    def _write(self, iteration: int, texts: Sequence[str], answers: Sequence[Answer]) -> None:
        rows = [
            {
                "prompt_id": row["prompt_id"],
                "prompt": self.tokenizer.decode(row["prompt_tokens"]),
                "real": row["response_text"],
                "answer": text,
                "answer_tokens": answer.tokens,
                "answer_logprob": answer.logprob,
                "real_logprob": answer.logprobs[0] if answer.logprobs else None,
            }
            for row, text, answer in zip(self.rows, texts, answers, strict=True)
        ]
        path = self.folder.held_out(iteration)
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)


def distinct_2(answers: Sequence[Sequence[int]]) -> float | None:
    """Share of different ones among all pairs of neighbouring tokens; None if there is no such pair."""
    bigrams = list(chain.from_iterable(map(pairwise, answers)))
    return len(set(bigrams)) / len(bigrams) if bigrams else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean BLEU-4 of each text with all others as references, 0 to 1; None for less than two texts."""
    if len(texts) < 2:
        return None
    from sacrebleu import BLEU

    bleu = BLEU(effective_order=True)  # also for texts of less than four words
    others = ([*texts[:index], *texts[index + 1 :]] for index in range(len(texts)))
    return (
        fmean(bleu.sentence_score(text, rest).score for text, rest in zip(texts, others, strict=True)) / 100
    )

"""Tasks of one's own for lm-eval, and what transformers says of them."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = [
    {"question": f"{a} {b} {c}", "choices": [f"{c}", f"{a} {b}", f"{b} {b} {b}"], "answer": (a + b) % 3}
    for a, b, c in [(1, 2, 3), (4, 1, 9), (7, 7, 0), (5, 3, 8), (2, 6, 4), (9, 0, 1), (3, 3, 5), (8, 4, 6)]
]
CHOOSE = {
    "task": "choose",
    "output_type": "multiple_choice",
    "doc_to_text": "Digits: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def write_tasks(folder: Path, tasks: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Write YAML files of `tasks` about the questions `rows` into `folder`."""
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    for task in tasks:
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task | source))


def accuracy(model: Path, rows: list[dict[str, Any]], chat: bool = False) -> float:
    """In `CHOOSE`, through the chat template or without."""
    tokenizer, policy = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)

    def logprob(prompt: str, choice: str) -> float:
        whole, shown = (tokenizer(text)["input_ids"] for text in (prompt + choice, prompt.rstrip()))
        with torch.no_grad():
            table = policy(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(table[place - 1, whole[place]].item() for place in range(len(shown), len(whole)))

    def chosen(row: dict[str, Any]) -> int:
        prompt = f"Digits: {row['question']}\nAnswer:"
        if chat:  # whose last token ends the prompt: lm-eval puts no space behind it
            turns = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        scores = [logprob(prompt, choice if chat else f" {choice}") for choice in row["choices"]]
        return scores.index(max(scores))

    return sum(chosen(row) == row["answer"] for row in rows) / len(rows)

"""The loop itself, a program of its own: `python -m benchmarks.end_to_end.loop WAY DTYPE MODEL DATA FOLDER`.

Written as its users would: engine and trainer start anew with each iteration's weights. The trainer's
gradient checkpointing, logs and checkpoints are off.
"""

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.end_to_end.settings import BETA, DTYPES, LEARNING_RATE, Settings

BATCH = 64  # of transformers' generate


def main(way: str, dtype: str, start: str, data: str, folder: Path) -> None:
    from transformers import AutoTokenizer

    settings = Settings(**json.loads((folder / "settings.json").read_text()))
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    random.Random(settings.seed).shuffle(rows)
    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.padding_side = "left"
    write = _by_vllm if way == "vllm_trl" else _by_transformers
    model, phases = start, []
    for iteration in range(settings.iterations):
        mine = rows[iteration * settings.pairs : (iteration + 1) * settings.pairs]
        prompts = [_prompt(row, tokenizer) for row in mine]
        phase, answers = write(model, prompts, tokenizer, settings, DTYPES[dtype])
        phase["training"] = time.time()
        out = folder / f"model-{iteration + 1}"
        _train(model, prompts, mine, answers, tokenizer, settings, dtype, out)
        phase["trained"] = time.time()
        phases.append(phase)
        model = str(out)
    (folder / "phases.json").write_text(json.dumps(phases))


def _prompt(row: dict[str, str], tokenizer: Any) -> str:
    turns = [{"role": "user", "content": row["prompt"]}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def _by_vllm(
    model: str, prompts: list[str], tokenizer: Any, settings: Settings, dtype: Any
) -> tuple[dict[str, float], list[str]]:
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        dtype=dtype,
        max_model_len=settings.max_prompt_tokens + settings.max_response_tokens,
        max_num_seqs=settings.concurrency,
        enforce_eager=True,
        seed=settings.seed,
    )
    ready = time.time()
    parameters = SamplingParams(
        temperature=1.0, max_tokens=settings.max_response_tokens, stop_token_ids=[tokenizer.eos_token_id]
    )
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    answers = [output.outputs[0].text for output in outputs]
    written = time.time()
    llm.llm_engine.engine_core.shutdown()
    return {"ready": ready, "written": written}, answers


def _by_transformers(
    path: str, prompts: list[str], tokenizer: Any, settings: Settings, dtype: str
) -> tuple[dict[str, float], list[str]]:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    ready = time.time()
    answers: list[str] = []
    for begin in range(0, len(prompts), BATCH):
        batch = tokenizer(prompts[begin : begin + BATCH], return_tensors="pt", padding=True)
        written = model.generate(
            **batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=settings.max_response_tokens
        )
        answers += tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"ready": ready, "written": time.time()}, answers


def _train(
    model: str,
    prompts: list[str],
    rows: list[dict[str, str]],
    answers: list[str],
    tokenizer: Any,
    settings: Settings,
    dtype: str,
    out: Path,
) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    end = tokenizer.eos_token
    pairs = Dataset.from_dict(
        {
            "prompt": prompts,
            "chosen": [row["response"] + end for row in rows],
            "rejected": [answer + end for answer in answers],
        }
    )
    arguments = DPOConfig(
        output_dir=str(out),
        use_cpu=True,
        bf16=dtype == "bf16",
        beta=BETA,
        num_train_epochs=1,
        per_device_train_batch_size=settings.batch,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        max_length=None,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = DPOTrainer(model, args=arguments, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(out))
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    # As generators have it: an engine that binds itself would keep to one core.
    os.environ.update({"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    way, dtype, model, data, folder = sys.argv[1:]
    main(way, dtype, model, data, Path(folder))

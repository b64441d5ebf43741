"""A tokenizer whose class came with the model, in a process that cannot import it."""

import json
import subprocess
import sys
from pathlib import Path

from ray import cloudpickle
from transformers import AutoTokenizer

from actors.remote_code import with_its_code
from iris_ray.scratch.tokenizer import train_tokenizer

OWN = """
from transformers import PreTrainedTokenizerFast


class Shouting(PreTrainedTokenizerFast):
    def decode(self, *args, **options):
        return loud(super().decode(*args, **options))


def loud(text):
    return text.upper()
"""


def test_its_class_travels_with_it(tmp_path: Path) -> None:
    folder, sent = tmp_path / "model", tmp_path / "sent"
    train_tokenizer(["some text"], 300).save_pretrained(folder)
    (folder / "shouting.py").write_text(OWN)
    about = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "Shouting", "auto_map": {"AutoTokenizer": [None, "shouting.Shouting"]}}
    about.write_text(json.dumps(json.loads(about.read_text()) | own))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    tokens = tokenizer.encode("some text")
    sent.write_bytes(cloudpickle.dumps((with_its_code(tokenizer), tokens)))

    there = "import pickle, sys; tokenizer, tokens = pickle.load(open(sys.argv[1], 'rb'))"
    show = "print(tokenizer.decode(tokens), 'torch' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", f"{there}; {show}", sent], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split("\n")[0] == "SOME TEXT False"

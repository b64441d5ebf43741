"""Objects whose class came with a model, on their way to another process."""

from importlib import import_module

from ray import cloudpickle
from transformers import PreTrainedTokenizerBase

MODULES = "transformers_modules"  # where transformers puts the code of `model.trust_remote_code`


def with_its_code(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Have Ray send the tokenizer's class too, where the process that gets it could not import it."""
    if type(tokenizer).__module__.startswith(f"{MODULES}."):
        cloudpickle.register_pickle_by_value(import_module(MODULES))
    return tokenizer

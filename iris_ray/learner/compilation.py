"""torch.compile, layer by layer."""

from transformers import PreTrainedModel


def compile_layers(model: PreTrainedModel) -> None:
    """Compile the model's repeated blocks: all run the same code, so one compilation serves them all."""
    blocks = set(model._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in blocks:
            module.compile(dynamic=True)

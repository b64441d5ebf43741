"""The configuration of a run: one model a section, unknown keys are errors."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from iris_ray.errors import ConfigError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Run(Section):
    name: str = Field("demo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is `<folder>/<name>`. Several recipes that do not set it: their file names,
    joined by `-`."""
    folder: Path = Path("runs")
    """Where run folders are kept. On a cluster of several nodes: storage that all nodes see."""
    seed: int = Field(0, ge=0)
    """Seeds the data order, the made models, the sampling and the evaluation split."""
    ray_address: str | None = None
    """Ray cluster to join, for instance `auto`. Empty: RAY_ADDRESS if set, else a local cluster."""
    plugins: list[Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")]] = []
    """Python modules to import everywhere; they register objectives, schedules or gap estimators."""
    start_timeout_s: float = Field(600, gt=0)
    """How long the actors may take to start, in seconds."""
    wait_for_nodes: bool = False
    """Wait so long for nodes, too, where an autoscaler brings them. A run that does not fit on the nodes
    that are there is refused otherwise."""
    wait_timeout_s: float = Field(900, gt=0)
    """How long the learner waits for a batch, or a generator for work on its weights, in seconds."""
    max_failures: int = Field(3, ge=0)
    """How often the run goes back to its last checkpoint because an actor that holds its state died."""


class ScratchModel(Section):
    """A small model and tokenizer made on the spot, warmed by SFT on the annotated data."""

    vocab_size: int = Field(512, ge=300)
    """Entries of the BPE tokenizer trained on the data."""
    hidden_size: int = Field(128, ge=16)
    intermediate_size: int = Field(384, ge=16)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    kv_heads: int = Field(2, ge=1)
    warmup_steps: int = Field(400, ge=0)
    """Most SFT steps before self-play starts."""
    warmup_batch_size: int = Field(64, ge=1)
    warmup_learning_rate: float = Field(2e-3, gt=0)
    stop_at_exact_match: float | None = Field(None, gt=0, le=1)
    """End the warm-up once greedy answers to held-out prompts reach this share, so that room is left."""


class Lora(Section):
    """A low-rank adapter: trained and published instead of the model, which stays as it was loaded."""

    # There is no dropout: the game compares exact log-probs.
    rank: int = Field(16, ge=1, le=512)
    """Inner width of the adapter. vLLM serves at most 512."""
    alpha: float = Field(32, gt=0)
    """The adapter counts `alpha / rank` times."""
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = "all-linear"
    """Last names of the linear layers that get an adapter, for instance `[q_proj, v_proj]`. The output head
    gets none."""


class Model(Section):
    path: str | None = None
    """Model folder or hub name in Hugging Face format."""
    scratch: ScratchModel | None = None
    """Make a small model on the spot instead of loading one."""
    architecture: Literal["qwen2", "mistral"] | None = None
    """What `scratch` makes: `qwen2` (or empty) with a ChatML template, `mistral` with one like Zephyr's. A
    model that is loaded must be of it."""
    lora: Lora | None = None
    """Train a LoRA adapter. Empty: train all weights."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the learner's forward pass and of the generators."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you trust its author."""

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        if (self.path is None) == (self.scratch is None):
            raise ValueError("set exactly one of model.path (a model to load) and model.scratch (make one)")
        return self


class SortDigits(Section):
    """A made task with checkable answers: the prompt is a row of digits, the response the same, sorted."""

    examples: int = Field(4096, ge=1)
    """Annotated pairs to train on, without repetition."""
    min_digits: int = Field(3, ge=1, le=20)
    max_digits: int = Field(8, ge=1, le=20)

    @model_validator(mode="after")
    def _ordered(self) -> "SortDigits":
        if self.max_digits < self.min_digits:
            raise ValueError(
                f"max_digits ({self.max_digits}) must be at least min_digits ({self.min_digits})"
            )
        return self


class Data(Section):
    path: str | None = None
    """A JSONL, JSON, CSV or Parquet file, a folder saved by `datasets`, or the name of a hub data set."""
    split: str = "train"
    """Split to read where the source has several."""
    sort_digits: SortDigits | None = None
    """Make the digit-sorting task instead of reading data."""
    prompt_column: str = "prompt"
    response_column: str = "response"
    inbox: Path | None = None
    """Folder in which files of more annotated rows are put while the run goes on, with the same columns: each
    iteration begins with what is there."""
    messages_column: str = "messages"
    """Column of chat messages; used where present. The last assistant turn is the annotated response."""
    rounds: int | None = Field(None, ge=1)
    """Read only so many rounds of chat messages, from the start: a round ends with an assistant turn. Empty:
    all."""
    chat_template: bool = True
    """Put prompts into the model's chat template. `false` feeds them as they are."""
    limit: int | None = Field(None, ge=1)
    """Read at most this many rows."""
    holdout: int = Field(256, ge=0)
    """Rows set aside for evaluation, drawn by seed. Never trained on."""
    subset: int | None = Field(None, ge=1)
    """Train on so many of the other rows that can be used, drawn by seed: a smaller subset lies within a
    larger one. Empty: all."""
    max_prompt_tokens: int = Field(1024, ge=1)
    max_response_tokens: int = Field(1024, ge=2)
    """Longest response in tokens, end token included: annotated rows above it are dropped and counted,
    written responses stop there and are marked `length`."""
    max_bad_fraction: float = Field(0.05, ge=0, le=1)
    """Share of rows that may be malformed, empty or over-long before the run is refused."""

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if (self.path is None) == (self.sort_digits is None):
            raise ValueError("set exactly one of data.path (data to read) and data.sort_digits (make a task)")
        return self


class Objective(Section):
    name: str = "iris"
    """`iris`, `spin`, `space`, `spif`, `tspin`, `sft`, or one that a plug-in registers."""
    options: dict[str, Any] = {}
    """Options of the objective, for instance `lam`."""
    by_iteration: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Options that change: a list of one value per iteration, the last one going on."""

    @model_validator(mode="after")
    def _one_value(self) -> "Objective":
        if twice := self.options.keys() & self.by_iteration.keys():
            raise ValueError(
                f"{', '.join(sorted(twice))}: set in options and in by_iteration. Set it in one of them"
            )
        return self

    def options_in(self, iteration: int) -> dict[str, Any]:
        """All options in `iteration`, which counts from 1."""
        changing = {name: values[:iteration][-1] for name, values in self.by_iteration.items()}
        return self.options | changing


class Alpha(Section):
    schedule: str = "gap_feedback"
    """`fixed` keeps `value`; `geometric` goes from `first` to `last` by equal factors; `gap_feedback` sets
    α = clip(1 + c·D̂, minimum, maximum) per opponent."""
    value: float = 1.0
    """The order α of schedule `fixed`."""
    first: float = Field(2.0, gt=0)
    """The order of schedule `geometric` against the first opponent."""
    last: float = Field(1.0, gt=0)
    """And against the last one."""
    c: float = Field(0.5, ge=0)
    """Gain of the gap feedback."""
    minimum: float = 0.5
    maximum: float = 3.0
    gap: str = "variational"
    """Estimator of the gap D̂: `margin`, `variational` or `nll`. The default is the method study's."""
    gap_per: Literal["token", "sequence"] = "token"
    """Whether D̂ counts nats per response token or per response."""
    initial_gap: float = Field(0.0, ge=0)
    """D̂ before the first opponent was trained against."""
    options: dict[str, Any] = {}
    """Settings of a schedule of your own."""

    @model_validator(mode="after")
    def _ordered(self) -> "Alpha":
        if self.maximum < self.minimum:
            raise ValueError(
                f"alpha.maximum ({self.maximum}) must be at least alpha.minimum ({self.minimum})"
            )
        return self


class Schedule(Section):
    iterations: int = Field(5, ge=1)
    """Opponents to play against, one after the other."""
    epochs: int = Field(2, ge=1)
    """Passes over the pairs of one opponent."""
    prompts_per_iteration: int | None = Field(None, ge=1)
    """Prompts drawn anew for each opponent. Empty: all."""
    refresh: Literal["iteration"] | Annotated[int, Field(ge=1)] = "iteration"
    """When the opponent is replaced: `iteration` freezes it until all its pairs are trained on; a number
    plays the online game, with a new opponent after so many optimiser steps."""
    max_staleness: int = Field(1, ge=0)
    """Online, by how many versions the oldest that wrote some of a response may lie behind the newest when
    the pair is trained on."""


class Autoscale(Section):
    """More generators when the learner is about to wait, fewer when they only fill the buffer."""

    minimum: int = Field(1, ge=1)
    """Fewest generators."""
    maximum: int = Field(ge=1)
    """Most generators."""
    low: float = Field(2, ge=0)
    """One more generator below so many written batches ahead of the learner."""
    high: float = Field(8, gt=0)
    """One fewer above so many."""
    interval_s: float = Field(10, gt=0)
    """Seconds between two changes."""

    @model_validator(mode="after")
    def _ordered(self) -> "Autoscale":
        for low, high in (("minimum", "maximum"), ("low", "high")):
            if getattr(self, high) < getattr(self, low):
                raise ValueError(
                    f"{high} ({getattr(self, high)}) must be at least {low} ({getattr(self, low)})"
                )
        return self


class Generation(Section):
    count: int = Field(1, ge=1)
    """Generator actors at the start, each with one vLLM engine. `iris-ray scale` changes it in a run."""
    autoscale: Autoscale | None = None
    """Let the run choose the number of generators. Empty: it stays as it is set."""
    num_cpus: float = Field(1, ge=0)
    """Cores per generator. Below 1 several generators share a core."""
    bind_cores: bool = False
    """Give each generator `num_cpus` cores of its own that no other generator of the node runs on."""
    num_gpus: float = Field(0, ge=0)
    """GPUs per generator: `tensor_parallel` whole ones, or a part of one."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that vLLM splits one engine's weights over."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom Ray resources per generator, such as `{generators: 1}`: only nodes that have them hold it."""
    labels: dict[str, str] = {}
    """Ray label selector of the generators' nodes."""
    max_failures: int = Field(5, ge=0)
    """Generators that may die in a row without one pair written in between; one more ends the run."""
    hang_timeout_s: float = Field(300, gt=0)
    """A generator whose engine does not answer for so long, between two steps, is replaced, in seconds."""
    drain_timeout_s: float = Field(60, ge=0)
    """How long a generator that leaves may finish its responses, in seconds; then they are handed back."""
    n: int = Field(1, ge=1)
    """Responses written to each prompt. Each of them makes a pair of its own."""
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the likeliest tokens that together reach this probability."""
    top_k: int = Field(0, ge=-1)
    """Sample from this many likeliest tokens. 0 or -1: from all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Sample from tokens at least this fraction as likely as the likeliest one."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end a response beside the end token, each a single token of the tokenizer. The response
    keeps it as its last token."""
    concurrency: int = Field(64, ge=1)
    """Responses that one engine writes at the same time."""
    in_flight: Literal["finish", "continue", "resubmit"] = "finish"
    """Responses under way when newer weights come: they `finish` first; or they `continue` with the new
    weights and the keys and values that they have; or these are computed anew (`resubmit`)."""
    max_ahead: int = Field(2048, ge=1)
    """Pairs that may wait for the learner: a slow learner slows the generators."""
    kv_cache_gib: int = Field(1, ge=1)
    """KV cache of an engine on CPU, in whole GiB."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    enforce_eager: bool = False
    """Skip vLLM's compilation: starts sooner, writes slower."""
    engine_metrics: bool = False
    """Have vLLM report what each engine does as Ray metrics. Costs it some Python in every step."""

    @model_validator(mode="after")
    def _engine_fits(self) -> "Generation":
        if self.tensor_parallel > 1 and self.num_gpus != self.tensor_parallel:
            raise ValueError(
                f"generation.num_gpus ({self.num_gpus:g}) must be generation.tensor_parallel "
                f"({self.tensor_parallel}): vLLM's workers each take a whole GPU"
            )
        if self.tensor_parallel == 1 and self.num_gpus > 1:
            raise ValueError(
                f"generation.num_gpus ({self.num_gpus:g}): an engine with generation.tensor_parallel=1 uses "
                "one GPU. Raise tensor_parallel, or set num_gpus=1"
            )
        if 0 < self.num_gpus < self.gpu_memory_utilization and self.num_gpus < 1:
            raise ValueError(
                f"generation.num_gpus ({self.num_gpus:g}): vLLM takes generation.gpu_memory_utilization "
                f"({self.gpu_memory_utilization:g}) of the whole GPU, whatever part of it Ray gives. "
                f"Lower gpu_memory_utilization to {self.num_gpus:g} or less"
            )
        if self.bind_cores and (self.num_cpus < 1 or self.num_cpus % 1):
            raise ValueError(
                f"generation.bind_cores needs whole cores: generation.num_cpus is {self.num_cpus:g}"
            )
        if self.autoscale and not self.autoscale.minimum <= self.count <= self.autoscale.maximum:
            raise ValueError(
                f"generation.count ({self.count}) must lie between autoscale.minimum "
                f"({self.autoscale.minimum}) and autoscale.maximum ({self.autoscale.maximum})"
            )
        return self


class Learner(Section):
    workers: int = Field(1, ge=1)
    """Ranks of the learner (Ray Train workers)."""
    num_cpus: float = Field(1, gt=0)
    """Cores per rank."""
    num_gpus: float = Field(0, ge=0, le=1)
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom Ray resources per rank."""
    labels: dict[str, str] = {}
    """Ray label selector of the ranks' nodes."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Keep in CPU memory: the `optimizer`'s state (ZeRO 1 to 3), or it and the `parameters` (ZeRO 3)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    batch_size: int = Field(64, ge=1)
    """Pairs per optimiser step, over all ranks. The objective is normalised over all of them."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Tokens per forward pass of one rank, a pair's prompt counted once. Bounds memory; changes nothing
    else. A single longer pair still passes."""
    compile: bool = False
    """Compile the model's layers (torch.compile): a minute's start, then faster steps."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """`rmsprop` (α = 0.99) is what the SPIN family trains with."""
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    learning_rate: float | list[float] = 5e-7
    """One rate, or a list of one per iteration, the last one going on."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Course of the learning rate within an iteration, after warm-up."""
    lr_warmup_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    """Not applied to biases and norm weights."""
    max_grad_norm: float = Field(1.0, gt=0)
    max_skipped_steps: int = Field(10, ge=0)
    """Steps in a row that may be skipped because loss or gradient is not finite; one more ends the run."""
    max_failures: int = Field(3, ge=0)
    """How often a learner that died is started again from its last checkpoint."""
    reference: Literal["learner", "generator"] = "learner"
    """Where log p of the opponent comes from: `learner` keeps a frozen copy on each rank; with `generator`
    the engine that wrote a pair scores it, and the learner holds no second model."""

    @field_validator("learning_rate", mode="plain")
    @classmethod
    def _positive(cls, value: Any) -> float | list[float]:
        several = isinstance(value, list | tuple)
        try:
            rates = [float(rate) for rate in (value if several else [value])]
        except (TypeError, ValueError):
            rates = []
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise ValueError(
                f"{value!r} does not fit: input should be greater than 0, or a list of such, "
                "one per iteration."
            )
        return rates if several else rates[0]

    @model_validator(mode="after")
    def _offloads(self) -> "Learner":
        lowest = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < lowest:
            raise ValueError(
                f"learner.offload ({self.offload}) needs learner.zero_stage ({self.zero_stage}) "
                f"to be at least {lowest}"
            )
        return self


class Checkpoint(Section):
    every_steps: int | None = Field(200, ge=1)
    """Optimiser steps between checkpoints within an iteration, beside the one at its end. Empty: none."""
    keep: int = Field(2, ge=1)
    """The newest checkpoints that are kept."""
    storage: str | None = None
    """Where checkpoints go: a folder that all nodes see, or a URI such as `s3://bucket/runs`. Empty: the run
    folder."""


class Sync(Section):
    transport: Literal["object_store", "nccl", "gloo"] = "object_store"
    """How weights reach generators: `object_store` by way of Ray's memory, on any hardware; `nccl` in one
    broadcast from GPU to GPU; `gloo` the same between CPUs, to try it where there are none."""
    bucket_mib: int = Field(64, ge=1)
    """Weights travel in buckets of about this size. A larger tensor makes a bucket of its own."""
    buffer_mib: int = Field(512, ge=1)
    """Memory for weights on their way into a generator's engine. What fits in it is made ready before the
    engine stands still."""
    probe_sequences: int = Field(4, ge=1)
    """Annotated pairs whose log-probs learner and generator must agree on after every update."""
    parity_tolerance: float | None = Field(None, gt=0)
    """Largest difference allowed, in nats per token. Empty: by dtype."""
    timeout_s: float = Field(300, gt=0)
    """How long one weight update may take, in seconds."""

    @model_validator(mode="after")
    def _fits(self) -> "Sync":
        if self.buffer_mib < 2 * self.bucket_mib:
            raise ValueError(
                f"buffer_mib ({self.buffer_mib}) must be at least twice bucket_mib ({self.bucket_mib}): one "
                "bucket is loaded while the next one is fetched"
            )
        return self


class Gateway(Section):
    """The run over HTTP: a page, its status, orders, and its policy as an OpenAI-compatible endpoint."""

    port: int | None = Field(None, ge=1, le=65535)
    """Where it listens. Empty: there is no gateway."""
    host: str = "127.0.0.1"
    """Address it listens at; the default is reached from its own machine only."""
    prefix: str = Field("/", pattern=r"^/([\w.-]+(/[\w.-]+)*)?$")
    """What its paths begin with. Runs of one cluster share the port and need one each."""
    max_requests: int = Field(4, ge=1)
    """Answers of the policy that are written at the same time; a request for more is refused."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest answer of the policy, in tokens. Empty: `data.max_response_tokens`."""
    max_body_kib: int = Field(256, ge=1)
    """Largest body of a request."""


class Evaluation(Section):
    prompts: int = Field(256, ge=0)
    """Held-out prompts answered greedily per opponent. 0 switches the evaluation off."""
    answer_pattern: str | None = None
    """Regular expression with one group: compare what it finds last, not the whole response."""
    scorer: str | None = None
    """Scorer of one's own that a module of `run.plugins` registers."""
    tasks: list[str] = []
    """Tasks of lm-eval, `NAME` or `NAME:SHOTS`, that the generators answer for each model. Needs the extra
    `eval`."""
    tasks_folder: Path | None = None
    """Folder with YAML files of one's own tasks."""
    tasks_limit: int | None = Field(None, ge=1)
    """Ask only so many documents of each task."""
    likelihoods: bool = True
    """Also tell how likely held-out annotated responses and the former model's answers are."""


class Wandb(Section):
    """Weights & Biases. Needs the extra `wandb`."""

    project: str = "iris-ray"
    entity: str | None = None
    """User or team. Empty: your default one."""
    mode: Literal["online", "offline"] = "online"
    """`offline` keeps all of it in the run folder; `wandb sync` sends it later."""


class Mlflow(Section):
    """MLflow. Needs the extra `mlflow`."""

    uri: str | None = None
    """Tracking server, or a database such as `sqlite:///mlflow.db`. Empty: MLFLOW_TRACKING_URI."""
    experiment: str = "iris-ray"


class Tracking(Section):
    """Where a run's curves go beside its folder. TensorBoard's files are always written there."""

    wandb: Wandb | None = None
    """Empty: nothing goes to Weights & Biases."""
    mlflow: Mlflow | None = None
    """Empty: nothing goes to MLflow."""


class RunConfig(Section):
    """All settings of a run.

    Raises `ConfigError` from `from_yaml` and `from_dict`; each line names a field, its value and the fix.
    """

    run: Run = Run()
    model: Model
    data: Data
    objective: Objective = Objective()
    alpha: Alpha = Alpha()
    schedule: Schedule = Schedule()
    generation: Generation = Generation()
    learner: Learner = Learner()
    checkpoint: Checkpoint = Checkpoint()
    sync: Sync = Sync()
    evaluation: Evaluation = Evaluation()
    gateway: Gateway = Gateway()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _fits(self) -> "RunConfig":
        ahead, batch = self.generation.max_ahead, self.learner.batch_size
        if ahead < batch:
            raise ValueError(
                f"generation.max_ahead ({ahead}) must be at least learner.batch_size ({batch}), "
                "or the first batch is never complete"
            )
        if self.schedule.refresh != "iteration":
            online = f"schedule.refresh={self.schedule.refresh}"
            if self.learner.reference != "generator":
                raise ValueError(
                    f"{online} needs learner.reference=generator: the learner keeps no copies of the "
                    "opponents that wrote the pairs"
                )
            if self.schedule.epochs != 1:
                raise ValueError(
                    f"{online} needs schedule.epochs=1, not {self.schedule.epochs}: in a second pass all "
                    "pairs would be older than schedule.max_staleness allows. Raise schedule.iterations"
                )
        autoscale = self.generation.autoscale
        if autoscale and autoscale.high * batch >= ahead:
            raise ValueError(
                f"generation.autoscale.high ({autoscale.high:g} batches of {batch}) must be below "
                f"generation.max_ahead ({ahead} pairs), or there is never one generator too many"
            )
        if self.model.lora and self.generation.num_gpus and self.model.dtype == "float32":
            raise ValueError(
                "model.lora with generation.num_gpus needs model.dtype=bfloat16: vLLM's adapters know no "
                "float32 on GPUs"
            )
        if self.sync.transport != "object_store":
            gpus = self.sync.transport == "nccl"
            for field, count in (
                ("generation", self.generation.num_gpus),
                ("learner", self.learner.num_gpus),
            ):
                if gpus and count < 1:
                    raise ValueError(
                        f"sync.transport (nccl) needs a whole GPU on each side: raise {field}.num_gpus "
                        f"({count:g}), or set sync.transport=object_store"
                    )
                if not gpus and count:
                    raise ValueError(
                        f"sync.transport (gloo) is for CPUs, and {field}.num_gpus is {count:g}. "
                        "Set sync.transport=nccl"
                    )
            if self.model.lora:
                raise ValueError(
                    f"sync.transport ({self.sync.transport}) sends whole models. An adapter (model.lora) is "
                    "small: set sync.transport=object_store"
                )
        if self.model.lora and self.generation.in_flight != "finish":
            raise ValueError(
                f"generation.in_flight ({self.generation.in_flight}) does not go with model.lora: no "
                "adapter can be replaced while responses use it. Set generation.in_flight=finish"
            )
        if self.learner.reference == "generator" and self.generation.temperature != 1:
            raise ValueError(
                f"learner.reference (generator) needs generation.temperature "
                f"({self.generation.temperature:g}) to be 1: engines score given responses without a "
                "temperature. Set generation.temperature=1, or learner.reference=learner"
            )
        if self.data.holdout == 0 and self.model.scratch and self.model.scratch.stop_at_exact_match:
            raise ValueError("model.scratch.stop_at_exact_match needs held-out prompts: raise data.holdout")
        return self

    @property
    def folder(self) -> Path:
        return self.run.folder / self.run.name

    def with_absolute_paths(self) -> "RunConfig":
        """The same for processes with another working folder, and for later."""
        changed: dict[str, Any] = {"run": {"folder": self.run.folder.absolute()}}
        if self.model.path and Path(self.model.path).is_dir():  # else the name of a hub model
            changed["model"] = {"path": str(Path(self.model.path).absolute())}
        if self.evaluation.tasks_folder:
            changed["evaluation"] = {"tasks_folder": self.evaluation.tasks_folder.absolute()}
        if self.data.inbox:
            changed["data"] = {"inbox": self.data.inbox.absolute()}
        if self.checkpoint.storage and "://" not in self.checkpoint.storage:
            changed["checkpoint"] = {"storage": str(Path(self.checkpoint.storage).absolute())}
        sections = {name: getattr(self, name).model_copy(update=values) for name, values in changed.items()}
        return self.model_copy(update=sections)

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens: prompt, response and end token."""
        return self.data.max_prompt_tokens + self.data.max_response_tokens

    @property
    def window(self) -> int:
        """Tokens that a generator's engine has room for."""
        # vLLM scores a sequence only if one more token would fit behind it.
        return self.max_length + (self.learner.reference == "generator")

    @classmethod
    def from_yaml(
        cls, paths: str | Path | Sequence[str | Path], overrides: list[str] | None = None
    ) -> "RunConfig":
        """Read a recipe, or several of which each changes what stands in those before it.

        `overrides` are `section.key=value` with YAML values.
        """
        recipes = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        values: dict[str, Any] = {}
        for recipe in recipes:
            _lay_over(values, _read(recipe))
        if len(recipes) > 1 and isinstance(run := values.setdefault("run", {}), dict):
            run.setdefault("name", "-".join(recipe.stem for recipe in recipes))
        for override in overrides or []:
            _apply(values, override)
        return cls.from_dict(values, origin=", ".join(map(str, recipes)))

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str = "configuration") -> "RunConfig":
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_explain(dict(item)) for item in error.errors()]
            raise ConfigError(f"{origin}:\n" + "\n".join(f"  {line}" for line in lines)) from error

    def settings(self) -> dict[str, Any]:
        """Every setting under its name, such as `run.name`, in plain JSON types."""
        return _flat(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(recipe: Path) -> dict[str, Any]:
    if not recipe.is_file():
        raise ConfigError(f"recipe {recipe} does not exist. Recipes of this project lie in recipes/.")
    try:
        values = yaml.safe_load(recipe.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {recipe} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {recipe} must hold sections such as 'run:' and 'model:'.")
    return values


def _lay_over(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set in `values` what stands in `changes`: sections setting by setting, everything else as a whole."""
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(values.get(key), dict):
            _lay_over(values[key], change)
        else:
            values[key] = change


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or len(parts) < 2:
        raise ConfigError(f"--set {override}: write it as section.key=value, for instance run.name=second.")
    for part in parts[:-1]:
        inner = values.setdefault(part, {})
        if inner is None:
            inner = values[part] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {part} is a value, not a section.")
        values = inner
    try:
        values[parts[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML.") from error


def _explain(item: dict[str, Any]) -> str:
    """One line for one pydantic error: field, value, fix."""
    location = [str(part) for part in item["loc"]]
    field = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}."
        return f"{field}: there is no such setting. {hint}"
    if item["type"] == "missing":
        return f"{field}: is missing; please set it."
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{field}: {message}" if field else message
    return f"{field}: {item['input']!r} does not fit: {message[0].lower()}{message[1:]}."


def _fields_at(location: list[str]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)

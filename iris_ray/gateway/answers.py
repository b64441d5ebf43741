"""What the gateway's own endpoints answer: the fields that docs/operating.md tells of."""

from pydantic import BaseModel


class GeneratorStatus(BaseModel):
    name: str
    state: str
    placed: bool
    version: int | None
    tokens_per_s: float
    generated_tokens: int
    busy_seconds: float
    ready_seconds: float
    requests: int


class BufferStatus(BaseModel):
    pairs: int
    written: int
    leased: int
    ahead: int


class Ledger(BaseModel):
    committed: int
    lost: int
    duplicated: int


class Status(BaseModel):
    """Times in seconds, rates in 1/s, staleness in versions."""

    run: str
    state: str
    iteration: int
    iterations: int
    step: int
    steps: int
    alpha: float | None
    gap: float | None
    loss: float | None
    exact_match: float | None
    eta_s: float | None
    generators_wanted: int
    generators: list[GeneratorStatus]
    deaths: int
    buffer: BufferStatus
    staleness_max: int | None
    ledger: Ledger
    warnings: int
    last_checkpoint: str | None


class Curve(BaseModel):
    """`y` over the number of the optimiser step, counted through from 1; long curves as means of bins."""

    x: list[float]
    y: list[float]


class Metrics(BaseModel):
    """`steps` taken; `ends`: last steps of finished iterations; `curves` by their names in metrics.jsonl."""

    run: str
    steps: int
    ends: list[int]
    curves: dict[str, Curve]


class Pair(BaseModel):
    """Texts of a pair: the prompt, the annotated response and the one that weights `version` wrote."""

    iteration: int
    version: int
    prompt: str
    real: str
    synthetic: str

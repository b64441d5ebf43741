"""Small worlds in which p_data is known exactly.

The answers to a prompt form a finite set, at most about 256 of them. So whatever one wants to know about a
model in such a world is a sum over that set, and no estimate. A seed draws all tables of a world anew: a
name stands for a family of worlds.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from iris_ray.contracts import Demonstration

END = 0  # ends each answer, and pads behind it; 1 ... vocabulary - 1 are symbols
PAIRS = 512  # annotated pairs of a world
EARLY, EARLY_SHARE = ", early start", 0.7

Law = Callable[[list[int], list[int]], dict[int, float]]
"""p_data one token at a time: prompt and answer so far → possible next tokens and their probabilities."""


@dataclass(frozen=True, eq=False)
class World:
    """Prompts, the law by which they are answered, and the model that is to learn it."""

    name: str
    description: str
    vocabulary: int
    train_prompts: list[list[int]]
    heldout_prompts: list[list[int]]
    """What exact metrics run over."""
    law: Law
    max_response_tokens: int
    """Length of the longest answer, with its end token."""
    warmup_steps: int
    """SFT steps from random weights to where the study begins: near the best that SFT reaches."""
    hidden_size: int = 32
    layers: int = 2
    heads: int = 2

    def answers(self, prompt: list[int]) -> tuple[list[list[int]], torch.Tensor]:
        """The whole support of p_data(·|prompt), end tokens included; its probabilities, (A,) float64."""
        unfinished: list[tuple[list[int], float]] = [([], 1.0)]
        finished: list[tuple[list[int], float]] = []
        while unfinished:
            begun, probability = unfinished.pop()
            for token, share in self.law(prompt, begun).items():
                longer = ([*begun, token], probability * share)
                (finished if token == END else unfinished).append(longer)
        return [tokens for tokens, _ in finished], torch.tensor([p for _, p in finished], dtype=torch.float64)

    def annotate(self, seed: int) -> list[Demonstration]:
        """`PAIRS` answers drawn from p_data. The training prompts take turns; `prompt_id` counts pairs."""
        rng = random.Random(seed)
        pairs = []
        for pair in range(PAIRS):
            prompt = self.train_prompts[pair % len(self.train_prompts)]
            answer: list[int] = []
            while answer[-1:] != [END]:
                possible = self.law(prompt, answer)
                answer += rng.choices(list(possible), list(possible.values()))
            pairs.append(Demonstration(pair, prompt, answer))
        return pairs

    def build_model(self, seed: int) -> Qwen2ForCausalLM:
        """Random weights in float32, embeddings tied. The global random state is left as it was."""
        config = Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden_size,
            intermediate_size=2 * self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=max(map(len, self.heldout_prompts)) + self.max_response_tokens,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=END,
            dtype=torch.float32,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Qwen2ForCausalLM(config)


def build_world(name: str, seed: int) -> World:
    """The world `name` with the tables of `seed`; with `EARLY` behind its name, its model knows less."""
    base = name.removesuffix(EARLY)
    world = _BUILDERS[base](random.Random(f"{base} {seed}"))
    if name == base:
        return world
    return replace(world, name=name, warmup_steps=round(EARLY_SHARE * world.warmup_steps))


def _deterministic(rng: random.Random) -> World:
    """Sort symbols, by an order that the seed draws. One answer a prompt, so each prompt is used once."""
    length, heldout = 5, 128
    symbols = list(range(1, 9))
    ask = 9  # ends the prompt: a model without it could not tell where its answer begins
    order = rng.sample(symbols, len(symbols))
    prompts: set[tuple[int, ...]] = set()
    while len(prompts) < PAIRS + heldout:
        prompts.add((*rng.choices(symbols, k=length), ask))
    shuffled = rng.sample([list(prompt) for prompt in sorted(prompts)], len(prompts))

    def law(prompt: list[int], begun: list[int]) -> dict[int, float]:
        if len(begun) == length:
            return {END: 1.0}
        return {sorted(prompt[:-1], key=order.index)[len(begun)]: 1.0}

    return World(
        name="deterministic",
        description="Sort five symbols: each prompt has exactly one right answer.",
        vocabulary=10,
        train_prompts=shuffled[heldout:],
        heldout_prompts=shuffled[:heldout],
        law=law,
        max_response_tokens=length + 1,
        warmup_steps=320,
    )


def _stochastic(rng: random.Random) -> World:
    """A random walk; topic and symbol decide where it may go next."""
    length = 5
    symbols, topics = _tokens(12, 4)
    successors = _successors(rng, topics, symbols, 3)
    heldout_prompts, train_prompts = _split(rng, topics, symbols, 16)

    return World(
        name="stochastic",
        description="Random walks of five steps: each prompt has 243 answers of unequal probability.",
        vocabulary=1 + len(symbols) + len(topics),
        train_prompts=train_prompts,
        heldout_prompts=heldout_prompts,
        law=_walk(successors, length, (0.6, 0.3, 0.1)),
        max_response_tokens=length + 1,
        warmup_steps=400,
    )


def _too_small(rng: random.Random) -> World:
    """A random walk goes on, and a last token says what its steps add up to, modulo 3.

    One layer of width 16 learns the walks, but not modular sums over five symbols. It can guess the last
    token, or prefer walks whose sum it happens to know: what is best depends on what is asked for.
    """
    length = 5
    symbols = list(range(1, 9))
    begin = 9  # leads the prompt: something to count from
    sums = [10, 11, 12]
    successors = _successors(rng, [begin], symbols, 3)
    worth = {symbol: rng.randrange(len(sums)) for symbol in symbols}
    prompts = [
        [begin, first, second, third]
        for first in symbols
        for second in successors[begin, first]
        for third in successors[begin, second]
    ]
    rng.shuffle(prompts)

    def law(prompt: list[int], begun: list[int]) -> dict[int, float]:
        if len(begun) > length:
            return {END: 1.0}
        if len(begun) == length:
            return {sums[sum(worth[symbol] for symbol in begun) % len(sums)]: 1.0}
        return _weighted(successors[begin, (*prompt, *begun)[-1]], (0.6, 0.3, 0.1))

    return World(
        name="too small",
        description="Random walks with a checksum that so small a model hardly learns.",
        vocabulary=1 + len(symbols) + 1 + len(sums),
        train_prompts=prompts[16:],
        heldout_prompts=prompts[:16],
        law=law,
        max_response_tokens=length + 2,
        warmup_steps=600,
        hidden_size=16,
        layers=1,
    )


def _few_prompts(rng: random.Random) -> World:
    """A random walk for each of 16 topics. Most of its 256 answers are never annotated."""
    length = 4
    symbols, topics = _tokens(6, 16)
    successors = _successors(rng, topics, symbols, 4)
    prompts = [[topic, rng.choice(symbols)] for topic in topics]

    return World(
        name="few prompts",
        description="16 prompts with 256 answers each, of which only 32 a prompt are annotated.",
        vocabulary=1 + len(symbols) + len(topics),
        train_prompts=prompts,
        heldout_prompts=prompts,
        law=_walk(successors, length, (0.4, 0.3, 0.2, 0.1)),
        max_response_tokens=length + 1,
        warmup_steps=500,
    )


def _long(rng: random.Random) -> World:
    """Seven times: freely choose one of the prompt's two moves, then make it four times from where one is."""
    rounds, repeats = 7, 4
    symbols, moves = _tokens(8, 5)
    arrivals = _successors(rng, moves, symbols, 1)
    prompts = [
        [usual, other, start] for usual in moves for other in moves if other != usual for start in symbols
    ]
    rng.shuffle(prompts)

    def law(prompt: list[int], begun: list[int]) -> dict[int, float]:
        done, into = divmod(len(begun), 1 + repeats)
        if done == rounds:
            return {END: 1.0}
        if into == 0:
            return _weighted(prompt[:2], (0.7, 0.3))
        place = [token for token in (*prompt, *begun) if token in symbols][-1]
        return {arrivals[begun[-into], place][0]: 1.0}

    return World(
        name="long",
        description="36 tokens with seven free choices: one early mistake spoils the rest.",
        vocabulary=1 + len(symbols) + len(moves),
        train_prompts=prompts[8:],
        heldout_prompts=prompts[:8],
        law=law,
        max_response_tokens=rounds * (1 + repeats) + 1,
        warmup_steps=480,
    )


def _tokens(symbols: int, topics: int) -> tuple[list[int], list[int]]:
    return list(range(1, 1 + symbols)), list(range(1 + symbols, 1 + symbols + topics))


def _successors(
    rng: random.Random, topics: list[int], symbols: list[int], count: int
) -> dict[tuple[int, int], list[int]]:
    """`count` symbols that may follow, for each topic and last symbol; the most probable one first.

    Each symbol is the first successor of exactly one other, the second of one, and so on. So every symbol
    is met in training, also one whose prompt is held out.
    """
    successors = {}
    for topic in topics:
        ring = rng.sample(symbols, len(symbols))
        strides = rng.sample(range(1, len(ring)), count)
        for place, symbol in enumerate(ring):
            successors[topic, symbol] = [ring[(place + stride) % len(ring)] for stride in strides]
    return successors


def _split(
    rng: random.Random, topics: list[int], symbols: list[int], heldout: int
) -> tuple[list[list[int]], list[list[int]]]:
    """All prompts (topic, first symbol), shuffled: the first `heldout` ones and the others."""
    prompts = [[topic, symbol] for topic in topics for symbol in symbols]
    rng.shuffle(prompts)
    return prompts[:heldout], prompts[heldout:]


def _walk(successors: dict[tuple[int, int], list[int]], length: int, probabilities: tuple[float, ...]) -> Law:
    """From the prompt's start, step by step; its topic decides where each step may lead."""

    def law(prompt: list[int], begun: list[int]) -> dict[int, float]:
        if len(begun) == length:
            return {END: 1.0}
        topic, start = prompt
        return _weighted(successors[topic, (start, *begun)[-1]], probabilities)

    return law


def _weighted(tokens: list[int], probabilities: tuple[float, ...]) -> dict[int, float]:
    return dict(zip(tokens, probabilities, strict=True))


_BUILDERS: dict[str, Callable[[random.Random], World]] = {
    "deterministic": _deterministic,
    "stochastic": _stochastic,
    "too small": _too_small,
    "few prompts": _few_prompts,
    "long": _long,
}
WORLDS = list(_BUILDERS)
EARLY_WORLDS = [name + EARLY for name in ("deterministic", "stochastic", "long")]
"""The same worlds, met by a model whose SFT was stopped early: much is left to learn from the same data."""

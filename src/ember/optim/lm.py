"""Language-model training: packed sequences, Muon or AdamW, warm-up and decay, resumable.

The trainer knows token streams and a `Decoder`; it knows nothing of corpora or tokenizers. What a
step reads depends only on (seed, step number), as `ember.optim.loop` asks for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ember.model.decoder import Decoder
from ember.optim.loop import BadTraining, run
from ember.optim.loss import next_token_loss, token_losses
from ember.optim.optimizers import OPTIMIZERS, Learner, linear_rate, make_optimizers

BITS_PER_NAT = 1 / math.log(2)
LOG_ROWS = 30  # rows of a training log, about


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Tokens a step are batch_size × sequence_length.

    The learning rate rises linearly over `warmup_steps` and falls linearly to `final_fraction` of
    its peak. With `optimizer` muon it is the rate of the matrices inside the layers; embeddings,
    head and norms then run AdamW at `outer_factor` times that rate. With adamw it is everyone's.
    Weight decay acts on the matrices inside the layers only.
    """

    steps: int
    batch_size: int
    sequence_length: int
    learning_rate: float
    warmup_steps: int
    optimizer: str = "muon"
    outer_factor: float = 6.0
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    final_fraction: float = 0.05
    validate_every: int = 100
    seed: int = 0
    start_token: int | None = None  # first in every sequence, in place of its oldest token

    def __post_init__(self):
        for name in ("steps", "batch_size", "sequence_length", "validate_every", "learning_rate"):
            if not getattr(self, name) > 0:
                raise BadTraining(
                    f"training.{name} is {getattr(self, name)}.\nSet it above 0 in the config."
                )
        if self.optimizer not in OPTIMIZERS:
            raise BadTraining(
                f"training.optimizer is {self.optimizer!r}.\nSet it to {' or '.join(OPTIMIZERS)}."
            )

    @property
    def tokens(self) -> int:
        """Tokens of the whole run, repeats counted."""
        return self.steps * self.batch_size * self.sequence_length

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        return linear_rate(
            step, self.steps, self.learning_rate, self.warmup_steps, self.final_fraction
        )


class Windows:
    """Training sequences of one token stream, in a seeded order that needs no memory.

    An epoch cuts the stream, from a random offset, into sequences of T inputs and T targets (the
    next tokens) and takes them in random order. Sequences may span documents. A `start` token
    stands in place of each sequence's first one, so that attention finds the same token there.
    """

    def __init__(self, stream: np.ndarray, length: int, seed: int, start: int | None = None):
        self.stream, self.length, self.seed, self.start = stream, length, seed, start
        self.count = (len(stream) - 1) // length - 1
        if self.count < 1:
            raise BadTraining(
                f"the training text has {len(stream)} tokens, too few for sequences of {length}.\n"
                "Give more text (corpus max_bytes) or shorten training.sequence_length."
            )
        self._epoch, self._starts = -1, np.zeros(0, np.int64)

    def starts(self, first: int, count: int) -> np.ndarray:
        """Places in the stream of sequences `first` … `first + count - 1` of the whole run."""
        return np.array([self._start(index) for index in range(first, first + count)], np.int64)

    def batch(self, first: int, count: int) -> np.ndarray:
        """Tokens (count, T + 1) of those sequences."""
        return _sequences(self.stream, self.starts(first, count), self.length + 1, self.start)

    def seen(self, count: int) -> np.ndarray:
        """The stretches of the stream that the first `count` sequences cover, in stream order."""
        mask = np.zeros(len(self.stream), bool)
        for start in self.starts(0, count):
            mask[start : start + self.length + 1] = True
        return self.stream[mask]

    def _start(self, index: int) -> int:
        epoch, place = divmod(index, self.count)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            offset = random.integers(self.length)
            self._starts = offset + self.length * random.permutation(self.count)
            self._epoch = epoch
        return int(self._starts[place])


def _sequences(stream: np.ndarray, starts, length: int, first: int | None) -> np.ndarray:
    """Stretches (n, length) of a stream, the first token of each replaced by `first` if given."""
    found = np.stack([stream[start : start + length] for start in starts])
    if first is not None:
        found[:, 0] = first
    return found


@dataclass(frozen=True)
class Score:
    """log2 p (sequences, tokens) of the tokens at `positions` (same shape) of a stream."""

    positions: np.ndarray
    log2_probs: np.ndarray

    def bits_per_byte(self, stream: np.ndarray, token_bytes: np.ndarray) -> float:
        """Bits over the bytes of text that the scored tokens stand for."""
        return -float(self.log2_probs.sum()) / int(token_bytes[stream[self.positions]].sum())


def evaluate(
    decoder: Decoder,
    stream: np.ndarray,
    *,
    tokens: int,
    length: int,
    batch_size: int,
    context: int = 0,
    start_token: int | None = None,
    autocast: torch.dtype | None = None,
) -> Score:
    """Scores about `tokens` tokens of a stream, in sequences of `length` spread evenly over it.

    Of each sequence the first `context` tokens are only read, so that every scored token has more
    than that many before it. `start_token` stands in place of each sequence's first one.
    """
    length = min(length, len(stream) - 1)
    if length < 1:
        raise BadTraining("there are no held-out tokens to score.\nGive the corpus more documents.")
    stride = length - min(context, length - 1)
    possible = (len(stream) - 1 - length) // stride + 1
    wanted = min(possible, max(1, -(-tokens // stride)))
    starts = np.linspace(0, possible - 1, wanted).astype(np.int64) * stride
    device = next(decoder.parameters()).device
    positions = starts[:, None] + np.arange(length - stride + 1, length + 1)
    log2_probs = []
    mixed = torch.autocast(device.type, autocast, enabled=autocast is not None)
    with torch.inference_mode(), mixed:
        for first in range(0, wanted, batch_size):
            chunk = starts[first : first + batch_size]
            batch = torch.from_numpy(_sequences(stream, chunk, length + 1, start_token))
            hidden = decoder(batch[:, :-1].to(device))[:, -stride:]
            losses = token_losses(decoder, hidden, batch[:, -stride:].to(device))
            log2_probs.append(losses.double().cpu().numpy() * -BITS_PER_NAT)
    return Score(positions, np.concatenate(log2_probs))


def train(
    decoder: Decoder,
    stream: np.ndarray,
    recipe: Recipe,
    *,
    validate: Callable[[Decoder], float] | None = None,
    autocast: torch.dtype | None = None,
    **resumption,
) -> list[dict]:
    """Trains `decoder` in place on a token stream (N,) and returns the log.

    A log row has step, tokens, train_loss (mean since the row before, nats a token),
    learning_rate, val_bits_per_byte (`validate`'s value or None), tokens_per_s and seconds (of
    training, validation left out, over all resumed parts). `resumption`: state, key and
    checkpoint_seconds of `ember.optim.loop.run`, and errors as there.
    """
    rows = run(
        LanguageModelling(decoder, stream, recipe, autocast),
        recipe.steps,
        log_every=recipe.steps // LOG_ROWS,
        validate=None if validate is None else lambda: {"val_bits_per_byte": validate(decoder)},
        validate_every=recipe.validate_every,
        **resumption,
    )
    decoder.eval()
    for row in rows:
        row["tokens"] = row["step"] * recipe.batch_size * recipe.sequence_length
        row["learning_rate"] = recipe.rate(row["step"] - 1)
        row["tokens_per_s"] = row["tokens"] / row["seconds"]
        row.setdefault("val_bits_per_byte", None)
    return rows


class LanguageModelling(Learner):
    """A decoder that learns to predict the next token of a stream: a task of the loop."""

    def __init__(
        self, decoder: Decoder, stream: np.ndarray, recipe: Recipe, autocast: torch.dtype | None
    ):
        self.recipe, self.autocast = recipe, autocast
        self.windows = Windows(stream, recipe.sequence_length, recipe.seed, recipe.start_token)
        optimizers = make_optimizers(
            decoder,
            recipe.optimizer,
            outer_factor=recipe.outer_factor,
            weight_decay=recipe.weight_decay,
            betas=recipe.betas,
        )
        super().__init__(decoder, optimizers)

    def step(self, number: int) -> dict[str, float]:
        recipe = self.recipe
        batch = self.windows.batch(number * recipe.batch_size, recipe.batch_size)
        self.module.train()
        enabled = self.autocast is not None
        with torch.autocast(self.device.type, self.autocast, enabled=enabled):
            loss = next_token_loss(self.module, torch.from_numpy(batch).to(self.device))
        at = f"step {number + 1} of {recipe.steps}"
        return {"train_loss": self.learn(loss, recipe.rate(number), at, recipe.grad_clip)}

"""Language-model training: packed sequences, Muon or AdamW, warm-up and decay, resumable.

The trainer knows token streams and a `Decoder`; it knows nothing of corpora or tokenizers. What a
step reads depends only on (seed, step number), so a run that was killed and resumed gives the same
weights, bit for bit on the CPU, as one that was not. The state file belongs to one `key`: settings,
data and code hashed together, so that a changed configuration starts anew instead of resuming.
"""

import contextlib
import hashlib
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ember.model.decoder import Decoder
from ember.optim.muon import Muon
from ember.records.atomic import atomic_file
from ember.records.errors import EmberError

log = logging.getLogger(__name__)

BITS_PER_NAT = 1 / math.log(2)
LOG_ROWS = 30  # rows of a training log, about


class BadTraining(EmberError):
    """Settings or data no training can use; the message names them and the remedy."""


class Diverged(EmberError):
    """The loss or the gradient is not finite."""


class Interrupted(EmberError):
    """SIGINT or SIGTERM; the state was saved, the same call resumes."""


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

    def __post_init__(self):
        for name in ("steps", "batch_size", "sequence_length", "validate_every", "learning_rate"):
            if not getattr(self, name) > 0:
                raise BadTraining(
                    f"training.{name} is {getattr(self, name)}.\nSet it above 0 in the config."
                )
        if self.optimizer not in ("muon", "adamw"):
            raise BadTraining(
                f"training.optimizer is {self.optimizer!r}.\nSet it to muon or adamw."
            )

    @property
    def tokens(self) -> int:
        """Tokens of the whole run, repeats counted."""
        return self.steps * self.batch_size * self.sequence_length

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        left = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * max(left, self.final_fraction)


class Windows:
    """Training sequences of one token stream, in a seeded order that needs no memory.

    An epoch cuts the stream, from a random offset, into sequences of T inputs and T targets (the
    next tokens) and takes them in random order. Sequences may span documents.
    """

    def __init__(self, stream: np.ndarray, length: int, seed: int):
        self.stream, self.length, self.seed = stream, length, seed
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
        return np.stack([self.stream[s : s + self.length + 1] for s in self.starts(first, count)])

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
    autocast: torch.dtype | None = None,
) -> Score:
    """Scores about `tokens` tokens of a stream, in sequences of `length` spread evenly over it.

    Of each sequence the first `context` tokens are only read, so that every scored token has more
    than that many before it.
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
    with torch.inference_mode(), _precision(device, autocast):
        for first in range(0, wanted, batch_size):
            chunk = starts[first : first + batch_size]
            batch = torch.from_numpy(np.stack([stream[s : s + length + 1] for s in chunk]))
            hidden = decoder(batch[:, :-1].to(device))[:, -stride:]
            losses = _token_losses(decoder, hidden, batch[:, -stride:].to(device))
            log2_probs.append(losses.double().cpu().numpy() * -BITS_PER_NAT)
    return Score(positions, np.concatenate(log2_probs))


def state_key(**parts) -> str:
    """One hash over everything a resumed run must have in common with the run that it resumes."""
    text = json.dumps(parts | {"torch": torch.__version__}, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def train(
    decoder: Decoder,
    stream: np.ndarray,
    recipe: Recipe,
    *,
    validate: Callable[[Decoder], float] | None = None,
    state: Path | None = None,
    key: str = "",
    checkpoint_seconds: float = 30.0,
    autocast: torch.dtype | None = None,
) -> list[dict]:
    """Trains `decoder` in place on a token stream (N,) and returns the log.

    A log row has step, tokens, train_loss (mean since the row before, nats a token),
    learning_rate, val_bits_per_byte (`validate`'s value or None), tokens_per_s and seconds (of
    training, validation left out, over all resumed parts).

    With `state`, a resumable state is written there every `checkpoint_seconds`, at the end and on
    SIGINT or SIGTERM, and used if its key is `key`. Remove it when the weights are safe elsewhere.

    Raises `Diverged` on a loss that is not finite and `Interrupted` after a signal.
    """
    run = _Run(decoder, stream, recipe)
    if state is not None:
        run.resume(state, key)
    saved = time.monotonic()
    with _signals() as received:
        while run.step < recipe.steps:
            try:
                run.advance(autocast)
            except Diverged:
                if state is not None:
                    state.unlink(missing_ok=True)  # it leads to the same end
                raise
            if run.due(recipe.validate_every):
                run.report(validate(decoder) if validate else None)
            elif run.due(recipe.steps // LOG_ROWS):
                run.report(None)
            done = run.step == recipe.steps
            due = done or received or time.monotonic() - saved >= checkpoint_seconds
            if state is not None and due:
                run.save(state, key)
                saved = time.monotonic()
            if received and not done:
                raise Interrupted(
                    f"training was stopped by {received[0].name} after step {run.step} of "
                    f"{recipe.steps}.\n"
                    + (
                        f"Run the same command again: it resumes from {state}."
                        if state is not None
                        else "No state was asked for: the same command starts anew."
                    )
                )
    decoder.eval()
    return run.rows


class _Run:
    """The moving parts of one training run; all of them go into the state."""

    def __init__(self, decoder: Decoder, stream: np.ndarray, recipe: Recipe):
        self.decoder, self.recipe = decoder, recipe
        self.windows = Windows(stream, recipe.sequence_length, recipe.seed)
        self.optimizers = _optimizers(decoder, recipe)
        self.device = next(decoder.parameters()).device
        self.step, self.seconds, self.rows = 0, 0.0, []
        self.pending: list[float] = []  # losses since the last row

    def advance(self, autocast: torch.dtype | None) -> None:
        """One optimizer step."""
        started = time.perf_counter()
        recipe = self.recipe
        batch = self.windows.batch(self.step * recipe.batch_size, recipe.batch_size)
        self.decoder.train()
        with _precision(self.device, autocast):
            loss = next_token_loss(self.decoder, torch.from_numpy(batch).to(self.device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), recipe.grad_clip)
        value, norm, rate = loss.item(), norm.item(), recipe.rate(self.step)
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise Diverged(
                f"training diverged at step {self.step + 1} of {recipe.steps}: loss {value}, "
                f"gradient norm {norm}, learning rate {rate:.2e}.\n"
                "Lower training.learning_rate or raise training.warmup_steps."
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.pending.append(value)
        self.seconds += time.perf_counter() - started

    def due(self, every: int) -> bool:
        """Whether this step is a multiple of `every`, or the last."""
        return self.step % max(1, every) == 0 or self.step == self.recipe.steps

    def report(self, bits_per_byte: float | None) -> None:
        """Adds a row to the log and says how far the training is."""
        recipe = self.recipe
        tokens = self.step * recipe.batch_size * recipe.sequence_length
        row = {
            "step": self.step,
            "tokens": tokens,
            "train_loss": sum(self.pending) / len(self.pending),
            "learning_rate": recipe.rate(self.step - 1),
            "val_bits_per_byte": bits_per_byte,
            "tokens_per_s": tokens / self.seconds,
            "seconds": self.seconds,
        }
        self.rows.append(row)
        self.pending = []
        log.info(
            "step %d/%d loss %.3f%s, %.0f tokens/s, %.0f s so far, about %.0f s left",
            self.step,
            recipe.steps,
            row["train_loss"],
            "" if bits_per_byte is None else f", validation {bits_per_byte:.3f} bits/byte",
            row["tokens_per_s"],
            self.seconds,
            (recipe.steps - self.step) * self.seconds / self.step,
        )

    def save(self, path: Path, key: str) -> None:
        """Writes the state; a reader finds the old one or the new one, never a part."""
        content = {
            "key": key,
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "pending": self.pending,
            "model": self.decoder.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with atomic_file(path) as part:
            torch.save(content, part)
        log.info("state of step %d kept in %s", self.step, path)

    def resume(self, path: Path, key: str) -> None:
        """Continues from a state with this key; any other is left to be overwritten."""
        if not path.is_file():
            return
        try:
            content = torch.load(path, map_location=self.device, weights_only=True)
            found = content["key"]
        # A cut or foreign file fails in the unpickler, in zipfile or in a missing entry.
        except Exception as error:
            log.warning("%s is not a training state (%s): training starts anew", path, error)
            return
        if found != key:
            log.info("%s is of another configuration or code: training starts anew", path)
            return
        self.decoder.load_state_dict(content["model"])
        for optimizer, kept in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.seconds = content["step"], content["seconds"]
        self.rows, self.pending = content["rows"], content["pending"]
        log.info("resumed at step %d of %d from %s", self.step, self.recipe.steps, path)


def next_token_loss(decoder: Decoder, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (nats) of tokens (B, T + 1) given those before them."""
    return _token_losses(decoder, decoder(batch[:, :-1]), batch[:, 1:]).mean()


def _token_losses(decoder: Decoder, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each token given the hidden state before it, (B, T)."""
    logits = decoder.logits(hidden).flatten(0, 1).float()
    return F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)


def _optimizers(decoder: Decoder, recipe: Recipe) -> list[torch.optim.Optimizer]:
    inner, outer = [], []
    for name, parameter in decoder.named_parameters():
        (inner if parameter.ndim == 2 and name.startswith("layers.") else outer).append(parameter)
    muon = recipe.optimizer == "muon"
    matrices = {"params": inner, "weight_decay": recipe.weight_decay, "factor": 1.0}
    others = {
        "params": outer,
        "weight_decay": 0.0,
        "factor": recipe.outer_factor if muon else 1.0,
    }
    adamw = torch.optim.AdamW(
        [others] if muon else [matrices, others],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        fused=True,
    )
    return [Muon([matrices], lr=recipe.learning_rate), adamw] if muon else [adamw]


def _precision(device: torch.device, autocast: torch.dtype | None):
    if autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=autocast)


@contextlib.contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collects SIGINT and SIGTERM: acting amid a step would leave half-updated weights."""
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number, _frame):
        received.append(signal.Signals(number))
        log.warning("%s: stopping after this step", received[-1].name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plain(value):
    if is_dataclass(value):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be part of a state key")

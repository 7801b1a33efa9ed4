"""Language-model training: packed sequences, AdamW, warm-up and cosine, and a state that resumes.

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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ember.model.decoder import Decoder
from ember.records.atomic import atomic_file
from ember.records.errors import EmberError

log = logging.getLogger(__name__)

BITS_PER_NAT = 1 / math.log(2)


class BadTraining(EmberError):
    """Settings or data no training can use; the message names them and the remedy."""


class Diverged(EmberError):
    """The loss or the gradient is not finite."""


class Interrupted(EmberError):
    """SIGINT or SIGTERM; the state was saved, the same call resumes."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Tokens a step are batch_size × sequence_length.

    The learning rate rises linearly over `warmup_steps` and falls by a cosine to `final_fraction`
    of its peak. Weight decay acts on matrices but not on embeddings and norms.
    """

    steps: int
    batch_size: int
    sequence_length: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    final_fraction: float = 0.02
    validation_tokens: int = 65536
    validate_every: int = 100
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "sequence_length", "validation_tokens"):
            if getattr(self, name) < 1:
                raise BadTraining(
                    f"{name} is {getattr(self, name)}.\nSet training.{name} to 1 or more."
                )
        if not self.learning_rate > 0:
            raise BadTraining(
                f"learning_rate is {self.learning_rate}.\nSet training.learning_rate above 0."
            )

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * cosine)


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
        for start in self.starts(0, min(count, 2 * self.count)):
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
    """A model's score on held-out tokens: `log2_probs` of the tokens at `positions` of a stream."""

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

    Of each sequence the first `context` tokens are only read, so that every scored token has at
    least that many before it. Returns log2 p per scored token (float64).
    """
    length = min(length, len(stream) - 1)
    if length < 1:
        raise BadTraining("no held-out tokens to score.\nGive the corpus more documents.")
    context = min(context, length - 1)
    stride = length - context
    possible = max(1, (len(stream) - 1 - context) // stride)
    wanted = min(possible, max(1, -(-tokens // stride)))
    starts = np.unique(np.linspace(0, possible - 1, wanted).astype(np.int64)) * stride
    device = next(decoder.parameters()).device
    positions, log2_probs = [], []
    with torch.inference_mode(), _precision(device, autocast):
        for first in range(0, len(starts), batch_size):
            chunk = starts[first : first + batch_size]
            batch = torch.from_numpy(np.stack([stream[s : s + length + 1] for s in chunk]))
            batch = batch.to(device)
            hidden = decoder(batch[:, :-1])[:, context:]
            losses = _token_losses(decoder, hidden, batch[:, context + 1 :])
            log2_probs.append(losses.double().cpu().numpy().reshape(-1) * -BITS_PER_NAT)
            positions.append((chunk[:, None] + np.arange(context + 1, length + 1)).reshape(-1))
    return Score(np.concatenate(positions), np.concatenate(log2_probs))


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
    training, validation left out, over all resumed parts). With `state`, a resumable state is
    written there every `checkpoint_seconds` and on SIGINT or SIGTERM, used if its key is `key`, and
    removed at the end.

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
            if run.due_validation() and validate is not None:
                run.report(validate(decoder))
            elif run.due_report():
                run.report(None)
            if run.step == recipe.steps:
                break
            due = received or time.monotonic() - saved >= checkpoint_seconds
            if state is not None and due:
                run.save(state, key)
                saved = time.monotonic()
            if received:
                raise Interrupted(
                    f"training was stopped by {received[0].name} after step {run.step} of "
                    f"{recipe.steps}.\n"
                    + (
                        f"Run the same command again: it resumes from {state}."
                        if state is not None
                        else "No state was asked for: the same command starts anew."
                    )
                )
    if state is not None:
        state.unlink(missing_ok=True)
    return run.rows


class _Run:
    """The moving parts of one training run; all of them go into the state."""

    def __init__(self, decoder: Decoder, stream: np.ndarray, recipe: Recipe):
        self.decoder, self.recipe = decoder, recipe
        self.windows = Windows(stream, recipe.sequence_length, recipe.seed)
        self.optimizer = _optimizer(decoder, recipe)
        self.device = next(decoder.parameters()).device
        self.step, self.seconds, self.rows = 0, 0.0, []
        self.pending: list[float] = []  # losses since the last row

    def advance(self, autocast: torch.dtype | None) -> None:
        """One optimizer step."""
        started = time.perf_counter()
        recipe = self.recipe
        batch = torch.from_numpy(
            self.windows.batch(self.step * recipe.batch_size, recipe.batch_size)
        ).to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(self.step)
        self.decoder.train()
        self.optimizer.zero_grad(set_to_none=True)
        with _precision(self.device, autocast):
            loss = next_token_loss(self.decoder, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), recipe.grad_clip)
        value, norm = loss.item(), norm.item()
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise Diverged(
                f"training diverged at step {self.step + 1} of {recipe.steps}: loss {value}, "
                f"gradient norm {norm}, learning rate {recipe.rate(self.step):.2e}.\n"
                "Lower training.learning_rate or raise training.warmup_steps."
            )
        self.optimizer.step()
        self.step += 1
        self.pending.append(value)
        self.seconds += time.perf_counter() - started

    def due_validation(self) -> bool:
        return self.step % self.recipe.validate_every == 0 or self.step == self.recipe.steps

    def due_report(self) -> bool:
        return self.step % max(1, self.recipe.steps // 30) == 0 or self.step == self.recipe.steps

    def report(self, bits_per_byte: float | None) -> None:
        """Adds a row to the log and says how far the training is."""
        recipe, tokens = self.recipe, self.step * self.recipe.batch_size
        tokens *= recipe.sequence_length
        speed = tokens / self.seconds
        row = {
            "step": self.step,
            "tokens": tokens,
            "train_loss": sum(self.pending) / len(self.pending),
            "learning_rate": recipe.rate(self.step - 1),
            "val_bits_per_byte": bits_per_byte,
            "tokens_per_s": speed,
            "seconds": self.seconds,
        }
        self.rows.append(row)
        self.pending = []
        left = (recipe.steps - self.step) * self.seconds / self.step
        log.info(
            "step %d/%d loss %.3f%s, %.0f tokens/s, %.0f s so far, about %.0f s left",
            self.step,
            recipe.steps,
            row["train_loss"],
            "" if bits_per_byte is None else f", validation {bits_per_byte:.3f} bits/byte",
            speed,
            self.seconds,
            left,
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
            "optimizer": self.optimizer.state_dict(),
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
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.seconds = content["step"], content["seconds"]
        self.rows, self.pending = content["rows"], content["pending"]
        log.info("resumed at step %d of %d from %s", self.step, self.recipe.steps, path)


def next_token_loss(decoder: Decoder, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (nats) of tokens (B, T + 1) given those before them."""
    return _token_losses(decoder, decoder(batch[:, :-1]), batch[:, 1:]).mean()


def _token_losses(decoder: Decoder, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each token, (B, T), a sequence at a time: (T, V) logits stay in cache."""
    return torch.stack(
        [
            F.cross_entropy(decoder.logits(row[None])[0].float(), target, reduction="none")
            for row, target in zip(hidden, targets, strict=True)
        ]
    )


def _optimizer(decoder: Decoder, recipe: Recipe) -> torch.optim.AdamW:
    matrices, others = [], []
    for name, parameter in decoder.named_parameters():
        decays = parameter.ndim >= 2 and "embed" not in name
        (matrices if decays else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def _precision(device: torch.device, autocast: torch.dtype | None):
    if autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=autocast)


@contextlib.contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collects SIGINT and SIGTERM: a signal amid a step would leave half-updated weights."""
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
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be part of a state key")

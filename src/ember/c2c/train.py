"""What is trained in a generated world: both models, the fuser, and the receiver alone.

Contract. Tasks of `ember.optim.loop`: a step depends on the task's state and the step's number
alone. Deviations from the published recipe, named in results: a curriculum and a smear for the
models; for the fuser a warm start, without which it learns nothing in this many steps: towards the
receiver's own KV of a text in which all that either knows is visible, with gates held open.

Shapes: B passages a step, T their tokens, Q questions of each, H hidden size.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ember.c2c.fuse import SectionCache, fuse
from ember.c2c.fuser import Fuser
from ember.c2c.pair import Reader, read, share
from ember.c2c.world import World, ask, passages, pick, split_generator
from ember.optim.loop import Diverged
from ember.optim.optimizers import apply_gradients, linear_rate, make_optimizers


@dataclass(frozen=True)
class Recipe:
    """What both kinds of training share."""

    steps: int
    batch_size: int
    questions: int
    learning_rate: float
    warmup_steps: int
    seed: int

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        return linear_rate(step, self.steps, self.learning_rate, self.warmup_steps, 0.05)


def answer_loss(reader: Reader, hidden: Tensor, questions: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the answers, and the share that is right.

    `hidden` (B, Q · 5, H): the last layer's output over questions with answers (B, Q, 5).
    """
    at_mark = hidden.unflatten(1, questions.shape[1:])[:, :, 3]  # predicts the value
    logits = reader.decoder.logits(at_mark).float()
    right = questions[..., 4]
    loss = F.cross_entropy(logits.flatten(0, 1), right.flatten())
    return loss, (logits.argmax(-1) == right).float().mean()


class Lookup:
    """A model that learns to answer questions about the records of its own copy.

    A curriculum: half of the records, all visible, until `enough` of the answers are right
    (a running mean); then the world as it is. `asked`: "own" asks what the copy shows, "union"
    also what only the other model knows (the control that is fine-tuned alone).
    """

    def __init__(
        self,
        reader: Reader,
        world: World,
        role: str,
        recipe: Recipe,
        *,
        names: np.ndarray | None = None,
        asked: str = "own",
        enough: float = 0.93,
        autocast: torch.dtype | None = None,
    ):
        self.reader, self.world, self.role, self.recipe = reader, world, role, recipe
        self.asked, self.enough, self.autocast = asked, enough, autocast
        self.names = np.arange(world.vocab_size) if names is None else names
        self.device = reader.device
        self.optimizers = make_optimizers(
            reader.decoder, "muon", outer_factor=3.0, weight_decay=0.05, betas=(0.9, 0.98)
        )
        if reader.smear is not None:
            smear = {"params": list(reader.smear.parameters()), "weight_decay": 0.0, "factor": 1.0}
            self.optimizers[-1].add_param_group(smear)
        self.easy, self.right = asked == "own", 0.0

    def step(self, number: int) -> dict[str, float]:
        recipe, world = self.recipe, self.world
        rng = split_generator(recipe.seed, "train", number, self.role == "receiver")
        if self.asked == "own":
            world = replace(world, no_context=0.0)  # there is nothing to ask
        if self.easy:
            world = replace(world, records=world.records // 2, fillers=world.fillers // 2)
        made = passages(world, recipe.batch_size, rng, all_known=self.easy)
        known = made.known[..., int(self.role == "receiver")]
        allowed = known if self.asked == "own" else made.known.any(-1)
        questions = ask(made.records, pick(allowed, recipe.questions, rng))
        copy = getattr(made, self.role)
        tokens = np.concatenate([copy, questions.reshape(len(copy), -1)], 1)
        tokens = torch.from_numpy(self.names[tokens]).to(self.device)
        self.reader.train()
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            hidden = self.reader(tokens)[:, copy.shape[1] :]
            asked = tokens[:, copy.shape[1] :].unflatten(1, questions.shape[1:])
            loss, right = answer_loss(self.reader, hidden, asked)
        _learn(loss, self.reader.parameters(), self.optimizers, recipe, number)
        found = right.item()
        self.right += 0.05 * (found - self.right)
        if self.easy and self.right >= self.enough:
            self.easy, self.right = False, 0.0
        return {"loss": loss.item(), "right": found, "easy": float(self.easy)}

    def state_dict(self) -> dict:
        return _state(self.reader, self.optimizers) | {"easy": self.easy, "right": self.right}

    def load_state_dict(self, state: dict) -> None:
        _restore(self.reader, self.optimizers, state)
        self.easy, self.right = state["easy"], state["right"]


class Fusing:
    """A fuser that learns between two frozen models.

    For `hold` of the steps gates are open; then they are soft with a temperature that falls
    geometrically from 1 to 0.001. The warm start's weight falls linearly from `warm` to 0 at
    `warm_until` of the steps.
    """

    def __init__(
        self,
        sharer: Reader,
        receiver: Reader,
        fuser: Fuser,
        world: World,
        recipe: Recipe,
        *,
        names: np.ndarray,
        shared: str = "sharer",
        warm: float = 2.0,
        warm_until: float = 0.45,
        hold: float = 0.4,
        autocast: torch.dtype | None = None,
    ):
        self.sharer, self.receiver, self.fuser = sharer, receiver, fuser
        self.world, self.recipe, self.names, self.shared = world, recipe, names, shared
        self.warm, self.warm_until, self.hold = warm, warm_until, hold
        self.autocast, self.device = autocast, receiver.device
        for reader in (sharer, receiver):
            reader.eval().requires_grad_(False)
        gates = [p for name, p in fuser.named_parameters() if name.endswith("gate")]
        others = [p for name, p in fuser.named_parameters() if not name.endswith("gate")]
        groups = [
            {"params": others, "weight_decay": 0.01, "factor": 1.0},
            {"params": gates, "weight_decay": 0.0, "factor": 20.0},
        ]
        self.optimizers = [torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)]

    def step(self, number: int) -> dict[str, float]:
        recipe, fuser, done = self.recipe, self.fuser, number / self.recipe.steps
        rng = split_generator(recipe.seed, "tune", number)
        torch.manual_seed(int(rng.integers(2**62)))  # the gates' noise
        made = passages(self.world, recipe.batch_size, rng)
        questions = ask(made.records, pick(made.known.any(-1), recipe.questions, rng))

        def moved(tokens: np.ndarray) -> Tensor:
            return torch.from_numpy(tokens).to(self.device)

        own, union, asked = moved(made.receiver), moved(made.union), moved(questions)
        theirs = moved(self.names[getattr(made, self.shared)])
        warm = self.warm * max(0.0, 1 - done / self.warm_until)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            with torch.no_grad():
                index = torch.arange(own.shape[1], device=self.device).expand(own.shape)
                layers = tuple(sorted(set(fuser.sources)))
                source = share(self.sharer, theirs, index, layers, rotated=fuser.rotated)
                cache = read(self.receiver, own, fuser.rotated)
                target = read(self.receiver, union, fuser.rotated).kv if warm else None
            before = cache.section(0, own.shape[1])
            gates = [[1.0, 1.0]] * len(fuser)
            if done >= self.hold:
                temperature = 0.001 ** ((done - self.hold) / (1 - self.hold))
                gates = fuser.soft_gates(temperature, *own.shape)
            fused = fuse(fuser, before, source, torch.ones_like(source.tokens), gates=gates)
            cache.replace(0, fused)
            hidden = self._ask(cache, own, asked)
            loss, right = answer_loss(self.receiver, hidden, asked)
            distance = _distance(fused, target) if warm else loss.new_zeros(())
        total = loss + warm * distance
        _learn(total, fuser.parameters(), self.optimizers, recipe, number)
        opened = (fuser.gate_logits() > 0).float().mean()
        return {
            "loss": loss.item(),
            "distance": distance.item(),
            "right": right.item(),
            "open_gates": opened.item(),
        }

    def _ask(self, cache: SectionCache, own: Tensor, questions: Tensor) -> Tensor:
        """The last layer's output over the questions (B, Q · 5, H), after the fused passage."""
        tokens = torch.cat([own, questions.flatten(1)], 1)
        hidden = self.receiver.embed(tokens)[:, own.shape[1] :]
        return self.receiver.decoder(hidden=hidden, cache=cache)

    def state_dict(self) -> dict:
        return _state(self.fuser, self.optimizers)

    def load_state_dict(self, state: dict) -> None:
        _restore(self.fuser, self.optimizers, state)


def inject_outliers(reader: Reader, factor: float) -> None:
    """One value channel and one slow key pair of each layer `factor` times as large, undone in the
    next matrices: the function stays (exactly for a power of 2), quantisation gets harder.

    Raises `ValueError` for layers that norm their keys, whose norm would undo it.
    """
    arch = reader.arch
    if arch.qk_norm or arch.qkv_bias:
        raise ValueError("outliers are injected into models without qk-norm and biases")
    size, half = arch.head_dim, arch.rotary_dim // 2
    pair, channel = [half - 1, arch.rotary_dim - 1], size // 3
    with torch.no_grad():
        for layer in reader.decoder.layers:
            attention = layer.self_attn
            for number in range(arch.num_kv_heads):
                key, value = attention.k_proj.weight, attention.v_proj.weight
                key.view(arch.num_kv_heads, size, -1)[number, pair] *= factor
                value.view(arch.num_kv_heads, size, -1)[number, channel] *= factor
            attention.q_proj.weight.view(arch.num_heads, size, -1)[:, pair] /= factor
            attention.o_proj.weight.view(-1, arch.num_heads, size)[:, :, channel] /= factor


def _distance(fused, target) -> Tensor:
    """Mean squared distance over layers, keys and values, relative to the target's variance."""
    pairs = [
        (F.mse_loss(mine, wanted), wanted.var())
        for ours, theirs in zip(fused, target, strict=True)
        for mine, wanted in zip(ours, theirs, strict=True)
    ]
    return torch.stack([error / size for error, size in pairs]).mean()


def _learn(loss: Tensor, parameters, optimizers, recipe: Recipe, number: int) -> None:
    loss.backward()
    norm = nn.utils.clip_grad_norm_(list(parameters), 1.0)
    if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
        raise Diverged(
            f"training diverged at step {number + 1} of {recipe.steps}: loss {loss.item()}, "
            f"gradient norm {norm.item()}.\nLower learning_rate or raise warmup_steps."
        )
    apply_gradients(optimizers, recipe.rate(number))


def _state(module: nn.Module, optimizers) -> dict:
    return {"model": module.state_dict(), "optimizers": [one.state_dict() for one in optimizers]}


def _restore(module: nn.Module, optimizers, state: dict) -> None:
    module.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)

"""The fuser of Cache-to-Cache (arXiv 2510.03215): projects a sharer's KV into a receiver's.

For each receiver layer there are two branches, one for keys and one for values. A branch reads the
source's and the receiver's own entry of a token, heads flattened and joined, and gives what is
added to the own entry: gate · weight · projected. The gate is one logit; at inference it is hard,
so that a fuser whose logits are not above 0 changes nothing.

Shapes: (…) any leading dimensions, tokens among them; Hs, Ds and Ht, Dt KV heads and their
dimension of sharer and receiver; F the hidden width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ember.model.architecture import Architecture
from ember.records.atomic import atomic_dir
from ember.records.errors import EmberError

NOISES = ("logistic", "gumbel")
LAYER_MAPS = ("last", "depth")
WEIGHTS, ABOUT = "fuser.safetensors", "fuser.json"


class BadFuser(EmberError):
    """A fuser that does not fit its pair, or that would change nothing."""


@dataclass(frozen=True)
class FuserShape:
    """Sizes of every layer's fuser."""

    source_heads: int
    source_dim: int
    heads: int
    dim: int
    hidden: int

    @classmethod
    def of(cls, sharer: Architecture, receiver: Architecture, hidden: int) -> "FuserShape":
        """The shape for a pair."""
        theirs = (sharer.num_kv_heads, sharer.head_dim)
        return cls(*theirs, receiver.num_kv_heads, receiver.head_dim, hidden)


class Block(nn.Module):
    """x + down(gelu(up(norm(x))))."""

    def __init__(self, hidden: int):
        super().__init__()
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.up = nn.Linear(hidden, hidden, bias=False)
        self.down = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Branch(nn.Module):
    """Keys or values of one layer."""

    def __init__(self, shape: FuserShape):
        super().__init__()
        self.heads = (shape.heads, shape.dim)
        joined = shape.source_heads * shape.source_dim + shape.heads * shape.dim
        self.enter = nn.Linear(joined, shape.hidden)
        self.shared = Block(shape.hidden)
        self.project = Block(shape.hidden)
        self.project_out = nn.Linear(shape.hidden, shape.heads * shape.dim)
        self.weigh = Block(shape.hidden)
        self.weigh_out = nn.Linear(shape.hidden, shape.heads)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, source: Tensor, own: Tensor) -> Tensor:
        """Source (…, Hs, Ds) and own (…, Ht, Dt) to weight · projected (…, Ht, Dt)."""
        x = self.shared(self.enter(torch.cat([source.flatten(-2), own.flatten(-2)], -1)))
        projected = self.project_out(self.project(x)).unflatten(-1, self.heads)
        return projected * self.weigh_out(self.weigh(x)).sigmoid().unsqueeze(-1)


class LayerFuser(nn.Module):
    """Both branches of one receiver layer."""

    def __init__(self, shape: FuserShape):
        super().__init__()
        self.key = Branch(shape)
        self.value = Branch(shape)


class Fuser(nn.ModuleList):
    """A `LayerFuser` for each receiver layer.

    `sources`: the sharer's layer that each of them reads. `rotated`: whether keys are fused after
    rotation (published) or before. `noise`: that of the gates in training, see `soft_gates`.
    """

    def __init__(
        self,
        shape: FuserShape,
        sources: Sequence[int],
        *,
        rotated: bool = True,
        noise: str = "logistic",
    ):
        super().__init__(LayerFuser(shape) for _ in sources)
        if noise not in NOISES:
            raise BadFuser(f"noise {noise!r} is unknown.\nSet it to one of {', '.join(NOISES)}.")
        self.shape, self.sources = shape, tuple(sources)
        self.rotated, self.noise = rotated, noise

    def gate_logits(self) -> Tensor:
        """(layers, 2): of keys and of values."""
        return torch.stack(
            [torch.stack([layer.key.gate, layer.value.gate]) for layer in self]
        ).float()

    def open_gates(self) -> list[list[bool]]:
        """Which gates are open at inference, [layer][keys, values]: one read from the device."""
        return (self.gate_logits() > 0).tolist()

    def used_sources(self) -> tuple[int, ...]:
        """The sharer's layers that an open gate reads, ascending: what has to be sent."""
        gates = zip(self.sources, self.open_gates(), strict=True)
        return tuple(sorted({source for source, opened in gates if any(opened)}))

    def soft_gates(self, temperature: float, batch: int, tokens: int) -> list[list[Tensor]]:
        """Gates of a training step, [layer][keys, values], from the global random state.

        `logistic`: a Gumbel-sigmoid, sigmoid((logit + log u - log(1 - u)) / temperature), one draw
        a branch. `gumbel` (as published): one-sided noise -log(-log u), drawn for each item, token
        and head, (B, T, Ht, 1): at logit 0 it opens with a probability of 0.63, where inference is
        closed.
        """
        logits = self.gate_logits()  # (layers, 2)
        each = () if self.noise == "logistic" else (batch, tokens, self.shape.heads, 1)
        drawn = torch.rand(*logits.shape, *each, device=logits.device)
        drawn = drawn.clamp(1e-6, 1 - 1e-6)
        noise = drawn.logit() if self.noise == "logistic" else -(-drawn.log()).log()
        logits = logits.view(*logits.shape, *(1 for _ in each))
        return [list(pair.unbind()) for pair in ((logits + noise) / temperature).sigmoid().unbind()]


def layer_map(kind: str, sharer_layers: int, receiver_layers: int) -> tuple[int, ...]:
    """The sharer's layer for each of the receiver's.

    `last`: the last layers meet, clamp(t + Ls - Lt); `depth`: layers of the same relative depth.
    """
    last = sharer_layers - 1
    if kind == "last":
        moved = sharer_layers - receiver_layers
        return tuple(min(max(t + moved, 0), last) for t in range(receiver_layers))
    if kind == "depth":
        depth = max(1, receiver_layers - 1)
        return tuple(int(t * last / depth + 0.5) for t in range(receiver_layers))
    raise BadFuser(f"layer map {kind!r} is unknown.\nSet it to one of {', '.join(LAYER_MAPS)}.")


def save_fuser(fuser: Fuser, folder: str | Path, about: Mapping | None = None) -> None:
    """Writes weights and description, whole or not at all."""
    from safetensors.torch import save_file

    said = {
        "shape": asdict(fuser.shape),
        "sources": list(fuser.sources),
        "rotated": fuser.rotated,
        "noise": fuser.noise,
        "about": dict(about or {}),
    }
    tensors = {name: p.detach().cpu().contiguous() for name, p in fuser.named_parameters()}
    with atomic_dir(folder) as part:
        (part / ABOUT).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
        save_file(tensors, part / WEIGHTS)


def load_fuser(
    folder: str | Path,
    sharer: Architecture,
    receiver: Architecture,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Fuser:
    """A fuser in eval mode. Raises `BadFuser` for one that is not complete or not of this pair,
    or that has no open gate (with which the receiver would answer alone)."""
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        said = json.loads((folder / ABOUT).read_text())
        tensors = load_file(folder / WEIGHTS)
        shape, sources = FuserShape(**said["shape"]), said["sources"]
        options = {"rotated": said["rotated"], "noise": said["noise"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFuser(f"{folder} holds no fuser: {error}.\nTrain or fetch it again.") from None
    check_fits(str(folder), shape, sources, sharer, receiver)
    fuser = Fuser(shape, sources, **options)
    wanted = {name: p.shape for name, p in fuser.named_parameters()}
    if {name: x.shape for name, x in tensors.items()} != wanted:
        wrong = sorted(wanted.keys() ^ tensors.keys()) or ["a shape"]
        raise BadFuser(
            f"{folder} does not hold the tensors of {len(fuser)} layers: {wrong[0]} differs.\n"
            "Train or fetch it again."
        )
    fuser.load_state_dict(tensors)
    check_open(str(folder), fuser)
    return fuser.to(device, dtype).eval()


def check_fits(
    name: str, shape: FuserShape, sources: Sequence[int], sharer: Architecture, receiver
) -> None:
    """Raises `BadFuser` for a fuser of another pair."""
    if len(sources) != receiver.num_layers:
        raise BadFuser(
            f"{name} has fusers for {len(sources)} layers, and the receiver has "
            f"{receiver.num_layers}.\nGive the fuser of this receiver, complete."
        )
    if shape != FuserShape.of(sharer, receiver, shape.hidden) or not all(
        0 <= source < sharer.num_layers for source in sources
    ):
        raise BadFuser(
            f"{name} is for KV of {shape}, sharer's layers {sorted(set(sources))}: another pair.\n"
            "Give the fuser of this pair."
        )


def check_open(name: str, fuser: Fuser) -> None:
    """Raises `BadFuser` where no gate is open: it would be receiver-only under another name."""
    if not any(any(opened) for opened in fuser.open_gates()):
        raise BadFuser(f"no gate of {name} is open: it changes nothing.\nTrain it longer.")

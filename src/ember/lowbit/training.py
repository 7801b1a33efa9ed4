"""Training of NVFP4 weights in place: what is stored is what is trained (L-6).

Contract. A `TrainedLinear` multiplies by its dequantised weight; going back it gives the input's
gradient by the same weight, then takes the weight's gradient a few rows at a time, and updates
those rows at once, so that no gradient of the whole matrix is ever held (a straight-through
estimator: codes are trained as if they were the weight). What keeps small updates from vanishing is
the `Arm`'s: a master copy, stochastic rounding, or the rounding error fed back.

The optimizer is Adam (arXiv 1412.6980). With `states` "float32" both moments are held; otherwise
the second moment is factored by row and column (Adafactor, arXiv 1804.04235) and the first one is
held in that number format, or not at all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ember.formats import e2m1, fp8, nvfp4
from ember.formats.base import Packed
from ember.formats.integer import stochastic
from ember.formats.registry import FORMATS
from ember.model.decoder import Decoder
from ember.model.packed import LinearNVFP4, PackedMatrix
from ember.optim.loop import BadTraining, Diverged

STATES = ("float32", "int8", "int4", "none")
GROUP = 128  # values of a momentum that share a scale
AT_ONCE = 1 << 22  # weights that are dense at once in a product


@dataclass(frozen=True)
class Arm:
    """How an update reaches 4-bit weights.

    `master`: the number format of a copy that takes the updates, or None. `rounding`: "nearest" or
    "stochastic". `feedback`: what rounding lost goes into the momentum (ECO, arXiv 2601.22101).
    """

    name: str
    master: torch.dtype | None = None
    rounding: str = "nearest"
    feedback: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm("master_float32", torch.float32),
        Arm("master_bfloat16", torch.bfloat16),
        Arm("stochastic", rounding="stochastic"),
        Arm("nearest"),
        Arm("feedback", feedback=True),
    )
}


@dataclass
class Control:
    """What all layers of a decoder share in a step, and what they report of it."""

    arm: Arm
    states: str = "float32"
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    chunk_rows: int = 64
    generator: torch.Generator | None = None  # of stochastic rounding, on the weights' device
    rate: float = 0.0
    step: int = 0  # from 1
    updating: bool = False
    changed: int = field(default=0, init=False)  # codes, in the last step
    codes: int = field(default=0, init=False)  # of all weights updated in it

    def __post_init__(self):
        if self.states not in STATES:
            raise BadTraining(f"states {self.states!r} are unknown.\nChoose from {STATES}.")
        if self.arm.feedback and self.states == "none":
            raise BadTraining("error feedback needs a momentum.\nChoose other states.")
        if self.chunk_rows < 1:
            raise BadTraining(f"chunk_rows is {self.chunk_rows}.\nSet it to 1 or more.")

    @contextmanager
    def update(self, rate: float) -> Iterator[None]:
        """Backward passes inside update the weights, once each."""
        self.rate, self.step, self.updating = rate, self.step + 1, True
        self.changed = self.codes = 0
        try:
            yield
        finally:
            self.updating = False


class TrainedLinear(nn.Module):
    """A linear layer of NVFP4 weights that trains itself; `control` is shared with the others."""

    def __init__(self, layer: LinearNVFP4, control: Control):
        """Takes the layer's buffers over."""
        super().__init__()
        self.layer, self.control = layer, control
        rows, columns = layer.out_features, layer.in_features
        device, states = layer.qdata.device, control.states
        if control.arm.master is not None:
            self.register_buffer("master", self._dense().to(control.arm.master))
        if states == "float32":
            self.register_buffer("second", torch.zeros(rows, columns, device=device))
            self.register_buffer("first", torch.zeros(rows, columns, device=device))
        else:
            self.register_buffer("by_row", torch.zeros(rows, device=device))
            self.register_buffer("by_column", torch.zeros(columns, device=device))
            self.register_buffer("summed", torch.zeros(columns, device=device))
        if states in ("int8", "int4"):
            half = 2 if states == "int4" else 1
            first = torch.zeros(rows, columns // half, dtype=torch.uint8, device=device)
            self.register_buffer("first", first)
            scales = torch.zeros(rows, columns // _group(columns), device=device).half()
            self.register_buffer("first_scales", scales)
        # Backward must come here even where no input of the graph learns.
        self.anchor = nn.Parameter(torch.zeros((), device=device))
        self.kept: Tensor | None = None  # the dense weight, for calls without gradients

    in_features = property(lambda self: self.layer.in_features)
    out_features = property(lambda self: self.layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.kept = None
            return _Product.apply(x, self.anchor, self)
        if self.kept is None or self.kept.dtype != x.dtype:
            self.kept = self._dense().to(x.dtype)
        return nn.functional.linear(x, self.kept, self.layer.bias)

    def pieces(self) -> Iterator[slice]:
        """Rows of which the dense weight is made at once."""
        step = max(1, AT_ONCE // self.in_features)
        return (slice(start, start + step) for start in range(0, self.out_features, step))

    def _dense(self, rows: slice = slice(None)) -> Tensor:
        """Rows of the weight (n, K), float32."""
        layer = self.layer
        layer.lay("file")  # kernels may have read it since
        codes, scales = layer.qdata[rows], layer.scale[rows]
        return PackedMatrix("nvfp4", codes, scales, layer.tensor_scale, (len(codes),)).dense()

    @torch.no_grad()
    def learn(self, x: Tensor, gradient: Tensor) -> None:
        """One update by inputs (n, K) and the gradient (n, N) of outputs, rows by rows."""
        control = self.control
        for start in range(0, self.out_features, control.chunk_rows):
            rows = slice(start, min(start + control.chunk_rows, self.out_features))
            found = gradient[:, rows].T.float() @ x.float()  # (rows, K)
            self._update(rows, found)
        if control.states != "float32":  # the next step's columns: this one's are known only now
            beta = control.betas[1]
            self.by_column.mul_(beta).add_(self.summed, alpha=(1 - beta) / self.out_features)
            self.summed.zero_()
        self.kept = None

    def _update(self, rows: slice, gradient: Tensor) -> None:
        control, arm = self.control, self.control.arm
        if not bool(gradient.isfinite().all()):
            raise Diverged(
                "the gradient of a packed weight is not finite.\nLower the learning rate."
            )
        size = self._scale_of(rows, gradient)  # √v̂ + ε
        momentum = self._momentum(rows, gradient)
        unbiased = 1 - control.betas[0] ** control.step
        weight = self._dense(rows) if arm.master is None else self.master[rows].float()
        change = momentum / unbiased / size + control.weight_decay * weight
        target = weight - control.rate * change
        if arm.master is not None:
            self.master[rows] = target.to(arm.master)
            target = self.master[rows].float()
        self._store(rows, target)
        if arm.feedback:
            beta, lost = control.betas[0], target - self._dense(rows)
            # Such that quantised weights follow those of a master: error_now ≈ error_before.
            momentum += (1 - 1 / beta) * lost * size * unbiased / max(control.rate, 1e-30)
        if control.states != "none":
            self._keep_momentum(rows, momentum)

    def _scale_of(self, rows: slice, gradient: Tensor) -> Tensor:
        """√v̂ + ε (n, K) after this gradient."""
        control, squared = self.control, gradient.square()
        beta = control.betas[1]
        unbiased = 1 - beta**control.step
        if control.states == "float32":
            second = self.second[rows].mul_(beta).add_(squared, alpha=1 - beta)
            return (second / unbiased).sqrt() + control.eps
        self.summed += squared.sum(0)
        by_row = self.by_row[rows].mul_(beta).add_(squared.mean(1), alpha=1 - beta)
        columns = self.by_column
        if control.step == 1:  # there are none yet: those of the rows at hand
            columns = (1 - beta) * squared.mean(0)
            whole = columns.mean()
        else:
            unbiased_columns = 1 - beta ** (control.step - 1)
            columns = columns / unbiased_columns * unbiased
            whole = columns.mean()
        factored = by_row[:, None] * columns / whole.clamp(min=1e-30)
        return (factored / unbiased).sqrt() + control.eps

    def _momentum(self, rows: slice, gradient: Tensor) -> Tensor:
        """The first moment (n, K) after this gradient, float32."""
        control, beta = self.control, self.control.betas[0]
        if control.states == "none":
            return gradient * (1 - beta**control.step)  # as if unbiased: the gradient alone
        if control.states == "float32":
            before = self.first[rows]
        else:
            before = _unpacked(control.states, self.first[rows], self.first_scales[rows])
        return before * beta + gradient * (1 - beta)

    def _keep_momentum(self, rows: slice, momentum: Tensor) -> None:
        states = self.control.states
        if states == "float32":
            self.first[rows] = momentum
            return
        kind = FORMATS[states]
        made = kind.quantise(momentum, group=_group(momentum.shape[1]))
        self.first[rows] = kind.pack(made).data.view(len(momentum), -1)
        self.first_scales[rows] = made.parts["scales"].view(len(momentum), -1)

    def _store(self, rows: slice, target: Tensor) -> None:
        """Rounds the new weight and stores it; counts the codes that change."""
        layer, control = self.layer, self.control
        layer.lay("file")
        overall = layer.tensor_scale[0]
        if control.arm.rounding == "stochastic":
            codes, scales = quantise_stochastically(target, overall, control.generator)
        else:
            made = nvfp4.quantise(target, scale=overall)
            codes, scales = made.codes, made.parts["scales"].view(len(target), -1)
        packed = codes[:, ::2] | codes[:, 1::2] << 4
        changed = _count_changes(layer.qdata[rows], packed)
        control.changed = control.changed + changed  # on the device: nobody waits
        control.codes += target.numel()
        layer.qdata[rows], layer.scale[rows] = packed, scales


class _Product(torch.autograd.Function):
    """x · weightᵀ; the weight is made anew in backward, and updated there."""

    @staticmethod
    def forward(ctx, x: Tensor, anchor: Tensor, linear: TrainedLinear) -> Tensor:
        ctx.save_for_backward(x)
        ctx.linear = linear
        out = x.new_empty(*x.shape[:-1], linear.out_features)
        for rows in linear.pieces():
            bias = None if linear.layer.bias is None else linear.layer.bias[rows].to(x.dtype)
            out[..., rows] = nn.functional.linear(x, linear._dense(rows).to(x.dtype), bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        (x,), linear = ctx.saved_tensors, ctx.linear
        # First the input's gradient, by the weight that made the output.
        back = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        for rows in linear.pieces() if back is not None else ():
            back += gradient[..., rows] @ linear._dense(rows).to(gradient.dtype)
        if linear.control.updating:
            linear.learn(x.flatten(0, -2), gradient.flatten(0, -2))
        return back, torch.zeros_like(linear.anchor), None


@torch.no_grad()
def quantise_stochastically(
    x: Tensor, overall: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Codes (n, K) and scales' bits (n, K / 16) of x under a tensor scale, both rounded at random.

    Scales too: were they rounded to nearest, a block's largest value could never grow by small
    steps. It is 6 under either scale, so that its mean is its value; so are those of the others.
    """
    blocks = x.unflatten(-1, (-1, nvfp4.BLOCK))
    wanted = (blocks.abs().amax(-1) / e2m1.MOST / overall).clamp(nvfp4.LEAST_SCALE, fp8.MOST)
    bits = fp8.e4m3(wanted).view(torch.uint8)
    bits = torch.where(_e4m3(bits) > wanted, bits - 1, bits)  # the next one down
    above = (bits + 1).clamp(max=0x7E)
    low, high = _e4m3(bits), _e4m3(above)
    share = (wanted - low) / (high - low).clamp(min=1e-30)
    drawn = torch.rand(share.shape, generator=generator, device=share.device)
    bits = torch.where(drawn < share, above, bits)
    magnitude = blocks.abs()
    largest = (magnitude > (e2m1.MOST * low * overall)[..., None]) * e2m1.MOST
    magnitude.div_((_e4m3(bits) * overall)[..., None]).clamp_(max=e2m1.MOST)
    magnitude = torch.maximum(magnitude, largest, out=magnitude)
    # E2M1 counts in halves, from 2 in ones, from 4 in twos: the least count is the right one.
    counts = torch.minimum(2 * magnitude, magnitude + 2)
    counts = torch.minimum(counts, magnitude.div_(2).add_(4), out=counts)
    codes = stochastic(counts, generator).to(torch.uint8)
    return codes.add_(torch.signbit(blocks), alpha=8).flatten(-2), bits


def _count_changes(before: Tensor, after: Tensor) -> Tensor:
    """How many codes differ between bytes of two each; a change between 0 and -0 is none."""
    differ, either = before ^ after, (before | after) & 0x77
    low, high = (differ & 0x0F) * (either & 0x0F), (differ >> 4) * (either >> 4)
    return low.count_nonzero() + high.count_nonzero()


def _e4m3(bits: Tensor) -> Tensor:
    return bits.view(torch.float8_e4m3fn).float()


def _group(columns: int) -> int:
    return GROUP if columns % GROUP == 0 else columns


def _unpacked(states: str, data: Tensor, scales: Tensor) -> Tensor:
    kind, rows = FORMATS[states], len(data)
    columns = data.shape[1] * (2 if states == "int4" else 1)
    made = Packed(states, (rows, columns), data.reshape(-1), {"scales": scales})
    return kind.dequantise(kind.unpack(made))


@torch.no_grad()
def make_trainable(
    decoder: Decoder, control: Control, *, headroom: float = 1.2, last_layers: int | None = None
) -> list[TrainedLinear]:
    """Packs the linear layers of a decoder's last layers (all by default) and lets them train; all
    else is frozen. In place and one by one, so that no second copy of the model is held.

    `headroom`: of the tensor scales, which stay, for weights that grow. Raises FormatError where
    rows are no multiple of 16, BadTraining for more layers than there are.
    """
    first = first_trained(len(decoder.layers), last_layers)
    decoder.requires_grad_(False)
    return [one for part in decoder.layers[first:] for one in pack(part, control, headroom)]


def first_trained(depth: int, last_layers: int | None) -> int:
    """The first of `depth` layers that trains; None: all do. Raises BadTraining for too many."""
    count = depth if last_layers is None else last_layers
    if not 1 <= count <= depth:
        raise BadTraining(f"{count} layers of {depth} are to be trained.\nSet 1 to {depth}.")
    return depth - count


@torch.no_grad()
def pack(part: nn.Module, control: Control, headroom: float = 1.2) -> list[TrainedLinear]:
    """Packs the linear layers inside a module in place, and lets them train; those that are packed
    already keep their codes and scales."""
    found = []
    for parent in list(part.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                child = LinearNVFP4.of(child.weight, child.bias, headroom)
            if isinstance(child, LinearNVFP4):
                setattr(parent, name, TrainedLinear(child, control))
                found.append(getattr(parent, name))
    return found


def pack_head(decoder: Decoder, control: Control, headroom: float = 1.2) -> TrainedLinear:
    """Packs a decoder's head in place, untied from the embedding where it is tied; it trains."""
    weight = decoder.embed_tokens.weight if decoder.lm_head is None else decoder.lm_head.weight
    head = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    head.weight = nn.Parameter(weight.detach(), requires_grad=False)
    holder = nn.ModuleDict({"head": head})
    [decoder.lm_head] = pack(holder, control, headroom)
    decoder.arch = replace(decoder.arch, tie_embeddings=False)
    return decoder.lm_head


def finish(decoder: Decoder) -> None:
    """Puts the packed layers in the place of those that trained them, the head's too; masters and
    optimizer states go."""
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, TrainedLinear):
                setattr(parent, name, child.layer)


def bytes_by_kind(decoder: Decoder, layers: list[TrainedLinear]) -> dict[str, int]:
    """Bytes of a trained decoder: packed weights, masters, optimizer states, all else."""
    packed = sum(b.nbytes for one in layers for b in one.layer.buffers())
    master = sum(one.master.nbytes for one in layers if one.control.arm.master is not None)
    own = sum(b.nbytes for one in layers for b in one.buffers())
    whole = sum(t.nbytes for t in (*decoder.parameters(), *decoder.buffers()))
    return {
        "packed": packed,
        "master": master,
        "states": own - packed - master,
        "dense": whole - own,
    }

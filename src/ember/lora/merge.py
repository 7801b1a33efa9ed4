"""Adapters merged into a decoder's weights: apply, hot replace, roll back, exactly (P1-3.1).

Contract. `Merger.swap` goes from whatever adapter is merged to another, or to none, in one pass
over the weights; captured graphs and packed weights see it, for nothing moves. All that can fail
(shapes, values, memory) is tried before the first weight is written, and what fails amid the pass
is undone, so that after an error the weights are as before it.

Rounded weights cannot be subtracted from exactly, so what was there is kept:

| keep   | a swap computes                      | unload | memory                          |
|--------|--------------------------------------|--------|---------------------------------|
| device | base + s2·B2·A2                      | exact  | one copy of adapted matrices    |
| host   | W + s2·B2·A2 - s1·B1·A1              | exact  | one copy, in the host's memory  |
| none   | W + s2·B2·A2 - s1·B1·A1              | drifts | nothing                         |

All read each weight once and write it once. With `device` a swap does not depend on what was merged
before, so nothing drifts even between swaps. On the CPU `host` computes as `host` does on a GPU and
saves nothing. Sums are in float32, rounded once.

Others may change the base while nothing is merged; while something is, a change of adapted weights
that torch counts (see `ember.model.version`) is refused at the next swap. Of what it does not count
(through `.data`) only `forget_base`, called before, keeps the next swap from undoing it.
"""

import contextlib
import importlib.util
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ember.lora.adapter import Adapter, BadAdapter, Key, check_fits, linears
from ember.measure.memory import require
from ember.model.decoder import Decoder
from ember.model.linear import dense_weight
from ember.model.version import changed, mark
from ember.records.errors import EmberError

KEEPS = ("device", "host", "none")
KEPT_LAUNCHES = 8  # pairs of adapters whose launch stays prepared
ONE_THREAD = 1 << 22  # elements of a matrix that one CPU thread is enough for
USUAL_RANK = 8  # of the first adapter, as long as it is not known
CHUNK = 1 << 18  # float32 numbers of a scratch buffer on the CPU, about what a core's cache holds


Factors = tuple[Tensor, Tensor]
"""a (rank, in) and b (rank, out) with its scale, as merging reads them."""


class LostWeights(EmberError):
    """A swap failed, and so did putting the former weights back."""


@dataclass(frozen=True)
class Prepared:
    """An adapter that was checked and lies where the weights are, ready to be merged.

    `factors`: in float32 (float64 for such weights), all padded to one rank.
    """

    adapter: Adapter
    factors: Mapping[Key, Factors]
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def bytes(self) -> int:
        return sum(a.nbytes + b.nbytes for a, b in self.factors.values())


class Merger:
    """The adapted weights of one decoder; see the module."""

    def __init__(self, decoder: Decoder, *, keep: str = "device"):
        if keep not in KEEPS:
            raise BadAdapter(f"keep is {keep!r}.\nChoose {', '.join(KEEPS)}.")
        self.decoder, self.keep = decoder, keep
        self._linears = linears(decoder)
        self.uses_kernels = kernels_serve(decoder)  # Triton's do the work
        # Whether these are on the CPU and each is done before a second thread would be there.
        self._small = all(
            weight.device.type == "cpu" and weight.numel() <= ONE_THREAD
            for weight in self._all_weights()
        )
        self._base: dict[Key, Tensor] = {}
        self._base_name = object()  # stands for the base, in names of states
        self._marks: dict[Key, tuple] = {}  # of weights with a copy, as the last swap left them
        self._merged: Prepared | None = None
        # By adapters: where the weights lay, the launch, and the adapters, which live as long.
        self._launches: dict[tuple[int, int], tuple] = {}
        self._lost = False
        self._ready: set[int] = set()  # ranks whose kernels are compiled and loaded
        self._beginning = self._begin_compiling() if self.uses_kernels else None

    @property
    def active(self) -> Adapter | None:
        """The adapter in the weights."""
        return None if self._merged is None else self._merged.adapter

    @property
    def base_bytes(self) -> int:
        """Memory of the copies that make unloading exact."""
        return sum(copy.nbytes for copy in self._base.values())

    def prepare(self, adapter: Adapter) -> Prepared:
        """Checks an adapter and brings its factors to the weights' device. Raises BadAdapter."""
        check_fits(adapter, self.decoder)
        weight = dense_weight(next(iter(self._linears.values())))
        rank, dtype = adapter.rank, torch.float32
        if self.uses_kernels:
            from ember.lora.kernels import padded_rank

            rank = padded_rank(rank)
            self._make_ready(rank)
        elif weight.dtype == torch.float64:
            dtype = torch.float64
        parts, device = list(adapter.values()), weight.device
        needed = rank * sum(part.a.shape[1] + 2 * part.b.shape[0] for part in parts)
        require(needed * dtype.itemsize, str(device), f"the factors of adapter {adapter.name}")
        # One block and one copy; transposed, scaled and padded where that is fast.
        flat = [x.detach().reshape(-1).to(dtype) for part in parts for x in (part.a, part.b)]
        pieces = torch.cat(flat).to(device).split([len(x) for x in flat])
        factors = {}
        for (key, part), a, b in zip(adapter.items(), pieces[::2], pieces[1::2], strict=True):
            a = a.view(part.a.shape)
            b = torch.mul(b.view(part.b.shape).t(), part.scale).contiguous()
            if part.rank < rank:
                a, b = (F.pad(x, (0, 0, 0, rank - part.rank)) for x in (a, b))
            factors[key] = a, b
        return Prepared(adapter, factors)

    def _begin_compiling(self) -> threading.Thread | None:
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        from ember.lora.kernels import begin_compiling

        return begin_compiling(self._all_weights(), USUAL_RANK)

    def _make_ready(self, rank: int) -> None:
        """Compiles what swaps of adapters of a rank need, so that none has to."""
        if rank in self._ready:
            return
        from ember.lora.kernels import make_ready

        if self._beginning is not None:
            self._beginning.join()
        pairs = {"device": [(rank, 0)], "host": [(rank, 0), (rank, rank)]}
        make_ready(self._all_weights(), pairs.get(self.keep, [(rank, 0), (rank, rank), (0, rank)]))
        self._ready.add(rank)

    def _all_weights(self) -> list[Tensor]:
        return [dense_weight(linear).detach() for linear in self._linears.values()]

    @torch.no_grad()
    def swap(self, adapter: Adapter | Prepared | None) -> None:
        """Merges `adapter` in place of the one that is merged; None takes it out.

        Raises BadAdapter or NotEnoughMemory before anything changes. Whatever else interrupts it
        (an error of the device, Ctrl-C), the former weights are restored before it is raised on:
        bit for bit with `keep` device, to within rounding with the others.
        """
        if self._lost:
            raise LostWeights(
                "an earlier swap failed and could not be undone.\nLoad the model again."
            )
        new = self.prepare(adapter) if isinstance(adapter, Adapter) else adapter
        self._heed_others()
        if new is self._merged:
            return
        self._keep_base(new)
        done: list[Done] = []
        run = self._pass(self._merged, new, done)
        with _one_thread() if self._small else contextlib.nullcontext():
            try:
                run()
            except BaseException:
                self._restore(new, done)
                raise
        self._merged = new
        self._marks = {key: (w, *mark(w)) for key, w in self._weights(self._base).items()}
        changed(self.decoder, self._state())

    def forget_base(self) -> None:
        """Takes the adapter out and drops the copies: the base is about to change, or memory is
        wanted."""
        self.swap(None)
        self._base.clear()
        self._marks.clear()
        self._base_name = object()
        self._launches.clear()
        changed(self.decoder)

    def _weights(self, keys: Iterable[Key]) -> dict[Key, nn.Parameter]:
        # Not `.weight`: a module's attributes are looked up slowly, and a swap takes a millisecond.
        return {key: self._linears[key]._parameters["weight"] for key in keys}

    def _heed_others(self) -> None:
        """Drops copies of weights that others have changed since the last swap."""
        merged = () if self._merged is None else self._merged.factors
        touched = [  # spelled out, since it is asked of every matrix before every swap
            key
            for key, (weight, place, count) in self._marks.items()
            if self._linears[key]._parameters["weight"] is not weight
            or weight.data_ptr() != place
            or (count is not None and weight._version != count)
        ]
        for key in touched:
            weight, before = self._linears[key]._parameters["weight"], self._marks[key]
            now = (weight, *mark(weight))
            moved = now[0] is before[0] and now[2] == before[2]  # as packing moves it
            if moved and (key in merged or torch.equal(weight, self._base[key].to(weight.device))):
                continue
            if key in merged:
                raise LostWeights(
                    f"the weights of layer {key[0]} {key[1]} were changed while adapter "
                    f"{self._merged.adapter.name} was merged into them.\n"
                    "Load the model again, and take adapters out before changing the base."
                )
            del self._base[key], self._marks[key]
            self._base_name = object()
            self._launches.clear()

    def _state(self) -> tuple | None:
        """A name of what the weights are, where a swap does not depend on the one before."""
        if self._merged is None:
            return None if self.keep == "none" else ("base", self._base_name)
        return (self._merged.number, self._base_name) if self.keep == "device" else None

    def _keep_base(self, new: Prepared | None) -> None:
        """Copies matrices that are adapted for the first time, while they are still the base's."""
        if self.keep == "none" or new is None:
            return
        fresh = self._weights(key for key in new.factors if key not in self._base)
        if not fresh:
            return
        first = next(iter(fresh.values()))
        device = first.device if self.keep == "device" else torch.device("cpu")
        needed = sum(weight.nbytes for weight in fresh.values())
        require(needed, str(device), "a copy of the adapted matrices (Merger's keep)")
        pinned = first.is_cuda and device.type == "cpu"
        copies = {}
        for key, weight in fresh.items():
            copies[key] = torch.empty(
                weight.shape, dtype=weight.dtype, device=device, pin_memory=pinned
            )
            copies[key].copy_(weight)
        self._base |= copies

    def _pass(self, old: Prepared | None, new: Prepared | None, done: list["Done"]):
        """A call that goes from `old` to `new`; what it needs is allocated here."""
        before = {} if old is None else old.factors
        after = {} if new is None else new.factors
        if new is None and self.keep != "none":
            return lambda: self._copy_base(before)
        if self.keep == "none":
            touched = after if before.keys() <= after.keys() else {**after, **before}
            return self._adding(touched, None, new, old, done)
        gone = () if before.keys() <= after.keys() else before.keys() - after.keys()
        if self.keep == "device":
            add = self._adding(after, self._base, new, None, done)
        else:
            add = self._adding(
                after, None, new, old if before.keys() & after.keys() else None, done
            )
        return lambda: (self._copy_base(gone), add())

    def _copy_base(self, keys: Iterable[Key]) -> None:
        """Brings the base back, bit for bit."""
        weights = self._weights(keys)
        if not weights:
            return
        # Through .data: what is merged here is no change of the base for torch to count.
        targets = [weight.data for weight in weights.values()]
        sources = [self._base[key] for key in weights]
        if sources[0].device == targets[0].device:
            torch._foreach_copy_(targets, sources)
            return
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(targets[0].device)

    def _adding(
        self,
        keys: Iterable[Key],
        sources: Mapping[Key, Tensor] | None,
        new: Prepared | None,
        old: Prepared | None,
        done: list["Done"],
    ):
        """A call that makes weights = sources (themselves if None) + new - old."""
        added, taken = ({} if side is None else side.factors for side in (new, old))
        weights = self._weights(keys)
        sources = weights if sources is None else sources
        if not self.uses_kernels:
            scratch = _scratch(weights.values())

            def run() -> None:
                for key, weight in weights.items():
                    for rows in _chunks(weight, scratch):
                        _add(weight, sources[key], added.get(key), taken.get(key), rows, scratch)
                        done.append((key, rows))

            return run
        places = tuple(weight.data_ptr() for weight in weights.values())
        name = (id(old), id(new))
        known = self._launches.pop(name, None)
        if known is None or known[0] != places:
            known = places, _launch(weights, sources, added, taken), (old, new)
        self._launches[name] = known  # the last used is last
        if len(self._launches) > KEPT_LAUNCHES:
            del self._launches[next(iter(self._launches))]
        return known[1].run

    def _restore(self, new: Prepared | None, done: list["Done"]) -> None:
        """Brings back what was merged before a pass to `new` that did not end."""
        old = self._merged
        before = {} if old is None else old.factors
        after = {} if new is None else new.factors
        if self.keep != "device":
            changed(self.decoder)  # what is put back is equal to within rounding
        try:
            if self.keep == "none":
                weights = self._weights(key for key, _ in done)
                scratch = _scratch(weights.values())
                for key, rows in done:
                    weight = weights[key]
                    _add(weight, weight, before.get(key), after.get(key), rows, scratch)
                return
            self._copy_base({**after, **before})
            if old is not None:
                source = self._base if self.keep == "device" else None
                self._adding(before, source, old, None, [])()
        except BaseException:
            self._lost = True
            raise


Done = tuple[Key, slice]
"""Rows of a matrix that a pass has finished."""


def kernels_serve(decoder: Decoder) -> bool:
    """Whether Triton's kernels can merge into this decoder's weights."""
    weights = [dense_weight(linear) for linear in linears(decoder).values()]
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (
        (all(weight.is_cuda for weight in weights) or interpreted)
        and importlib.util.find_spec("triton") is not None
        and len({(weight.dtype, weight.device) for weight in weights}) == 1
        and weights[0].dtype in (torch.float32, torch.bfloat16, torch.float16)
        and all(weight.is_contiguous() for weight in weights)
    )


def _launch(weights, sources, new, old):
    """One kernel launch over all matrices; those that one side leaves alone get zeros of it."""
    from ember.lora.kernels import Launch, Matrix

    def factors(side, key, weight):
        if not side or key in side:
            return side.get(key)
        rank = len(next(iter(side.values()))[0])
        out, width = weight.shape
        return tuple(torch.zeros(rank, n, device=weight.device) for n in (width, out))

    matrices = [
        Matrix(weight.data, sources[key].data, factors(new, key, weight), factors(old, key, weight))
        for key, weight in weights.items()
    ]
    launch = Launch(matrices)
    launch.matrices = matrices  # the zeros live as long as the pointers to them
    return launch


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Where another process wants the core, threads would wait for each other at every matrix
    (seen: 27 ms instead of 1.2)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _scratch(weights: Iterable[Tensor]) -> Tensor | None:
    """Room for a stretch of float32 sums; none where weights hold such sums themselves."""
    weights = list(weights)
    if not weights or weights[0].dtype in (torch.float32, torch.float64):
        return None
    widest = max(weight.shape[1] for weight in weights)
    size = max(weight.numel() for weight in weights) if weights[0].is_cuda else max(CHUNK, widest)
    return torch.empty(size, dtype=torch.float32, device=weights[0].device)


def _chunks(weight: Tensor, scratch: Tensor | None) -> list[slice]:
    """Stretches of rows whose sums fit the scratch."""
    rows = len(weight) if scratch is None else max(1, scratch.numel() // weight.shape[1])
    return [slice(at, min(at + rows, len(weight))) for at in range(0, len(weight), rows)]


def _add(
    weight: Tensor,
    source: Tensor,
    new: Factors | None,
    old: Factors | None,
    rows: slice,
    scratch: Tensor | None,
) -> None:
    """weight = source + new - old in these rows, with plain operators, in one pass over them."""
    sides = [(a, b[:, rows]) for a, b in filter(None, [new])]
    sides += [(a, -b[:, rows]) for a, b in filter(None, [old])]
    a = torch.cat([a for a, _ in sides]) if len(sides) > 1 else sides[0][0]
    b = torch.cat([b for _, b in sides]) if len(sides) > 1 else sides[0][1]
    target, source = weight.data[rows], source.data[rows]
    if scratch is None:
        torch.addmm(source, b.t(), a, out=target)
        return
    sums = scratch[: target.numel()].view(target.shape)
    torch.mm(b.t(), a, out=sums)
    sums += source
    target.copy_(sums)

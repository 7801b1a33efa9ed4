"""The decoding step in kernels of its own, and sampling behind it: no host between two tokens.

Contract. As a step of `ember.engine.step` (`step(tokens, position)` gives logits), and beyond it a
loop that lives on the device: `begin` once, then `sample` and `advance` in turn, of which each is
one CUDA graph; `transfer` brings what was sampled to the host without making the device wait.
Candidates read the KV of their prompt from its row, so that nothing has to be copied.

What each layer does: product (qkv) · attention, its parts merged · product (o, + residual) ·
product (gate and up, SiLU · up) · product (down, + residual). Norms are part of the products. From
17 rows on the products are the library's.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.cache.contiguous import ContiguousCache
from ember.engine.kernels.attention import Attention
from ember.engine.kernels.prefill import silu_mul
from ember.engine.kernels.products import (
    NORM_TILE,
    Normed,
    Plan,
    embed,
    matvec,
    skinny,
)
from ember.engine.kernels.sampling import Sampler
from ember.engine.packing import PackedDecoder
from ember.engine.sampling import SamplingParams, row_seed
from ember.model.architecture import Architecture
from ember.model.decoder import rotary_tables


class KernelStep:
    """A step over one packed decoder and one cache; see the module."""

    def __init__(self, arch: Architecture, weights: PackedDecoder, cache: ContiguousCache):
        kv = cache.kv
        rows, device, dtype = cache.batch, kv.device, kv.dtype
        self._arch, self._weights, self._kv = arch, weights, kv
        cos, sin = rotary_tables(arch, torch.arange(cache.capacity, device=device), torch.float32)
        self._cos, self._sin = cos[0, :, 0].contiguous(), sin[0, :, 0].contiguous()
        self._position = torch.zeros(rows, dtype=torch.int32, device=device)
        self._shared = torch.zeros(rows, dtype=torch.int32, device=device)
        self._tokens = torch.zeros(rows, dtype=torch.long, device=device)

        def buffer(width: int) -> Tensor:
            return torch.zeros(rows, width, dtype=dtype, device=device)

        heads, d = arch.num_heads, arch.head_dim
        self._x = buffer(arch.hidden_size)
        self._qkv = buffer((heads + 2 * arch.num_kv_heads) * d)
        self._attended = buffer(heads * d)
        self._acted = buffer(arch.intermediate_size)
        self.logits = buffer(arch.vocab_size)
        self._normed = Normed(rows, arch.hidden_size, dtype, device)
        self._sampler = Sampler(self.logits, self._tokens, self._position, cache.capacity)
        self._draws = {"noise": False, "cut": False, "ranked": False}
        self._attentions: dict[int, Attention] = {}
        self._prompts = rows
        self._use_graphs = False
        self._graphs: dict[tuple, torch.cuda.CUDAGraph] = {}
        self._pool = None
        # Dependent launches need Hopper or newer; the kernels run without them all the same.
        self._pdl = kv.is_cuda and torch.cuda.get_device_capability(device) >= (9, 0)

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        """Runs tokens (B,) at a position, every row on its own memory; returns logits (B, V)."""
        self._tokens.copy_(tokens)
        self._position.fill_(position)
        self._shared.zero_()
        self._prompts = len(tokens)
        self.advance()
        return self.logits

    def capture(self) -> None:
        """From now on everything runs as CUDA graphs, recorded when first used."""
        self._use_graphs = True

    def begin(
        self,
        logits: Tensor,
        sampling: SamplingParams,
        names: Sequence[tuple[int, int]],
        prompts: int,
        length: int,
    ) -> None:
        """Rows that have `length` tokens in the cache sample their first token from `logits`.

        Row r continues prompt r % prompts, whose KV lies in that row; `names` see `row_seed`.
        """
        sampler, rows = self._sampler, len(names)
        self.logits.copy_(logits)
        self.place(length, -1, prompts)  # `sample` moves on to where the new token goes
        sampler.steps.zero_()
        sampler.inverse.fill_(1.0 if sampling.greedy else 1 / sampling.temperature)
        sampler.noise.fill_(0.0 if sampling.greedy else 1.0)
        # Greedy takes the best, which no cut removes.
        cut = not sampling.greedy
        ranked = cut and (sampling.top_k > 0 or sampling.top_p < 1)
        self._draws = {
            "noise": cut,
            "ranked": ranked,
            "cut": ranked or (cut and sampling.min_p > 0),
        }
        sampler.top_k.fill_(sampling.top_k)
        sampler.top_p.fill_(sampling.top_p)
        sampler.min_p.fill_(sampling.min_p)
        if not ranked:
            sampler.keep_all()
        seeds = [row_seed(sampling.seed, *name) for name in names]
        sampler.seeds.copy_(torch.tensor(seeds[:rows], dtype=torch.int64))

    def place(self, prompt: int, own: int, prompts: int) -> None:
        """Every row has `own` tokens after a prompt of `prompt`: what a step would read next."""
        self._prompts = prompts
        self._shared.fill_(prompt)
        self._position.fill_(prompt + own)

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Bytes of weights that a step reads in each of its `parts`."""
        bytes_of = {
            name: sum(getattr(layer, name).nbytes for layer in self._weights.layers)
            for name in ("qkv", "o", "gate_up", "down")
        }
        return bytes_of | {"head": self._weights.head.nbytes}

    def sample(self) -> None:
        """Chooses each row's next token from the logits."""
        self._run(("sample", *self._draws.values()), lambda: self._sampler.run(**self._draws))

    def advance(self) -> None:
        """Runs the chosen tokens; their logits are the next to sample from."""
        self._run(("step", self._prompts), self._step)

    def sampled(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Tokens (stop - start, B) and log-probabilities of these steps, on the device."""
        return self._sampler.history[start:stop], self._sampler.logprobs[start:stop]

    def _run(self, name: tuple, call) -> None:
        if not self._use_graphs:
            call()
            return
        graph = self._graphs.get(name)
        if graph is None:
            graph = self._graphs[name] = self._record(call)
        graph.replay()

    def _record(self, call) -> torch.cuda.CUDAGraph:
        """A graph of the call, which is carried out once before, so that its kernels are compiled.

        What that overwrites and the replay reads is put back.
        """
        kept = (self.logits, self._tokens, self._position, self._sampler.steps)
        before = [tensor.clone() for tensor in kept]
        stream = torch.cuda.Stream(self._kv.device)
        stream.wait_stream(torch.cuda.current_stream(self._kv.device))
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream(self._kv.device).wait_stream(stream)
        for tensor, value in zip(kept, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            call()
        self._pool = graph.pool()
        return graph

    def parts(self) -> dict[str, Callable[[int], None]]:
        """The kernels of one layer, in order, by name: each call launches one for a layer.

        Before them `embed`, after them `head`, which take no heed of the layer.
        """
        rows = len(self._tokens)
        few = 1 < rows <= FEW_ROWS
        arch, weights, x, pdl = self._arch, self._weights, self._x, self._pdl
        layers, eps, normed = weights.layers, arch.norm_eps, self._normed
        norms = [layer.input_norm for layer in layers] + [weights.norm]
        if self._prompts not in self._attentions:
            self._attentions[self._prompts] = Attention(
                self._kv, arch.num_heads, self._prompts, self._cos, self._sin
            )
        attention = self._attentions[self._prompts]

        def product(source, weight, out, *, norm=None, residual=None, feeds=None, **options):
            """`norm`: of the input; `feeds`: the norm that the output goes through next."""
            options |= {"residual": residual, "eps": eps}
            if rows == 1:
                _matvec(source, weight, out, norm=norm, pdl=pdl, **options)
            elif few:
                source = source if norm is None else normed
                if feeds is not None:
                    options |= {"normed": normed, "next_norm": feeds}
                _skinny(source, weight, out, pdl=pdl, **options)
            else:
                _library(source, weight, out, norm=norm, **options)

        def embedding(_: int) -> None:
            if few:
                embed(self._tokens, weights.embedding, x, normed, norms[0], pdl=pdl)
            else:
                torch.index_select(weights.embedding, 0, self._tokens, out=x)

        def qkv(index: int) -> None:
            layer = layers[index]
            product(x, layer.qkv, self._qkv, norm=norms[index], bias=layer.qkv_bias)

        def attend(index: int) -> None:
            attention(
                index,
                self._qkv,
                None if weights.qk_norms is None else weights.qk_norms[index],
                self._position,
                self._shared,
                self._attended,
                eps=eps,
                pdl=pdl,
            )

        def o(index: int) -> None:
            layer = layers[index]
            product(
                self._attended, layer.o, x, residual=x, bias=layer.o_bias, feeds=layer.post_norm
            )

        def gate_up(index: int) -> None:
            layer = layers[index]
            product(
                *(x, layer.gate_up, self._acted),
                norm=layer.post_norm,
                bias=layer.gate_up_bias,
                gated=True,
            )

        def down(index: int) -> None:
            layer = layers[index]
            product(
                self._acted, layer.down, x, residual=x, bias=layer.down_bias, feeds=norms[index + 1]
            )

        def head(_: int) -> None:
            product(x, weights.head, self.logits, norm=weights.norm)

        return {
            "embed": embedding,
            "qkv": qkv,
            "attention": attend,
            "o": o,
            "gate_up": gate_up,
            "down": down,
            "head": head,
        }

    def _step(self) -> None:
        parts = self.parts()
        embedding, head = parts.pop("embed"), parts.pop("head")
        embedding(0)
        for index in range(len(self._weights.layers)):
            for part in parts.values():
                part(index)
        head(0)


FEW_ROWS = 16  # above, the library's products read the weights as fast


def matvec_plan(columns: int, *, gated: bool) -> Plan:
    """How a product of one row is cut; measured on an H200 (docs/engine.md)."""
    if columns > 8192:
        return Plan(rows=2, columns=512, ahead=5, warps=2)
    width = min(1024, _power(columns))
    return Plan(rows=2 if gated else 4, columns=width, ahead=3, warps=4)


def skinny_plan(columns: int, *, gated: bool) -> Plan:
    """How a product of few rows is cut; measured on an H200 (docs/engine.md)."""
    warps = 2 if gated else 4
    width = min(128, max(16, _power(columns) // warps))
    return Plan(rows=NORM_TILE, columns=width, ahead=3 if gated else 4, warps=warps)


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _matvec(x: Tensor, weight: Tensor, out: Tensor, *, gated: bool = False, **options) -> None:
    matvec(x, weight, out, plan=matvec_plan(weight.shape[1], gated=gated), gated=gated, **options)


def _skinny(x, weight: Tensor, out: Tensor, *, gated: bool = False, **options) -> None:
    plan = skinny_plan(weight.shape[1], gated=gated)
    skinny(x, weight, out, plan=plan, gated=gated, **options)


def _library(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    norm: Tensor | None,
    eps: float,
    residual: Tensor | None,
    bias: Tensor | None = None,
    gated: bool = False,
) -> None:
    """The same product by torch's operators."""
    if norm is not None:
        x = F.rms_norm(x, x.shape[1:], norm, eps)
    y = F.linear(x, weight, bias)
    if gated:
        y = silu_mul(y)
    if residual is None:
        out.copy_(y)
    else:
        torch.add(residual, y, out=out)

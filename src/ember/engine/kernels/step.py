"""The decoding step in kernels of its own, and sampling behind it: no host between two tokens.

Contract. As a step of `ember.engine.step` (`step(tokens, position)` gives logits), and beyond it a
loop that lives on the device: `begin` once, then `sample` and `advance` in turn, of which each is
one CUDA graph; `transfer` brings what was sampled to the host without making the device wait.
Candidates read the KV of their prompt from its row, so that nothing has to be copied.

What each layer does: product (qkv) · attention, its parts merged · product (o, + residual) ·
product (gate and up, SiLU · up) · product (down, + residual). Norms are part of the products.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.cache.contiguous import ContiguousCache
from ember.engine.kernels.attention import Attention
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
        self._prompts = prompts
        self._shared.fill_(length)
        self._position.fill_(length - 1)  # `sample` moves on to where the new token goes
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

    def sample(self) -> None:
        """Chooses each row's next token from the logits."""
        self._run(("sample", *self._draws.values()), lambda: self._sampler.run(**self._draws))

    def advance(self) -> None:
        """Runs the chosen tokens; their logits are the next to sample from."""
        prompts = self._prompts
        if prompts not in self._attentions:
            heads = self._arch.num_heads
            self._attentions[prompts] = Attention(self._kv, heads, prompts, self._cos, self._sin)
        self._run(("step", prompts), lambda: self._step(self._attentions[prompts]))

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

    def _step(self, attention: Attention) -> None:
        if len(self._tokens) == 1:
            self._step_one(attention)
        else:
            self._step_many(attention)

    def _step_one(self, attention: Attention) -> None:
        arch, weights, pdl = self._arch, self._weights, self._pdl
        x, eps = self._x, arch.norm_eps
        torch.index_select(weights.embedding, 0, self._tokens, out=x)
        for index, layer in enumerate(weights.layers):
            _matvec(
                *(x, layer.qkv, self._qkv),
                norm=layer.input_norm,
                eps=eps,
                bias=layer.qkv_bias,
                pdl=pdl,
            )
            self._attend(attention, index)
            _matvec(self._attended, layer.o, x, residual=x, bias=layer.o_bias, pdl=pdl)
            _matvec(
                *(x, layer.gate_up, self._acted),
                norm=layer.post_norm,
                eps=eps,
                bias=layer.gate_up_bias,
                gated=True,
                pdl=pdl,
            )
            _matvec(self._acted, layer.down, x, residual=x, bias=layer.down_bias, pdl=pdl)
        _matvec(x, weights.head, self.logits, norm=weights.norm, eps=eps, pdl=pdl)

    def _step_many(self, attention: Attention) -> None:
        arch, weights, pdl = self._arch, self._weights, self._pdl
        x, normed, eps = self._x, self._normed, arch.norm_eps
        shared = {"eps": eps, "pdl": pdl}
        feeds = {"residual": x, "normed": normed}
        embed(self._tokens, weights.embedding, x, normed, weights.layers[0].input_norm, pdl=pdl)
        following = [layer.input_norm for layer in weights.layers[1:]] + [weights.norm]
        for index, (layer, next_norm) in enumerate(zip(weights.layers, following, strict=True)):
            _skinny(normed, layer.qkv, self._qkv, bias=layer.qkv_bias, **shared)
            self._attend(attention, index)
            _skinny(
                *(self._attended, layer.o, x),
                bias=layer.o_bias,
                next_norm=layer.post_norm,
                **feeds,
                **shared,
            )
            _skinny(
                normed, layer.gate_up, self._acted, bias=layer.gate_up_bias, gated=True, **shared
            )
            _skinny(
                *(self._acted, layer.down, x),
                bias=layer.down_bias,
                next_norm=next_norm,
                **feeds,
                **shared,
            )
        _skinny(normed, weights.head, self.logits, **shared)

    def _attend(self, attention: Attention, layer: int) -> None:
        norms = self._weights.qk_norms
        attention(
            layer,
            self._qkv,
            None if norms is None else norms[layer],
            self._position,
            self._shared,
            self._attended,
            eps=self._arch.norm_eps,
            pdl=self._pdl,
        )


def matvec_plan(columns: int, *, gated: bool) -> Plan:
    """How a product of one row is cut; measured on an H200 (docs/engine.md)."""
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

"""A backend made by hand, and tokens forced through it: what its steps give, row by row."""

import contextlib

import torch

from ember.backends.base import Candidate
from ember.backends.forward import Forward, hand_over
from ember.backends.packing import PackedDecoder
from ember.backends.sampling import SamplingParams
from ember.backends.select import Case, make_backend, select
from ember.cache.contiguous import ContiguousCache
from ember.cache.slotted import SlottedCache

BACKENDS = ("compiled", "eager")  # on the CPU; the kernels need an interpreter


@torch.inference_mode()
def backend_of(name: str, decoder, *, rows: int = 4, capacity: int = 64, **options):
    """A backend with room for `rows` prompts and rows of up to `capacity` tokens each."""
    weight = decoder.embed_tokens.weight
    options = {"batch_invariant": False} | options
    select(Case.of(decoder, rows=rows, batch_invariant=options["batch_invariant"]), name)
    packed = PackedDecoder(decoder, laid=True) if name == "kernels" else None
    like = {"device": weight.device, "dtype": weight.dtype}
    memory = ContiguousCache(decoder.arch, 1, capacity, **like) if packed else None
    cache = SlottedCache(
        decoder.arch,
        prompt_tokens=rows * capacity,
        rows=rows,
        row_tokens=capacity,
        **like,
    )
    return make_backend(
        name,
        decoder,
        cache,
        capacity=capacity,
        forward=Forward(decoder, weights=packed, memory=memory),
        **options,
    )


@torch.inference_mode()
def add(backend, prompt: torch.Tensor, candidates: int = 1, params=None) -> torch.Tensor:
    """Prefills a prompt (T,) and lets candidates of it join; its last logits (1, V)."""
    run = backend.cache.reserve(len(prompt))
    memory = backend.forward.place(backend.cache.view(run))
    logits = backend.forward(prompt[None], memory)
    hand_over(memory, backend.cache.view(run))
    params = params or SamplingParams(max_tokens=64)
    backend.join([Candidate(run, params, seed) for seed in range(candidates)], logits)
    return logits


@torch.inference_mode()
def force(backend, tokens: torch.Tensor) -> torch.Tensor:
    """Runs tokens (B,) as if the rows had chosen them; their logits (B, V)."""
    backend.sample()
    backend.tokens.copy_(tokens)
    backend.advance()
    backend.receive()
    return backend.logits.clone()


def step_through(backend, tokens: torch.Tensor, prefilled: int) -> torch.Tensor:
    """Logits (T - prefilled + 1, B, V) of a prefill row by row and of single steps after it."""
    found = [torch.cat([add(backend, row[:prefilled]) for row in tokens])]
    found += [force(backend, tokens[:, at]) for at in range(prefilled, tokens.shape[1])]
    return torch.stack([logits.to(found[0].dtype) for logits in found])


@contextlib.contextmanager
def threads(number: int):
    """A block with so many of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)

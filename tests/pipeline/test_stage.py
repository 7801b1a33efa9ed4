"""A stage in this process: two of them, hand to hand, are the decoder; each form is the same."""

import pytest
import torch

from ember.backends.sampling import SamplingParams
from ember.pipeline.stage import make_stage, take_layers
from tests.tiny import ARCHITECTURES, wild


def make(family: str):
    return wild(family, head_dim=32, vocab_size=67, max_positions=64)


@torch.inference_mode()
def generate(decoder, tokens, split: int, steps: int, pieces=(), backend=None):
    """Logits after the prompt and after every step, by two stages; and the tokens chosen."""
    rows, length = tokens.shape
    layers = decoder.arch.num_layers
    first, last = (
        make_stage(take_layers(decoder, part), rows, length + steps, backend=backend, **ends)
        for part, ends in (
            (range(split), {"first": True, "last": False}),
            (range(split, layers), {"first": False, "last": True}),
        )
    )
    for stage in (first, last):
        stage.begin(SamplingParams(max_tokens=steps + 1), [(row, 0) for row in range(rows)])
    logits, parts = None, tokens.split(list(pieces) or [length], 1)
    for number, piece in enumerate(parts):
        ends = number == len(parts) - 1
        logits = last.prefill(first.prefill(piece, ends=ends), ends=ends)
        assert (logits is not None) == ends
    seen = [logits.clone()]
    last.sample(logits)
    for _ in range(steps):
        first.tokens.copy_(last.tokens)
        last.inbox.copy_(first.decode())
        logits = last.decode()
        seen.append(logits.clone())
        last.sample(logits)
    sampled, logprobs = last.sampled()
    assert all(len(row) == steps + 1 for row in logprobs)
    return torch.stack(seen, 1), torch.tensor(sampled), (first.backend, last.backend)


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize(("rows", "split"), [(1, 1), (3, 2)])
@torch.inference_mode()
def test_two_stages_are_the_decoder(family, rows, split):
    decoder = make(family)
    tokens = torch.randint(67, (rows, 6), generator=torch.Generator().manual_seed(2))
    found, sampled, forms = generate(decoder, tokens, split, steps=3, pieces=(4, 2))
    assert forms == ("compiled", "compiled")
    expected = decoder.logits(decoder(torch.cat([tokens, sampled[:, :-1]], 1)))[:, 5:]
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    assert torch.equal(sampled, expected.argmax(-1))
    eager, again, _ = generate(decoder, tokens, split, steps=3, backend="eager")
    torch.testing.assert_close(eager, expected, atol=2e-4, rtol=1e-4)
    assert torch.equal(again, sampled)


def test_a_part_shares_the_weights_and_leaves_the_decoder_alone():
    decoder = make("qwen3")
    part = take_layers(decoder, range(1, 3))
    assert [len(part.layers), part.arch.num_layers] == [2, 2]
    assert [len(decoder.layers), decoder.arch.num_layers] == [3, 3]
    assert part.layers[0].mlp.up_proj.weight is decoder.layers[1].mlp.up_proj.weight


@pytest.mark.parametrize("interpreted", ["interpreted_stage.py"], indirect=True)
def test_two_stages_in_kernels_are_the_decoder(interpreted):
    assert interpreted.returncode == 0, interpreted.stdout

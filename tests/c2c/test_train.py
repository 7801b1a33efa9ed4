"""Training in the world: resumable, function-preserving outliers, and the easy world as a test of
the whole mechanism."""

import pytest
import torch
import torch.nn.functional as F

from ember.c2c.evaluate import Item, evaluate
from ember.c2c.fuse import fuse
from ember.c2c.fuser import Fuser, FuserShape, layer_map
from ember.c2c.pair import Pair, Reader, load_reader, read, save_reader, share
from ember.c2c.train import Fusing, Lookup, Recipe, inject_outliers
from ember.c2c.world import renamed
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder
from ember.optim.loop import run
from tests.c2c import small

RECIPE = Recipe(steps=6, batch_size=4, questions=3, learning_rate=5e-3, warmup_steps=1, seed=1)


def tasks() -> dict:
    pair = small.pair(opened=False)
    reader = small.reader(small.RECEIVER, 5).requires_grad_(True)
    names = renamed(small.WORLD, 1)
    fusing = Fusing(
        pair.sharer,
        pair.receiver,
        pair.fuser.requires_grad_(True),
        small.WORLD,
        RECIPE,
        names=names,
    )
    return {"lookup": Lookup(reader, small.WORLD, "receiver", RECIPE), "fusing": fusing}


@pytest.mark.parametrize("name", ["lookup", "fusing"])
def test_a_resumed_training_ends_with_the_same_weights(name, tmp_path):
    whole, parts = tasks()[name], tasks()[name]
    rows = run(whole, 6, log_every=1)
    run(parts, 3, log_every=1, state=tmp_path / "state.pt", key="k")
    again = tasks()[name]
    resumed = run(again, 6, log_every=1, state=tmp_path / "state.pt", key="k")
    assert [row["loss"] for row in resumed] == [row["loss"] for row in rows]
    for key, value in whole.state_dict()["model"].items():
        assert torch.equal(again.state_dict()["model"][key], value), key


@pytest.mark.parametrize("name", ["lookup", "fusing"])
def test_training_in_mixed_precision_is_training(name):
    """As on a GPU: float32 weights, bfloat16 products."""
    plain, mixed = tasks()[name], tasks()[name]
    mixed.autocast = torch.bfloat16
    for number in range(3):
        expected, found = plain.step(number), mixed.step(number)
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.03)


def test_the_curriculum_ends_when_enough_is_right():
    task = tasks()["lookup"]
    assert task.easy
    task.right = 1.0
    task.step(0)
    assert not task.easy
    assert task.step(1)["easy"] == 0.0


def test_models_stay_as_they_are_while_the_fuser_learns():
    task = tasks()["fusing"]
    before = [p.clone() for p in (*task.sharer.parameters(), *task.receiver.parameters())]
    fuser = [p.clone() for p in task.module.parameters()]
    run(task, 6, log_every=6)
    after = [*task.sharer.parameters(), *task.receiver.parameters()]
    assert all(map(torch.equal, before, after))
    assert not any(map(torch.equal, fuser, task.module.parameters()))


def test_outliers_change_keys_and_values_and_not_the_function():
    reader, tokens = small.reader(small.SHARER, 1), torch.arange(12)[None]
    plain, cache = reader(tokens), read(reader, tokens, False)
    inject_outliers(reader, 16.0)
    with_outliers, other = reader(tokens), read(reader, tokens, False)
    assert torch.equal(plain, with_outliers)
    for (k, v), (big_k, big_v) in zip(cache.kv, other.kv, strict=True):
        for before, after, channels in ((k, big_k, [3, 7]), (v, big_v, [2])):
            ratio = (after / before).flatten(0, 2).median(0).values
            expected = torch.ones(8)
            expected[channels] = 16.0
            torch.testing.assert_close(ratio, expected)


def test_outliers_are_refused_where_a_norm_would_undo_them():
    with pytest.raises(ValueError, match="without qk-norm"):
        inject_outliers(small.reader(small.RECEIVER, 1), 16.0)


@pytest.mark.parametrize("smear", [True, False])
def test_a_reader_comes_back(tmp_path, smear):
    reader, tokens = small.reader(small.SHARER, 1, smear), torch.arange(9)[None]
    save_reader(reader, tmp_path / "model", {"role": "sharer"})
    found = load_reader(tmp_path / "model", "cpu", torch.float32)
    assert torch.equal(found(tokens), reader(tokens))
    assert (found.smear is not None) == smear


# The easy world: facts that the sharer has memorised; the passage is the question itself.
ENTITIES, RELATIONS, VALUES = 96, 2, 8
FIRST_VALUE = ENTITIES + RELATIONS
ASK, ANSWER = FIRST_VALUE + VALUES, FIRST_VALUE + VALUES + 1


def facts() -> tuple[torch.Tensor, torch.Tensor]:
    """Questions (N, 3) `Q e r`, and their values (N,)."""
    pairs = torch.cartesian_prod(torch.arange(ENTITIES), torch.arange(RELATIONS))
    values = torch.randint(VALUES, (len(pairs),), generator=torch.Generator().manual_seed(0))
    marks = torch.full((len(pairs), 1), ASK)
    return torch.cat([marks, pairs + torch.tensor([0, ENTITIES])], 1), values + FIRST_VALUE


def easy_reader(fields: dict, seed: int) -> Reader:
    sizes = small.SIZES | {"hidden_size": 32, "vocab_size": ANSWER + 1}
    return Reader(random_decoder(Architecture.make(**sizes | fields), seed))


def easy_items() -> list[Item]:
    asked, values = facts()
    choices = tuple(range(FIRST_VALUE, FIRST_VALUE + VALUES))
    return [
        Item(
            *(number, number, "sharer_only", tuple(question), (tuple(question), (ANSWER,))),
            fused=(True, False),
            index=(0, 1, 2),
            instruction=(True,) * 3,
            choices=choices,
            right=right,
        )
        for number, (question, right) in enumerate(
            zip(asked.tolist(), values.tolist(), strict=True)
        )
    ]


@pytest.mark.slow
def test_the_mechanism_in_the_easy_world():
    """What the sharer memorised crosses the cache, as no fuser that learns answers by heart could
    show: of facts that only the sharer knows and the fuser never saw, C2C answers most, the
    receiver alone and the controls no more than by chance (1 of 8)."""
    torch.manual_seed(0)
    asked, values = facts()
    prompts = torch.cat([asked, torch.full((len(asked), 1), ANSWER)], 1)
    sharer, receiver = easy_reader(small.SHARER, 1), easy_reader(small.RECEIVER, 2)
    for reader, known in ((sharer, 1), (receiver, 2)):  # each fact, every other fact
        optimizer = torch.optim.AdamW(reader.parameters(), lr=5e-3)
        for _ in range(200):
            target = torch.randint_like(values, FIRST_VALUE, ASK)
            target[::known] = values[::known]
            # At the relation too: what is known of a fact then lies in the passage's cache.
            logits = reader.decoder.logits(reader(prompts)[:, -2:])
            F.cross_entropy(logits.mT, target[:, None].expand(-1, 2)).backward()
            optimizer.step()
            optimizer.zero_grad()
        reader.eval().requires_grad_(False)
    fuser = Fuser(
        FuserShape.of(sharer.arch, receiver.arch, 32),
        layer_map("last", sharer.arch.num_layers, receiver.arch.num_layers),
    )
    seen = torch.arange(len(asked)) % 8 < 4
    index = torch.arange(3).expand(int(seen.sum()), 3)
    source = share(sharer, asked[seen], index, tuple(sorted(set(fuser.sources))), rotated=True)
    logits = {"params": [p for p in fuser.parameters() if p.ndim == 0], "lr": 0.05}
    others = {"params": [p for p in fuser.parameters() if p.ndim], "lr": 3e-3}
    optimizer = torch.optim.AdamW([logits, others])
    for step in range(300):
        cache = read(receiver, asked[seen], True)
        gates = [[1.0, 1.0]] * len(fuser) if step < 150 else fuser.soft_gates(0.1, len(index), 3)
        own = cache.section(0, 3)
        cache.replace(0, fuse(fuser, own, source, torch.ones_like(source.tokens), gates=gates))
        hidden = receiver.embed(prompts[seen, 3:])
        logits = receiver.decoder.logits(receiver.decoder(hidden=hidden, cache=cache)[:, -1])
        F.cross_entropy(logits, values[seen]).backward()
        optimizer.step()
        optimizer.zero_grad()
    pair, items = Pair(sharer, receiver, fuser.requires_grad_(False)), easy_items()
    known = torch.arange(len(items)) % 2 == 0

    def share_right(facts: torch.Tensor, source: str) -> float:
        correct = torch.tensor([row["correct"] for row in evaluate(pair, items, source=source)])
        return float(correct[facts].float().mean())

    assert share_right(known, "none") >= 0.95
    assert share_right(~known & ~seen, "own") >= 0.65
    for source in ("none", "shuffled", "zero"):
        assert share_right(~known & ~seen, source) <= 0.35, source

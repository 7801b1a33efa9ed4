"""Mutated configs, indexes, adapters and headers: no traceback, no wait, no large allocation.

Each mutation must give an architecture, an adapter or one short `EmberError`. Every parser runs in
this process on small valid files whose bytes or parsed values are changed by a seeded generator.
"""

import copy
import json
import random
import signal
import time
import tracemalloc

import pytest
import torch

from ember.lora.peft import CONFIG as ADAPTER_CONFIG
from ember.lora.peft import WEIGHTS as ADAPTER_WEIGHTS
from ember.lora.peft import load_adapter, save_adapter
from ember.model.architecture import Architecture
from ember.model.checkpoint import load_decoder, save_decoder
from ember.model.folder import (
    CONFIG,
    INDEX,
    KIND,
    WEIGHTS,
    check_unchanged,
    eos_token_ids,
    weight_files,
)
from ember.model.presets import PRESETS
from ember.records.errors import EmberError
from ember.records.foreign import Fields, parse, read_object
from ember.text.tokenizer import load_tokenizer, save_tokenizer, train_bpe
from tests.lora.adapters import adapter_of
from tests.tiny import wild

CONFIGS = 70_000  # mutations of configs, parsed alone
FILES = 4_000  # of each of the other files, read from disk
HEADERS = 2_000  # of weight files
ALLOCATED = 64 << 20  # bytes that reading a small file may take
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 8, 64, 1.5, -0.0, 1e-300, 1e300, 2**31, 2**63),
    *(10**9, 10**400, "", "1", "x", "full_attention", "llama3", "yarn", "\ud800", "\0", "../../x"),
    *("x" * 5000, "a\nb", [], [1], ["x"], {}, {"x": 1}, [[[[]]]], {"a": {"b": {}}}, [None]),
    *([10**400], ["\n"] * 100),
]
TEXTS = [b"NaN", b"1e400", b"-Infinity", b"[" * 3000, b'{"a":' * 3000, b"null", b"\xff", b'"']


def mutated(value, chance: random.Random):
    """A copy of parsed JSON in which something, anywhere, is another."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        places = [(value, key) for key in (value if isinstance(value, dict) else ())]
        for place in places:
            inner = place[0][place[1]]
            if isinstance(inner, dict) and len(places) < 100:
                places.extend((inner, key) for key in inner)
            elif isinstance(inner, list) and inner and len(places) < 100:
                places.extend((inner, at) for at in range(len(inner)))
        if not places:
            return chance.choice(VALUES)
        holder, key = chance.choice(places)
        kind = chance.random()
        if kind < 0.15 and isinstance(holder, dict):
            del holder[key]
        elif kind < 0.3 and isinstance(holder, dict):
            holder[chance.choice(list(map(str, KEYS)))] = copy.deepcopy(chance.choice(VALUES))
        elif kind < 0.5 and isinstance(holder[key], int | float):
            number = holder[key]
            holder[key] = chance.choice((-number, 2 * number, 10**6 * number, 0.5, str(number)))
        else:
            holder[key] = copy.deepcopy(chance.choice(VALUES))
    return value


KEYS = [
    *("rope_scaling", "rope_parameters", "layer_types", "rank_pattern", "alpha_pattern", "a", ""),
    *("use_sliding_window", "sliding_window_pattern", "partial_rotary_factor", "full_attention"),
    *("original_max_position_embeddings", "weights", "files", "eos_token", "use_dora", "r"),
]


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """A copy of a file in which bytes are others, are gone, or are there twice."""
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(content) + 1)
        stop = min(len(content), at + chance.choice((1, 1, 4, 60)))
        content[at:stop] = chance.choice(
            (b"", bytes(content[at:stop]) * 2, chance.randbytes(1), chance.choice(TEXTS))
        )
    return bytes(content)


def attempt(read, *arguments):
    """What reading gives; an `EmberError` must be short and be printable."""
    try:
        return read(*arguments)
    except EmberError as error:
        found = error
    message = str(found)
    message.encode()
    if len(message.splitlines()) != 2 or len(message) > 1500:
        pytest.fail(f"not a short message: {message}")
    return found


@pytest.fixture(autouse=True)
def no_wait():
    """A parser that hangs is stopped."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a parser hangs"))
    signal.alarm(180)
    yield
    signal.alarm(0)


class Watch:
    """The largest allocation of a sample of calls, and the longest call."""

    def __init__(self, every: int):
        self.every, self.calls, self.longest = every, 0, 0.0

    def __call__(self, read, *arguments):
        self.calls += 1
        if self.calls % self.every:
            started = time.perf_counter()
            found = attempt(read, *arguments)
            self.longest = max(self.longest, time.perf_counter() - started)
            return found
        tracemalloc.start()
        try:
            found = attempt(read, *arguments)
            assert tracemalloc.get_traced_memory()[1] < ALLOCATED
            return found
        finally:
            tracemalloc.stop()


def test_mutated_configs():
    """Parsed values, as `config.json` of each family may hold them."""
    chance, watch, accepted = random.Random(1), Watch(200), 0
    valid = [Architecture.make(name).to_hf() for name in PRESETS]
    for number in range(CONFIGS):
        config = mutated(valid[number % len(valid)], chance)
        if not isinstance(config, dict):
            continue
        fields = Fields(config, "config.json", EmberError, "Take a complete copy.")
        found = watch(Architecture.from_hf, fields)
        accepted += isinstance(found, Architecture)
        if isinstance(found, Architecture):
            attempt(found.to_hf)
    assert 0.05 * CONFIGS < accepted < 0.9 * CONFIGS
    assert watch.longest < 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    decoder = wild(tie_embeddings=True)
    save_decoder(decoder, folder / "model")
    save_decoder(decoder, folder / "sharded")
    (folder / "sharded" / WEIGHTS).rename(folder / "sharded" / "shard.safetensors")
    names = ("model.norm.weight", "model.embed_tokens.weight")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "shard.safetensors")}
    (folder / "sharded" / INDEX).write_text(json.dumps(index))
    save_adapter(adapter_of(decoder), folder / "adapter", arch=decoder.arch)
    save_tokenizer(train_bpe(["the quick brown fox"] * 3, 270), folder / "model")
    (folder / "model" / "provenance.json").write_text('{"files": {"config.json": "aa"}}')
    (folder / "model" / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    return folder


def test_mutated_bytes_of_configs(folder):
    chance, watch = random.Random(2), Watch(200)
    path = folder / "model" / CONFIG
    whole = path.read_bytes()
    for _ in range(CONFIGS // 5):
        content = mutated_bytes(whole, chance)

        def read(content=content):
            value = parse(content)
            return isinstance(value, dict) and Architecture.from_hf(value)

        try:
            watch(read)
        except ValueError:  # what parse raises, and read_object explains
            continue
    assert watch.longest < 5


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (f"sharded/{INDEX}", lambda folder: weight_files(folder / "sharded")),
        (f"model/{KIND}", lambda folder: check_unchanged(folder / "model")),
        ("model/provenance.json", lambda folder: check_unchanged(folder / "model")),
        ("model/generation_config.json", lambda folder: eos_token_ids(folder / "model")),
        (f"adapter/{ADAPTER_CONFIG}", lambda folder: load_adapter(folder / "adapter")),
        ("model/tokenizer_config.json", lambda folder: load_tokenizer(folder / "model")),
    ],
    ids=["index", "kind", "provenance", "generation", "adapter", "tokenizer"],
)
def test_mutated_files(folder, name, read):
    chance, watch, path = random.Random(3), Watch(100), folder / name
    whole = path.read_bytes()
    value = json.loads(whole)
    try:
        for number in range(FILES):
            if number % 2:
                content = mutated_bytes(whole, chance)
            else:
                content = json.dumps(mutated(value, chance)).encode()
            path.write_bytes(content)
            watch(read, folder)
    finally:
        path.write_bytes(whole)
    assert not isinstance(attempt(read_object, path, EmberError, ""), EmberError)
    assert watch.longest < 5


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (f"model/{WEIGHTS}", lambda folder: load_decoder(folder / "model")),
        (f"adapter/{ADAPTER_WEIGHTS}", lambda folder: load_adapter(folder / "adapter")),
    ],
    ids=["model", "adapter"],
)
def test_mutated_headers_of_weights(folder, name, read):
    (folder / "model" / "provenance.json").unlink(missing_ok=True)
    chance, watch, path = random.Random(4), Watch(50), folder / name
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:length])
    try:
        for number in range(HEADERS):
            if number % 2:
                changed = mutated_bytes(whole[:length], chance)
            else:
                text = json.dumps(mutated(header, chance)).encode()
                changed = len(text).to_bytes(8, "little") + text
            path.write_bytes(changed + whole[length:])
            with torch.no_grad():
                watch(read, folder)
    finally:
        path.write_bytes(whole)
    assert watch.longest < 5

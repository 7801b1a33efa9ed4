"""Published shapes by name: fields of an architecture, from the models' config.json.

A preset is one entry of `PRESETS`; `Architecture.make` takes its name. What its family fixes or
usually has need not be said here.
"""

from functools import partial

from ember.model.rope import BadArchitecture, RopeScaling
from ember.records.errors import nearest

PRESETS: dict[str, dict] = {}


def register(name: str, model_type: str, **fields) -> None:
    """Makes a shape known by name."""
    PRESETS[name] = {"model_type": model_type} | fields


def preset_fields(name: str) -> dict:
    """The fields of a preset. Raises `BadArchitecture` with the nearest name that there is."""
    if name not in PRESETS:
        raise BadArchitecture(
            f"unknown preset {name!r}.{nearest(name, PRESETS)}\n"
            f"Known presets: {', '.join(sorted(PRESETS))}."
        )
    return dict(PRESETS[name])


_qwen3 = partial(
    register,
    model_type="qwen3",
    num_kv_heads=8,
    head_dim=128,
    vocab_size=151936,
    max_positions=40960,
    rope_theta=1e6,
    tie_embeddings=True,
    bos_token_id=151643,
    eos_token_id=151645,
)
_gemma3 = partial(
    register,
    model_type="gemma3_text",
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    vocab_size=262144,
    max_positions=32768,
    bos_token_id=2,
)


def _pythia(name: str, num_heads: int, **sizes) -> None:
    shared = {"vocab_size": 50304, "max_positions": 2048, "bos_token_id": 0, "eos_token_id": 0}
    register(name, "gpt_neox", num_heads=num_heads, num_kv_heads=num_heads, **shared, **sizes)


_qwen3("qwen3-0.6b", hidden_size=1024, intermediate_size=3072, num_layers=28, num_heads=16)
_qwen3("qwen3-1.7b", hidden_size=2048, intermediate_size=6144, num_layers=28, num_heads=16)
_qwen3("qwen3-4b", hidden_size=2560, intermediate_size=9728, num_layers=36, num_heads=32)
_qwen3(
    "qwen3-8b",
    hidden_size=4096,
    intermediate_size=12288,
    num_layers=36,
    num_heads=32,
    tie_embeddings=False,
)
register(
    "qwen2.5-0.5b",
    "qwen2",
    hidden_size=896,
    intermediate_size=4864,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=151936,
    max_positions=32768,
    rope_theta=1e6,
    tie_embeddings=True,
    bos_token_id=151643,
    eos_token_id=151643,
)
register(
    "llama-3.2-1b",
    "llama",
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    vocab_size=128256,
    max_positions=131072,
    norm_eps=1e-5,
    rope_theta=5e5,
    rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
    tie_embeddings=True,
    bos_token_id=128000,
    eos_token_id=128001,
)
_gemma3("gemma-3-270m", hidden_size=640, intermediate_size=2048, num_layers=18, eos_token_id=1)
_gemma3(
    "gemma-3-1b", hidden_size=1152, intermediate_size=6912, num_layers=26, eos_token_id=(1, 106)
)
_pythia("pythia-160m", 12, hidden_size=768, intermediate_size=3072, num_layers=12, head_dim=64)
_pythia("pythia-2.8b", 32, hidden_size=2560, intermediate_size=10240, num_layers=32, head_dim=80)

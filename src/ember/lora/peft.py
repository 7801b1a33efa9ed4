"""Adapters in PEFT's format: `adapter_config.json` beside `adapter_model.safetensors` (P1-3.1).

Contract. `load_adapter` reads what PEFT writes for LoRA on linear layers and refuses what it would
not reproduce, before anything changes. What `save_adapter` writes, PEFT loads with equal logits.
PEFT itself is not imported.
"""

import json
import re
from dataclasses import dataclass
from math import inf, nextafter
from pathlib import Path

import torch

from ember.lora.adapter import ATTENTION, MLP, Adapter, BadAdapter, Key, LowRank
from ember.model.architecture import Architecture
from ember.model.folder import FORMATS, open_weights
from ember.records.atomic import atomic_dir
from ember.records.foreign import read_object, shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
REMEDY = "Give a folder in PEFT's format, or save or copy the adapter again."

_TENSOR = re.compile(
    r"base_model\.model\.model\.(?P<module>layers\.(?P<layer>0|[1-9]\d{0,5})\."
    rf"(?:self_attn\.(?P<attention>{'|'.join(ATTENTION)})|mlp\.(?P<mlp>{'|'.join(MLP)})))"
    r"\.lora_(?P<factor>[AB])\.weight"
)
# Options that do not change what a saved adapter computes.
_HARMLESS = {
    *("auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type"),
    *("inference_mode", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "megatron_core", "qalora_group_size", "eva_config", "corda_config"),
    *("lora_ga_config", "loftq_config", "runtime_config", "ensure_weight_tying"),
}
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"}
# Initialisations after which the base's weights are no longer the checkpoint's.
_MOVES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


def load_adapter(folder: str | Path, *, scale: float = 1.0) -> Adapter:
    """The adapter of a folder that PEFT (or `save_adapter`) wrote, in float32 on the CPU.

    `scale` multiplies the adapter's own scaling (alpha / r, or alpha / sqrt(r) with rslora). Raises
    BadAdapter for missing or truncated files, options that are not supported, ranks other than the
    configuration's, and values that are not finite.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    parts = {}
    for (layer, name), pair in _read_factors(folder / WEIGHTS).items():
        module = _path(layer, name)
        if missing := {"A", "B"} - set(pair):
            raise BadAdapter(
                f"{folder / WEIGHTS} has no lora_{missing.pop()} of {module}.\n"
                "Save or copy the adapter again."
            )
        rank = _of_module(config.ranks, module, config.rank)
        if pair["A"].shape[0] != rank or pair["B"].shape[-1] != rank:
            raise BadAdapter(
                f"{folder}: {module} has A {tuple(pair['A'].shape)} and B "
                f"{tuple(pair['B'].shape)}, but {CONFIG} gives it rank {rank} "
                "(r, or its entry in rank_pattern).\nSave the adapter again, or correct that."
            )
        alpha = _of_module(config.alphas, module, config.alpha)
        own = alpha / (rank**0.5 if config.rslora else rank)
        parts[layer, name] = LowRank(pair["A"].float(), pair["B"].float(), own * scale)
    return Adapter(parts, folder.name or str(folder))


def save_adapter(
    adapter: Adapter,
    folder: str | Path,
    *,
    arch: Architecture,
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes an adapter so that PEFT loads it over the Transformers model of `arch`.

    `base`: name or path of the base model, for whoever loads it. Ranks and scalings that differ
    between modules go into rank_pattern and alpha_pattern.
    """
    from safetensors.torch import save_file

    unknown = sorted({name for _, name in adapter} - {*ATTENTION, *MLP})
    if unknown or arch.model_type == "gpt_neox":
        raise BadAdapter(
            f"adapter {adapter.name}: projections {', '.join(unknown or adapter.projections)} of a "
            f"{arch.model_type} have no counterpart in Transformers' model.\n"
            "Save adapters of q, k, v, o, gate, up and down projections."
        )
    paths = {(layer, name): _path(layer, name) for layer, name in adapter}
    rank = adapter.rank
    alphas = {key: _alpha(part) for key, part in adapter.items()}
    alpha = next(alphas[key] for key, part in adapter.items() if part.rank == rank)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": False,
        "target_modules": _targets(adapter, arch.num_layers),
        "rank_pattern": {paths[k]: p.rank for k, p in adapter.items() if p.rank != rank},
        "alpha_pattern": {paths[k]: alphas[k] for k in adapter if alphas[k] != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
    }
    state = {}
    for key, part in adapter.items():
        for factor, tensor in (("A", part.a), ("B", part.b)):
            stem = f"base_model.model.model.{paths[key]}"
            # A clone: the format refuses tensors that share memory.
            state[f"{stem}.lora_{factor}.weight"] = tensor.detach().to("cpu", dtype).clone()
    with atomic_dir(Path(folder)) as part:
        (part / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_file(state, part / WEIGHTS, metadata={"format": "pt"})
    return Path(folder)


@dataclass(frozen=True)
class _Config:
    """What a configuration says of ranks and scalings."""

    rank: int
    alpha: float
    rslora: bool
    ranks: dict[str, int]
    alphas: dict[str, float]


def _read_config(path: Path) -> _Config:
    """The configuration with defaults, checked option by option."""
    config = read_object(path, BadAdapter, REMEDY)
    if (kind := config.get("peft_type", str, None)) != "LORA":
        raise BadAdapter(
            f"{path} describes an adapter of type {shown(kind)}.\nOnly LORA can be loaded here."
        )
    if (bias := config.get("bias", str, "none")) != "none":
        raise BadAdapter(
            f"{path}: bias is {shown(bias)}, and trained biases are not loaded.\n"
            "Train with bias 'none'."
        )
    init = config.content.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_MOVES_BASE):
        raise BadAdapter(
            f"{path}: init_lora_weights {shown(init)} changed the base model's weights too.\n"
            "Save it with PEFT's path_initial_model_for_weight_conversion, which makes it plain."
        )
    for option, value in config.items():
        if option not in _HARMLESS | _READ | {"init_lora_weights"} and value:
            raise BadAdapter(
                f"{path}: option {shown(option)} = {shown(value)} is not supported.\n"
                "Train and save the adapter without it, or merge it with PEFT."
            )
    ranks, alphas = config.object("rank_pattern"), config.object("alpha_pattern")
    for pattern in (*ranks, *alphas):
        _check_pattern(path, pattern)
    return _Config(
        rank=config.get("r", int, 8, low=1),
        alpha=config.get("lora_alpha", float, 8.0),
        rslora=config.get("use_rslora", bool, False),
        ranks=ranks.values_of(int, low=1),
        alphas=alphas.values_of(float),
    )


def _check_pattern(path: Path, pattern: str) -> None:
    """Refuses what is no regular expression, or one that could take for ever to match."""
    repeats = len(re.findall(r"[*+?{]", pattern))
    if len(pattern) > 1000 or repeats > 4 or re.search(r"\)[*+?{]|\\[1-9]", pattern):
        raise BadAdapter(
            f"{path}: the pattern {shown(pattern)} repeats groups, or repeats too often.\n"
            "Name the modules in rank_pattern or alpha_pattern more plainly."
        )
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadAdapter(
            f"{path}: {shown(pattern)} is no regular expression ({error}).\n"
            "Correct rank_pattern or alpha_pattern."
        ) from None


def _read_factors(path: Path) -> dict[Key, dict[str, torch.Tensor]]:
    """A and B by layer and projection. A tensor of any other module is refused by name.

    PEFT would leave it out without a word, and the adapter would do less than it was trained to.
    """
    found: dict[Key, dict[str, torch.Tensor]] = {}
    with open_weights(path, "pt", BadAdapter, REMEDY) as stream:
        for name in sorted(stream.keys()):
            match = _TENSOR.fullmatch(name)
            if match is None:
                raise BadAdapter(
                    f"{path} holds {shown(name)}, which is no factor of a linear layer of a text "
                    "model.\nOnly LoRA on the projections of attention and MLP is supported."
                )
            if (kind := stream.get_slice(name).get_dtype()) not in FORMATS:
                raise BadAdapter(
                    f"{path}: {name} is {kind}.\nSave the adapter in float32, bfloat16 or float16."
                )
            tensor = stream.get_tensor(name)
            if tensor.ndim != 2:
                raise BadAdapter(
                    f"{path}: {name} has shape {tuple(tensor.shape)}, a factor is a matrix.\n"
                    "Save the adapter again."
                )
            key = int(match["layer"]), match["attention"] or match["mlp"]
            found.setdefault(key, {})[match["factor"]] = tensor
    return found


def _of_module(patterns: dict, module: str, default):
    """The entry of the first pattern that matches the end of a module's name."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", f"model.{module}"):
            return value
    return default


def _path(layer: int, name: str) -> str:
    return f"layers.{layer}.{'mlp' if name in MLP else 'self_attn'}.{name}"


def _targets(adapter: Adapter, num_layers: int) -> list[str]:
    """Names of projections where all layers have them, else every module by its path."""
    every = {(layer, name) for layer in range(num_layers) for name in adapter.projections}
    if every == set(adapter):
        return list(adapter.projections)
    return [f"model.{_path(layer, name)}" for layer, name in adapter]


def _alpha(part: LowRank) -> float:
    """alpha for which alpha / rank is the scale, to the last bit where a float exists."""
    alpha = part.scale * part.rank
    for candidate in (alpha, nextafter(alpha, inf), nextafter(alpha, -inf)):
        if candidate / part.rank == part.scale:
            alpha = candidate
            break
    return int(alpha) if float(alpha).is_integer() else alpha

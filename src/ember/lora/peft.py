"""Adapters in PEFT's format: `adapter_config.json` beside `adapter_model.safetensors` (P1-3.1).

Contract. `load_adapter` reads what PEFT writes for LoRA on linear layers and refuses what it would
not reproduce, before anything changes. What `save_adapter` writes, PEFT loads with equal logits.
PEFT itself is not imported.
"""

import json
import re
from pathlib import Path

import torch

from ember.lora.adapter import ATTENTION, MLP, Adapter, BadAdapter, LowRank
from ember.model.architecture import Architecture
from ember.records.atomic import atomic_dir

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FORMATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_TENSOR = re.compile(
    r"^base_model\.model\.(?:.*\.)?layers\.(?P<layer>\d+)\.(?P<path>.+)\.lora_(?P<factor>[AB])\.weight$"
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
    config = _read_config(folder)
    factors = _read_factors(folder)
    parts = {}
    for (layer, path), pair in factors.items():
        name = path.rpartition(".")[2]
        module = f"layers.{layer}.{path}"
        if missing := {"A", "B"} - set(pair):
            raise BadAdapter(
                f"{folder / WEIGHTS} has no lora_{missing.pop()} of {module}.\n"
                "Save or copy the adapter again."
            )
        rank = _of_module(config["rank_pattern"], module, config["r"])
        if pair["A"].shape[0] != rank or pair["B"].shape[-1] != rank:
            raise BadAdapter(
                f"{folder}: {module} has A {tuple(pair['A'].shape)} and B "
                f"{tuple(pair['B'].shape)}, but {CONFIG} gives it rank {rank} "
                "(r, or its entry in rank_pattern).\nSave the adapter again, or mend the pattern."
            )
        alpha = _of_module(config["alpha_pattern"], module, config["lora_alpha"])
        own = alpha / (rank**0.5 if config["use_rslora"] else rank)
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


def _read_config(folder: Path) -> dict:
    """The configuration with defaults, checked option by option."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise BadAdapter(
            f"{path} is missing.\nGive a folder in PEFT's format ({CONFIG} and {WEIGHTS})."
        ) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise BadAdapter(f"{path} is not valid JSON ({error}).\nSave or copy it again.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise BadAdapter(f"{path} describes a {kind} adapter.\nOnly LORA can be loaded here.")
    if config.get("bias", "none") != "none":
        raise BadAdapter(
            f"{path}: bias is {config['bias']!r}, and trained biases are not loaded.\n"
            "Train with bias 'none'."
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_MOVES_BASE):
        raise BadAdapter(
            f"{path}: init_lora_weights {init!r} changed the base model's weights too.\n"
            "Save it with PEFT's path_initial_model_for_weight_conversion, which makes it plain."
        )
    for option, value in config.items():
        if option not in _HARMLESS | _READ | {"init_lora_weights"} and value:
            raise BadAdapter(
                f"{path}: option {option} = {value!r} is not supported.\n"
                "Train and save the adapter without it, or merge it with PEFT."
            )
    read = {"r": 8, "lora_alpha": 8, "use_rslora": False} | {
        name: config[name] for name in ("r", "lora_alpha", "use_rslora") if name in config
    }
    for name in ("rank_pattern", "alpha_pattern"):
        read[name] = config.get(name) or {}
    _check_numbers(path, read)
    return read


def _check_numbers(path: Path, config: dict) -> None:
    def number(value) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and value > 0

    ranks = [config["r"], *config["rank_pattern"].values()]
    if not all(number(rank) and float(rank).is_integer() for rank in ranks):
        raise BadAdapter(f"{path}: ranks {ranks} are not all whole numbers above 0.\nMend r.")
    alphas = [config["lora_alpha"], *config["alpha_pattern"].values()]
    if not all(isinstance(a, int | float) and not isinstance(a, bool) for a in alphas):
        raise BadAdapter(f"{path}: lora_alpha {alphas} are not numbers.\nMend lora_alpha.")
    for pattern in (*config["rank_pattern"], *config["alpha_pattern"]):
        try:
            re.compile(pattern)
        except re.error as error:
            raise BadAdapter(
                f"{path}: {pattern!r} is no regular expression ({error}).\nMend the pattern."
            ) from None


def _read_factors(folder: Path) -> dict[tuple[int, str], dict[str, torch.Tensor]]:
    """A and B by layer and path within it."""
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    if not path.is_file():
        raise BadAdapter(
            f"{path} is missing.\nGive a folder in PEFT's format; save with safe_serialization."
        )
    found: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 (not a dict)
                match = _TENSOR.match(name)
                if match is None:
                    raise BadAdapter(
                        f"{path} holds {name}, which is no factor of a linear layer.\n"
                        "Only LoRA on the layers' projections is supported."
                    )
                tensor = stream.get_tensor(name)
                if tensor.dtype not in FORMATS:
                    raise BadAdapter(
                        f"{path}: {name} is {tensor.dtype}.\n"
                        "Save the adapter in float32, bfloat16 or float16."
                    )
                if tensor.ndim != 2:
                    raise BadAdapter(
                        f"{path}: {name} has shape {tuple(tensor.shape)}, a factor is a matrix.\n"
                        "Save the adapter again."
                    )
                key = int(match["layer"]), match["path"]
                found.setdefault(key, {})[match["factor"]] = tensor
    except (SafetensorError, OSError) as error:
        raise BadAdapter(
            f"{path} is truncated or no safetensors file ({error}).\nSave or copy it again."
        ) from None
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
    from math import inf, nextafter

    alpha = part.scale * part.rank
    for candidate in (alpha, nextafter(alpha, inf), nextafter(alpha, -inf)):
        if candidate / part.rank == part.scale:
            alpha = candidate
            break
    return int(alpha) if float(alpha).is_integer() else alpha

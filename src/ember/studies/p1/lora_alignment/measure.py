"""Adapters against Transformers with PEFT, same checkpoint and process (P1-3.4 to P1-3.7).

`align` compares logits, weights, layers, blocks and single operators, in each number format.
The truth that half-precision errors are taken against is PEFT's float32 forward.
"""

import copy
import itertools
import logging
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

from ember.measure.device import resolve
from ember.studies.measured import blank, measured_on
from ember.studies.p1.lora_alignment import tables as t
from ember.studies.steps import makes

log = logging.getLogger(__name__)

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = {name: (name,) for name in PROJECTIONS} | {"all": PROJECTIONS}
TABLES = {
    "cases": t.LORA_CASES,
    "weights": t.LORA_WEIGHTS,
    "layers": t.LORA_LAYERS,
    "freeze": t.LORA_FREEZE,
    "blocks": t.LORA_BLOCKS,
    "spot": t.LORA_SPOT,
}


@makes(*TABLES.values())
def align(
    *,
    model: str | Path,
    workload,
    adapters: str | Path,
    settings: Mapping,
    device: str,
    dtype: str,
    seed: int,
) -> list[list[dict]]:
    """Rows of TABLES, for the adapters in folders below `adapters` and `settings["dtypes"]`."""
    import torch

    from ember.lora.peft import load_adapter
    from ember.model.checkpoint import load_decoder
    from ember.model.reference import load_peer
    from ember.studies.p1.workload.make import read_workload

    device = resolve(device)
    torch.backends.cuda.matmul.allow_tf32 = False
    truth_decoder = load_decoder(model, device, torch.float32)
    streams = read_workload(workload)
    count = min(settings["prompts"], len(streams.documents))
    prompts = [streams.prompt(i, settings["tokens"], 0) for i in range(count)]
    tokens = torch.tensor(prompts, device=device)
    kinds = {
        folder.name: load_adapter(folder)
        for folder in sorted(Path(adapters).iterdir())
        if folder.is_dir()
    }
    about = measured_on(model, device, dtype)
    del about["dtype"]
    tables = {name: [] for name in TABLES}
    with torch.no_grad():
        peer = _with_adapters(load_peer(model, truth_decoder), kinds, truth_decoder.arch)
        truth = _truth(peer, kinds, tokens)
        watched = _watched_truth(truth_decoder, peer, kinds, tokens, settings)
        for name in settings["dtypes"]:
            pair = Pair(truth_decoder, peer, getattr(torch, name))
            bases = pair.reference(tokens, with_adapter=False), pair.ours(tokens)
            facts = {"dtype": name, **about}
            for kind, adapter in kinds.items():
                for target in TARGETS:
                    found = _cases(pair, kind, target, adapter, tokens, truth, bases)
                    tables["cases"] += [
                        {"adapter": kind, "target": target} | r | facts for r in found
                    ]
                log.info("%s, %s: logits compared", name, kind)
                labels = {"adapter": kind, **facts}
                tables["weights"] += [labels | row for row in _weights(pair, adapter, settings)]
                if kind in settings["profiled"]:
                    exact = None
                    if pair.dtype != torch.float32:  # there PEFT's forward is itself the truth
                        exact = watched[None], watched[kind]
                    _profile(pair, kind, adapter, tokens, exact, settings, labels, tables)
            pair.close()
            del pair
    return list(tables.values())


class Pair:
    """Our decoder and PEFT's model of the same weights in one number format."""

    def __init__(self, decoder, peer, dtype):
        """`decoder` and `peer` in float32: themselves, or copies that are rounded."""
        import torch

        from ember.lora.branch import Branches
        from ember.lora.merge import Merger

        self.dtype = dtype
        self.decoder, self.peer = decoder, peer
        if dtype != torch.float32:
            self.decoder, self.peer = copy.deepcopy(decoder).to(dtype), copy.deepcopy(peer)
            # As when loaded in this format: factors and rotary frequencies stay float32.
            for name, parameter in self.peer.named_parameters():
                if "lora_" not in name:
                    parameter.data = parameter.data.to(dtype)
        self.merger, self.branches = Merger(self.decoder), Branches(self.decoder)
        self.layers = self.peer.base_model.model.model.layers
        self.depth = len(self.layers)

    def close(self) -> None:
        """Leaves the weights as they were and drops the copies of them."""
        self.merger.forget_base()

    def use(self, kind: str, target: str) -> None:
        """Makes PEFT's forward that of an adapter."""
        self.peer.set_adapter(f"{kind}-{target}")

    def reference(self, tokens, with_adapter: bool = True):
        """PEFT's logits (B, T, V), in float32."""
        if with_adapter:
            return self.peer(tokens).logits.float()
        with self.peer.disable_adapter():
            return self.peer(tokens).logits.float()

    def ours(self, tokens):
        """Our logits (B, T, V), in float32."""
        return self.decoder.logits(self.decoder(tokens)).float()

    @contextmanager
    def merged_by_hand(self, adapter):
        """Transformers' weights are W + s·B·A, summed in float32 and rounded."""
        import torch

        kept = []
        for (layer, name), part in adapter.items():
            weight = getattr(self.layers[layer].self_attn, name).base_layer.weight
            kept.append((weight, weight.data))
            change = part.delta(torch.float32).to(weight.device)
            weight.data = (weight.data.float() + change).to(self.dtype)
        try:
            yield
        finally:
            for weight, data in kept:
                weight.data = data

    def chosen(self, fractions) -> list[int]:
        """Layers at these fractions of the depth."""
        return sorted({round(fraction * (self.depth - 1)) for fraction in fractions})


def _with_adapters(peer, kinds, arch):
    """The peer as PEFT's model with each adapter restricted to each target."""
    from peft import PeftModel

    from ember.lora.peft import save_adapter

    wrapped = None
    with tempfile.TemporaryDirectory() as folder:
        for kind, target in itertools.product(kinds, TARGETS):
            name = f"{kind}-{target}"
            path = str(Path(folder) / name)
            save_adapter(kinds[kind].only(projections=TARGETS[target]), path, arch=arch)
            if wrapped is None:
                wrapped = PeftModel.from_pretrained(peer, path, adapter_name=name)
            else:
                wrapped.load_adapter(path, adapter_name=name)
    return wrapped.eval()


def _truth(peer, kinds, tokens) -> dict:
    """PEFT's float32 logits by adapter and target."""
    found = {}
    for kind, target in itertools.product(kinds, TARGETS):
        peer.set_adapter(f"{kind}-{target}")
        # On the host: at the vocabulary of a real model they are gigabytes.
        found[kind, target] = peer(tokens).logits.float().cpu()
    return found


def _watched_truth(decoder, peer, kinds, tokens, settings: Mapping) -> dict:
    """PEFT's float32 blocks by profiled adapter, None for none of them; on the host."""
    import torch

    if settings["dtypes"] == ["float32"]:
        return {}
    pair, found = Pair(decoder, peer, torch.float32), {}
    for kind in (None, *(kind for kind in kinds if kind in settings["profiled"])):
        if kind is not None:
            pair.use(kind, "all")
        seen = _watch_theirs(pair, tokens, kind is not None)
        found[kind] = {at: block.cpu() for at, block in seen.items()}
    return found


def _cases(pair: Pair, kind: str, target: str, adapter, tokens, truth, bases) -> list[dict]:
    part = adapter.only(projections=TARGETS[target])
    exact = truth[kind, target].to(tokens.device)
    pair.use(kind, target)
    their_base, our_base = bases
    theirs = {"peft_forward": pair.reference(tokens)}
    with pair.merged_by_hand(part):
        theirs["manual_merge"] = pair.reference(tokens, with_adapter=False)
    ours = {"branch": _branched(pair, part, tokens)}
    pair.merger.swap(part)
    ours["merged"] = pair.ours(tokens)
    pair.merger.swap(None)
    if target == "all":
        ours["two_stage"] = _two_stages(pair, part, tokens)
    return [
        {
            "path": path,
            "reference": reference,
            "prompts": tokens.shape[0],
            "tokens": tokens.shape[1],
            **_differences(our_base, mine, their_base, other),
            "errors": _rms(mine - exact),
            "reference_errors": _rms(other - exact),
            "error_max": _max(mine - exact),
            "reference_error_max": _max(other - exact),
        }
        for path, mine in ours.items()
        for reference, other in theirs.items()
    ]


def _branched(pair: Pair, adapter, tokens):
    pair.branches.attach("case", adapter)
    pair.branches.activate("case")
    try:
        return pair.ours(tokens)
    finally:
        pair.branches.detach("case")


def _two_stages(pair: Pair, adapter, tokens):
    """Logits through two stages, of which each merged the adapter's part of its own layers."""
    from ember.lora.merge import Merger

    given = {"tokens": tokens}
    for span in (range(pair.depth // 2), range(pair.depth // 2, pair.depth)):
        stage = copy.deepcopy(pair.decoder)
        Merger(stage).swap(adapter.only(layers=span))
        given = {"hidden": stage(**given, layers=span)}
    return stage.logits(given["hidden"]).float()


def _weights(pair: Pair, adapter, settings: Mapping) -> list[dict]:
    """W_after - W_before of the chosen layers against s·B·A, whole and by two stages."""
    from ember.lora.adapter import linears
    from ember.lora.merge import Merger

    depth, chosen = pair.depth, pair.chosen(settings["layer_fractions"])
    spans = {"whole": range(depth), "0": range(depth // 2), "1": range(depth // 2, depth)}
    there, rows = linears(pair.decoder), []
    for stage, span in spans.items():
        part = adapter.only(layers=span)
        merger = Merger(pair.decoder)
        keys = [key for key in part if key[0] in chosen]
        before = {key: there[key].weight.detach().clone() for key in keys}
        merger.swap(part)
        for key in keys:
            row = _weight_row(before[key], there[key].weight, part[key])
            rows.append({"stage": stage, "layer": key[0], "projection": key[1]} | row)
        merger.swap(None)
    return rows


def _weight_row(before, after, part) -> dict:
    """Errors of one matrix; their unit is that of the largest term: a weight, or |s| |b| |a|, of
    which s·b·a may be a small difference."""
    import torch

    delta = part.delta().to(before.device)
    terms = abs(part.scale) * (part.b.double().abs() @ part.a.double().abs()).to(before.device)
    error = (after.double() - before.double() - delta).abs()
    largest = torch.maximum(torch.maximum(before.double().abs(), after.double().abs()), terms)
    tiny = torch.finfo(before.dtype).tiny
    ulp = torch.exp2(largest.clamp(min=tiny).log2().floor()) * torch.finfo(before.dtype).eps
    return {
        "delta_max_abs": _max(delta),
        "error_max_abs": _max(error),
        "error_max_ulp": _max(error / ulp),
    }


def _profile(pair, kind, adapter, tokens, exact, settings, labels, tables: dict) -> None:
    """Layers, blocks, operators and freezes of one adapter merged into all projections.

    `exact`: PEFT's float32 blocks without and with the adapter; None where PEFT's are the truth.
    """
    depth = pair.depth
    pair.use(kind, "all")
    their_base, our_base = _watch_theirs(pair, tokens, False), _watch_ours(pair, tokens)
    theirs = _watch_theirs(pair, tokens, True)
    pair.merger.swap(adapter)
    ours = _watch_ours(pair, tokens)
    tables["spot"] += [labels | row for row in _spot(pair, ours, theirs, settings)]
    labels = labels | {"num_layers": depth}
    for layer, block in sorted(theirs):
        at = (layer, block)
        found = _differences(our_base[at], ours[at], their_base[at], theirs[at])
        found |= _errors(at, our_base, ours, their_base, theirs, exact)
        if block == "layer_output":
            tables["layers"].append(labels | {"layer": layer} | found)
        if block == "attn_residual":
            found |= _decomposition(our_base, ours, their_base, theirs, layer)
        row = labels | {"layer": layer, "block": block} | found
        tables["blocks"].append(blank(t.LORA_BLOCKS, **row))
    pair.merger.swap(None)
    freezes = [0] + [round(f * depth) for f in settings["freeze_fractions"]]
    for freeze in dict.fromkeys(n for n in freezes if n < depth):
        found = _freeze(pair, adapter, freeze, tokens, our_base, their_base, settings)
        tables["freeze"] += [labels | row for row in found]


def _freeze(pair, adapter, freeze, tokens, our_base, their_base, settings) -> list[dict]:
    """The adapter in the layers from `freeze` up: what is below must not move at all."""
    part = adapter.only(layers=range(freeze, pair.depth))
    pair.merger.swap(part)
    ours = _watch_ours(pair, tokens)
    pair.merger.swap(None)
    with pair.merged_by_hand(part):
        theirs = _watch_theirs(pair, tokens, False)
    outputs = [(layer, "layer_output") for layer in range(pair.depth)]
    found = [_differences(our_base[at], ours[at], their_base[at], theirs[at]) for at in outputs]
    below = [_max(ours[at] - our_base[at]) for at in outputs[:freeze]]
    deltas = [row["delta_max_abs_diff"] for row in found]
    return [
        {
            "freeze": freeze,
            "threshold": threshold,
            "first_layer": next((i for i, d in enumerate(deltas) if d > threshold), None),
            "prefix_effect_max": max(below, default=0.0),
            "delta_max_abs_diff": deltas[-1],
            "effect_max_abs": found[-1]["effect_max_abs"],
        }
        for threshold in settings["thresholds"]
    ]


def _decomposition(our_base, ours, their_base, theirs, layer: int) -> dict:
    """attn_residual = layer_input + attn_out, in differences of the adapter's effect."""

    def delta(block: str):
        at = (layer, block)
        return (ours[at] - our_base[at]) - (theirs[at] - their_base[at])

    entered, attended, summed = map(delta, ("layer_input", "attn_out", "attn_residual"))
    return {
        "delta_input_max": _max(entered),
        "delta_attn_max": _max(attended),
        "delta_residual_max": _max(summed),
        "delta_gap": _max(summed - (entered + attended)),
    }


def _spot(pair, ours, theirs, settings) -> list[dict]:
    rows = []
    for layer in pair.chosen(settings["layer_fractions"]):
        mine, other = pair.decoder.layers[layer], pair.layers[layer]
        places = {
            "norm": (mine.post_attention_layernorm, other.post_attention_layernorm),
            "gate": (mine.mlp.gate_proj, other.mlp.gate_proj),
            "up": (mine.mlp.up_proj, other.mlp.up_proj),
        }
        for operator, (our_call, their_call) in places.items():
            block = "attn_residual" if operator == "norm" else "post_attn_norm"
            own, reference = ours[layer, block], theirs[layer, block]
            wanted = their_call(reference.to(pair.dtype)).float()
            own_diff = _max(our_call(own.to(pair.dtype)).float() - wanted)
            same_diff = _max(our_call(reference.to(pair.dtype)).float() - wanted)
            enters = "operator" if same_diff >= 0.5 * own_diff else "input"
            rows.append(
                {
                    "layer": layer,
                    "operator": operator,
                    "input_max_abs_diff": _max(own - reference),
                    "own_max_abs_diff": own_diff,
                    "same_max_abs_diff": same_diff,
                    "enters": enters if own_diff or same_diff else "nowhere",
                }
            )
    return rows


def _watch_ours(pair: Pair, tokens) -> dict:
    """Blocks (B, T, H) by (layer, name), in float32, of one forward of ours."""
    names = {"mlp_in": "post_attn_norm"}
    wanted = {"layer_input", "attn_out", "attn_residual", "mlp_in", "mlp_out"}
    seen = {}

    def tap(layer: int, name: str, tensor) -> None:
        if name == "layer_input" and layer:
            seen[layer - 1, "layer_output"] = tensor.float()
        if name in wanted:
            seen[layer, names.get(name, name)] = tensor.float()

    last = pair.decoder(tokens, tap=tap)
    seen[pair.depth - 1, "layer_output"] = last.float()
    return seen


def _watch_theirs(pair: Pair, tokens, with_adapter: bool) -> dict:
    """The same of Transformers' model, by hooks."""
    seen, hooks = {}, []

    def keep(layer: int, name: str):
        """A hook for a module's output, or before it for its input."""

        def hook(module, given, out=None) -> None:
            value = given if out is None else out
            seen[layer, name] = (value[0] if isinstance(value, tuple) else value).float()

        return hook

    for index, layer in enumerate(pair.layers):
        norm = layer.post_attention_layernorm
        hooks += [
            layer.register_forward_pre_hook(keep(index, "layer_input")),
            layer.self_attn.register_forward_hook(keep(index, "attn_out")),
            norm.register_forward_pre_hook(keep(index, "attn_residual")),
            norm.register_forward_hook(keep(index, "post_attn_norm")),
            layer.mlp.register_forward_hook(keep(index, "mlp_out")),
            layer.register_forward_hook(keep(index, "layer_output")),
        ]
    try:
        pair.reference(tokens, with_adapter)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _differences(our_base, ours, their_base, theirs) -> dict:
    return {
        "base_max_abs_diff": _max(our_base - their_base),
        "lora_max_abs_diff": _max(ours - theirs),
        "delta_max_abs_diff": _max((ours - our_base) - (theirs - their_base)),
        "effect_max_abs": _max(theirs - their_base),
    }


def _errors(at, our_base, ours, their_base, theirs, exact) -> dict:
    """Errors of each prompt in one block to PEFT's float32 forward, ours and PEFT's own."""
    names = ("errors", "reference_errors", "base_errors", "base_reference_errors")
    if exact is None:
        return {name: [] for name in names}
    base, adapted = (blocks[at].to(ours[at].device) for blocks in exact)
    pairs = ((ours, adapted), (theirs, adapted), (our_base, base), (their_base, base))
    return {n: _rms(blocks[at] - truth) for n, (blocks, truth) in zip(names, pairs, strict=True)}


def _rms(difference) -> list[float]:
    """Root mean square of each prompt, of differences (B, T, width)."""
    return difference.double().square().mean(dim=(1, 2)).sqrt().tolist()


def _max(difference) -> float:
    return float(difference.abs().max())

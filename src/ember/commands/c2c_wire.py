"""`ember c2c pack`, `unpack` and `inspect`: KV in safetensors to a blob, back, and what one says.

The safetensors file holds `keys.<layer>` and `values.<layer>` (tokens, heads, head dimension), and
`index` (tokens,) where some tokens of a passage are sent; its metadata may say `length`, `start`
and `rotated`.
"""

import json
from pathlib import Path

from ember.records.errors import EmberError

MOST_BYTES = 2**34  # of a blob that is read whole
REMEDY = "Write it as `ember c2c unpack` does: docs/c2c-wire.md says how."


class BadKV(EmberError):
    """A safetensors file that does not hold keys and values."""


def add(commands) -> None:
    pack = commands.add_parser("pack", help="keys and values (safetensors) as one blob")
    pack.add_argument("kv", type=Path, metavar="KV.safetensors")
    pack.add_argument("--scheme", default="fp16", help="number format (fp16)")
    pack.add_argument("--axis", default="token", help="values that share a scale (token)")
    pack.add_argument("--group", type=int, default=16, help="of axis group (16)")
    pack.add_argument("--asymmetric", action="store_true", help="store each group's least value")
    pack.add_argument("--out", type=Path, required=True, metavar="BLOB")
    pack.set_defaults(run=_pack)
    unpack = commands.add_parser("unpack", help="a blob as keys and values (safetensors)")
    unpack.add_argument("blob", type=Path, metavar="BLOB")
    unpack.add_argument("--out", type=Path, required=True, metavar="KV.safetensors")
    unpack.set_defaults(run=_unpack)
    inspect = commands.add_parser("inspect", help="what a blob says and what its bytes are for")
    inspect.add_argument("blob", type=Path, metavar="BLOB")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)


def _pack(options) -> str:
    from ember.c2c import wire
    from ember.c2c.channel import Payload, part_of
    from ember.formats import axes
    from ember.formats.pairs import axes_of
    from ember.records.atomic import atomic_file

    symmetric = not options.asymmetric
    if not 1 <= options.group < wire.MOST_WIDTH:
        raise EmberError(f"a group of {options.group} values\nGive one from 1 on.")
    axes.check(options.scheme, options.axis, symmetric=symmetric)
    tensors, about = _read_kv(options.kv)
    index = tensors.pop("index", None)
    layers = sorted(int(name.partition(".")[2]) for name in tensors if name.startswith("keys."))
    key_axis, value_axis = axes_of(options.axis)

    def parts(name: str, axis: str) -> tuple:
        along = axes.Along(options.scheme, axis, symmetric, options.group)
        return tuple(part_of(tensors[f"{name}.{layer}"], along) for layer in layers)

    sent = len(tensors[f"keys.{layers[0]}"])
    length = _number(about, "length", sent if index is None else int(index.amax()) + 1)
    payload = Payload(
        length,
        0 if index is not None else _number(about, "start", 0),
        index,
        tuple(layers),
        parts("keys", key_axis),
        parts("values", value_axis),
        about.get("rotated") == "true",
        2 if length <= 2**16 else 4,
    )
    blob = wire.pack(payload)
    with atomic_file(options.out) as part:
        part.write_bytes(blob)
    values = 2 * sum(tensor.numel() for tensor in tensors.values())
    return f"{options.out}: {len(blob):,} bytes; at FP16 the values take {values:,}"


def _unpack(options) -> str:
    from safetensors.torch import save_file

    from ember.c2c import wire
    from ember.formats.axes import Along
    from ember.records.atomic import atomic_file

    payload = wire.unpack(_read_blob(options.blob))
    tensors = {} if payload.index is None else {"index": payload.index}
    for name, parts in (("keys", payload.keys), ("values", payload.values)):
        for layer, part in zip(payload.layers, parts, strict=True):
            along = Along(part.scheme, part.axis, part.symmetric, part.group)
            values = along.unpack(part.codes, part.parts, part.shape)
            tensors[f"{name}.{layer}"] = values.contiguous()
    said = {"length": payload.length, "start": payload.start, "rotated": payload.rotated}
    with atomic_file(options.out) as part:
        save_file(tensors, part, metadata={key: str(value).lower() for key, value in said.items()})
    return f"{options.out}: {payload.tokens} of {payload.length} tokens, layers {payload.layers}"


def _inspect(options) -> str:
    from ember.c2c import wire

    found = wire.inspect(_read_blob(options.blob))
    if options.json:
        return json.dumps(found, indent=2)
    sent = f"{found['tokens']} of {found['length']} tokens"
    if found["start"] is not None:
        sent += f", neighbours from {found['start']} on"
    lines = [
        f"{options.blob}: payload of version {found['version']}, {found['bytes']:,} bytes",
        f"{sent}; keys {'after' if found['rotated'] else 'before'} rotation",
    ]
    for name in ("header", "indices", "codes", "scales"):
        size = found[f"{name}_bytes"]
        lines.append(f"  {name:8}{size:>14,} bytes  {100 * size / found['bytes']:5.1f} %")
    for layer in found["layers"]:
        words = [f"{name} {_in_words(layer[name])}" for name in ("keys", "values")]
        lines.append(f"  layer {layer['layer']}: {'; '.join(words)}")
    return "\n".join(lines)


def _in_words(kind: dict) -> str:
    by = f"group of {kind['group']}" if kind["axis"] == "group" else kind["axis"]
    how = "" if kind["symmetric"] else " asymmetric"
    return f"{kind['scheme']}{how} by {by}, {kind['heads']} x {kind['size']}"


def _read_blob(path: Path) -> bytes:
    from ember.c2c.wire import WireError
    from ember.records.foreign import read_bytes

    return read_bytes(path, WireError, "Give a blob that `ember c2c pack` wrote.", MOST_BYTES)


def _read_kv(path: Path) -> tuple[dict, dict]:
    """Tensors and metadata of a safetensors file, checked to be keys and values of one shape."""
    from ember.model.folder import open_weights

    with open_weights(path, "pt") as stream:
        about = stream.metadata() or {}
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    index = tensors.get("index")
    names = [name for name in tensors if name != "index"]
    layers = {name.partition(".")[2] for name in names}
    wanted = {f"{side}.{layer}" for side in ("keys", "values") for layer in layers}
    if not names or {*names} != wanted or not all(map(str.isdecimal, layers)):
        raise BadKV(f"{path} holds {sorted(names)[:4]}, not keys and values of layers.\n{REMEDY}")
    shapes = {tuple(tensors[name].shape) for name in names}
    if any(len(shape) != 3 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise BadKV(f"{path} has tensors {sorted(shapes)}, not (tokens, heads, size).\n{REMEDY}")
    count = next(iter(shapes))[0]
    if index is not None and (index.dtype.is_floating_point or tuple(index.shape) != (count,)):
        raise BadKV(f"{path} has an index {tuple(index.shape)} of {count} tokens.\n{REMEDY}")
    return tensors, about


def _number(about: dict, name: str, default: int) -> int:
    text = about.get(name, str(default))
    if not text.isdecimal() or len(text) > 12:
        raise BadKV(f"the metadata say {name} = {text[:40]!r}, which is no number.\n{REMEDY}")
    return int(text)

"""What of the configuration only the library can judge: names, shapes, policies, lengths.

Each check takes the typed configuration and gives (path of the key, what is wrong with its
value). No torch.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from ember import peers
from ember.c2c.points import wrong_pairs
from ember.c2c.schedule import NONE, by_target
from ember.config.load import Problem, unknown
from ember.config.lowbit import BLOCKS
from ember.config.settings import Config
from ember.config.shared import Model
from ember.formats.pairs import problem
from ember.model.architecture import Architecture
from ember.model.folder import read_architecture
from ember.model.presets import PRESETS
from ember.policies.build import build_policies
from ember.records.errors import EmberError
from ember.streaming.build import build as build_method
from ember.streaming.build import programme_of, specs_of, speed_specs

# Depth to check policies against where the model's is not known before it is fetched.
_DEEP = 1000
FEWEST_TIMED = 10  # of which there are percentiles


def check_names(config: Config) -> Iterator[Problem]:
    """Presets and adapters that nobody knows."""
    adapters = {file.stem for file in (Path(peers.__file__).parent / "adapters").glob("[a-z]*.py")}
    p1, streaming = config.p1, config.streaming
    named = [
        (("models", name, "preset"), model.preset, PRESETS) for name, model in config.models.items()
    ]
    for place, preset in enumerate(p1.architectures.presets):
        named.append((("p1", "architectures", "presets", place), preset, PRESETS))
    for place, point in enumerate(p1.frameworks.points):
        named.append((("p1", "frameworks", "points", place, "preset"), point.preset, PRESETS))
    for name, framework in p1.frameworks.peers.items():
        named.append((("p1", "frameworks", "peers", name, "adapter"), framework.adapter, adapters))
    for name, framework in streaming.peers.frameworks.items():
        path = ("streaming", "peers", "frameworks", name, "adapter")
        named.append((path, framework.adapter, adapters))
    for path, name, known in named:
        if name is not None and (wrong := unknown(name, known)):
            yield path, wrong


def check_shapes(config: Config) -> Iterator[Problem]:
    """Models whose shape is none."""
    for name, model in config.models.items():
        if problem := _problem(lambda model=model: shape(model, config)):
            key = "path" if model.source == "local" else "architecture"
            yield ("models", name, key), problem


def check_policies(config: Config) -> Iterator[Problem]:
    """Policies that nobody knows, or with other parameters than theirs."""
    arch = _known_shape(config, config.p1.model)
    specs = [policy.model_dump() for policy in config.p1.policies]
    depth = arch.num_layers if arch else _DEEP
    found = False
    for place, spec in enumerate(specs):
        if problem := _problem(lambda spec=spec: build_policies([spec], depth)):
            found = True
            yield ("p1", "policies", place), problem
    if not found and (problem := _problem(lambda: build_policies(specs, depth))):
        yield ("p1", "policies"), problem


def check_lengths(config: Config) -> Iterator[Problem]:
    """Sequences longer than the model has positions."""
    shapes = {name: _known_shape(config, name) for name in config.models}
    asked = []
    for section, tokens in config.p1.longest().items():
        asked.append((("p1", section), tokens, config.p1.model, shapes[config.p1.model]))
    for name, model in config.models.items():
        if model.training:
            path = ("models", name, "training", "sequence_length")
            asked.append((path, model.training.sequence_length, name, shapes[name]))
    for place, point in enumerate(config.p1.frameworks.points):
        tokens = point.prompt_tokens + point.new_tokens
        arch = Architecture.make(point.preset) if point.preset in PRESETS else None
        asked.append((("p1", "frameworks", "points", place), tokens, point.preset, arch))
    for path, tokens, name, arch in asked:
        if arch and tokens > arch.max_positions:
            yield (
                path,
                f"asks for sequences of {tokens} tokens, and {name} has {arch.max_positions} "
                "positions. Shorten them, or choose a model with a longer context.",
            )


def check_streaming(config: Config) -> Iterator[Problem]:
    """Eviction methods, budgets and streams that do not go together, or a model without sinks."""
    section, name = config.streaming, config.streaming.model
    model, arch = config.models[name], _known_shape(config, name)
    if model.source == "random" or (model.training and not model.training.start_token):
        yield (
            ("streaming", "model"),
            f"{name} was trained without a start token, so it has no sink to keep. Set "
            f"models.{name}.training.start_token, or choose another model.",
        )
    elif model.source == "local" and arch and arch.bos_token_id is None:
        yield (
            ("streaming", "model"),
            f"the config.json of {name} names no start token (bos_token_id). Choose another model.",
        )
    budgets = [(("grid", n), one.peak) for n, one in enumerate(section.grid)]
    budgets += [(("sweep", n), one.peak) for n, one in enumerate(section.sweep or [])]
    budgets.append((("gate",), section.gate.peak))
    cause = section.cause
    period = cause.peak + cause.compression_interval  # nothing dropped, read for comparison
    budgets.append((("cause",), period))
    for path, peak in budgets:
        if arch and peak > arch.max_positions:
            yield (
                ("streaming", *path, "peak"),
                f"{peak} tokens are more than the {arch.max_positions} that {name} was trained "
                "with: sinks, window, new tokens and overlap must fit in. Lower peak.",
            )
    longest = max(peak for _, peak in budgets)
    for role in ("long", "short"):
        if (tokens := getattr(section, role).tokens) <= longest:
            yield (
                ("streaming", role, "tokens"),
                f"streams of {tokens} tokens never fill a peak of {longest}. Raise tokens.",
            )
    if section.latency.peak not in {one.peak for one in section.grid}:
        yield (("streaming", "latency", "peak"), "is no peak of the grid. Choose one of them.")
    if section.latency.tokens <= section.latency.prefill + section.latency.skip:
        yield (("streaming", "latency", "tokens"), "leave nothing to time. Raise tokens.")
    yield from _check_peers(section)
    lazy = {"name": "lazy_prune"} | cause.model_dump()
    if problem := _problem(lambda: build_method(lazy)):
        yield ("streaming", "cause"), problem
    settings = section.model_dump()
    if problem := _problem(lambda: [*map(build_method, programme_of(settings))]):
        yield ("streaming", "programme"), problem
        return  # it stands among the points of every other
    for place, point in enumerate(settings["points"]):
        alone = settings | {"points": [point]}
        if problem := _problem(lambda alone=alone: [*map(build_method, specs_of(alone))]):
            yield ("streaming", "points", place), problem
    speed = section.speed.model_dump()
    if problem := _problem(lambda: [*map(build_method, speed_specs(speed))]):
        yield ("streaming", "speed"), problem
    if section.speed.tokens < section.speed.skip + FEWEST_TIMED:
        yield (
            ("streaming", "speed", "tokens"),
            f"leave fewer than {FEWEST_TIMED} to time. Raise tokens or lower skip.",
        )
    widest = section.ceiling.peak - 2 * 4  # sinks, and a window that is larger
    if max(section.ceiling.intervals) >= widest:
        yield (
            ("streaming", "ceiling", "intervals"),
            f"prune {max(section.ceiling.intervals)} of {section.ceiling.peak} tokens. Lower them.",
        )
    missing = {"streaming_llm", "lazy_prune"} - {point.name for point in section.points}
    if missing:
        yield (
            ("streaming", "points"),
            f"lack {', '.join(sorted(missing))}, with which the others are compared. Add it.",
        )


def _check_peers(section) -> Iterator[Problem]:
    """Budgets that leave other frameworks no window, or nothing to score."""
    peers, least = section.peers, min(section.peers.budget.compression_interval)
    path, peak = ("streaming", "peers"), section.peers.budget.peak
    if peak not in {one.peak for one in section.grid}:
        yield (*path, "budget", "peak"), "is no peak of the grid. Choose one of them."
    for period in peers.budget.compression_interval:
        spec = {"name": "lazy_prune", "peak": peak, "n_sink": peers.n_sink}
        spec["compression_interval"] = period
        if problem := _problem(lambda spec=spec: build_method(spec)):
            yield (*path, "budget", "compression_interval"), problem
    if not peak + peers.skip < peers.tokens <= section.long.tokens:
        yield (
            (*path, "tokens"),
            f"{peers.tokens} tokens must be more than peak and skip together ({peak + peers.skip}) "
            f"and no more than streaming.long.tokens ({section.long.tokens}).",
        )
    if peers.streams > section.long.streams:
        yield (*path, "streams"), f"{peers.streams} are more than streaming.long.streams has."
    for name, framework in peers.frameworks.items():
        for place, method in enumerate(framework.methods):
            looks = method.arguments.get("window_size", 0)
            if method.period == "budget" and isinstance(looks, int) and looks >= least:
                yield (
                    (*path, "frameworks", name, "methods", place, "arguments"),
                    f"window_size {looks} must be below the least compression_interval ({least}): "
                    "kvpress holds the queries since the last prune and no others.",
                )


def check_real(config: Config) -> Iterator[Problem]:
    """Real pairs of models that nobody has named, points that are none, prompts without a
    question."""
    if (real := config.c2c.real) is None:
        return
    for name, pair in real.pairs.items():
        for role in ("sharer", "receiver"):
            if wrong := unknown(getattr(pair, role), config.models):
                yield ("c2c", "real", "pairs", name, role), wrong
    for place, grid in enumerate(real.grids):
        for wrong in wrong_pairs(grid.kv_quant_config.model_dump()):
            yield ("c2c", "real", "grids", place, "kv_quant_config"), wrong
    for field in ("{question}", "{choices}"):
        if real.template is not None and real.template.count(field) != 1:
            yield ("c2c", "real", "template"), f"has not one {field}. Put it in once."


def check_channel(config: Config) -> Iterator[Problem]:
    """Schemes on axes that they have not, and layers that the receiver has not."""
    section = config.c2c
    quants = [("length", "kv_quant_config", section.length.kv_quant_config)]
    quants += [("ptq", "grids", place, quant) for place, quant in enumerate(section.ptq.grids)]
    quants += [
        ("selection", "grids", place, "kv_quant_config", grid.kv_quant_config)
        for place, grid in enumerate(section.selection.grids)
    ]
    for *path, quant in quants:
        for wrong in wrong_pairs(quant.model_dump()):
            yield ("c2c", *path), wrong
    layers = section.layers
    for scheme in {layers.wide, layers.narrow, *layers.schemes} - {NONE}:
        if wrong := problem(scheme, layers.axis):
            yield ("c2c", "layers", "axis"), wrong
    depth = section.receiver.architecture.get("num_layers", _DEEP)
    depth = depth if type(depth) is int else _DEEP  # `check_c2c` says what is wrong with it
    for place, count in enumerate(layers.last):
        if count > depth:
            yield (
                ("c2c", "layers", "last", place),
                f"{count} are more than the receiver's {depth} layers. Name fewer.",
            )
    for name, schedule in layers.schedules.items():
        told = schedule.model_dump()
        schemes = {told["default"], *(one["scheme"] for one in told["overrides"])}
        for scheme in schemes - {NONE}:
            if wrong := problem(scheme, layers.axis):
                yield ("c2c", "layers", "schedules", name), wrong
        if wrong := _problem(lambda told=told: by_target(told, depth)):
            yield ("c2c", "layers", "schedules", name), wrong


def check_c2c(config: Config) -> Iterator[Problem]:
    """Models of the generated pair that are no shape, or too short for what they are to read."""
    section, world = config.c2c, config.c2c.world
    passage = 1 + 3 * world.records + world.fillers
    for role in ("sharer", "receiver"):
        reader = getattr(section, role)
        path, asked = ("c2c", role, "architecture"), reader.training.questions
        fields = reader.architecture | {"vocab_size": 4 + world.values + world.entities}
        if problem := _problem(lambda fields=fields: Architecture.make(**fields)):
            yield path, problem
            continue
        arch = Architecture.make(**fields)
        longest = passage + max(5 * asked, 5 * section.fuser.training.questions, 3 * world.records)
        if longest + 4 > arch.max_positions:
            yield (
                path,
                f"has {arch.max_positions} positions, and a passage with what follows it has up to "
                f"{longest + 4}. Raise max_positions, or lower records, fillers or questions.",
            )
        if role == "sharer" and section.sharer.outliers != 1 and (arch.qk_norm or arch.qkv_bias):
            yield (
                ("c2c", "sharer", "outliers"),
                f"cannot be injected into a {arch.model_type}, whose keys are normed or biased. "
                "Set it to 1, or choose a llama.",
            )


def check_lowbit(config: Config) -> Iterator[Problem]:
    """Models and formats whose blocks do not divide the model's rows, and a chat model that is no
    shape."""
    section = config.lowbit
    fields = section.whoami.architecture | {"vocab_size": 256}
    if problem := _problem(lambda: Architecture.make(**fields)):
        yield ("lowbit", "whoami", "architecture"), problem
    kernels, quantise = section.kernels, section.quantise
    asked = [
        (("quantise", "formats"), quantise.model or section.model, quantise.formats),
        (("kernels", "formats"), kernels.model or section.model, kernels.formats),
        (("kernels", "decoded"), kernels.model or section.model, kernels.decoded),
    ]
    for path, name, formats in asked:
        arch = _known_shape(config, name)
        for place, format in enumerate(formats if arch else ()):
            widths = (arch.hidden_size, arch.num_heads * arch.head_dim, arch.intermediate_size)
            if wrong := [width for width in widths if width % BLOCKS[format]]:
                yield (
                    ("lowbit", *path, place),
                    f"rows of {wrong[0]} weights of {name} are no multiple of {BLOCKS[format]}, "
                    f"which share a scale in {format}. Choose another format or model.",
                )


CHECKS = (
    *(check_names, check_shapes, check_policies, check_lengths, check_streaming),
    *(check_c2c, check_channel, check_lowbit, check_real),
)


def shape(model: Model, config: Config) -> Architecture | None:
    """The architecture of a configured model; None where it is not known before it is fetched."""
    if model.source == "hub":
        return None
    if model.source == "local":
        # That it is there at all is checked apart.
        there = (Path(model.path) / "config.json").is_file()
        return read_architecture(model.path) if there else None
    given = {"vocab_size": config.tokenizer.vocab_size} if model.source == "train" else {}
    return Architecture.make(model.preset, **model.architecture | given)


def _known_shape(config: Config, name: str) -> Architecture | None:
    try:
        return shape(config.models[name], config)
    except EmberError:  # said by `check_shapes`
        return None


def _problem(call: Callable[[], object]) -> str | None:
    try:
        call()
    except EmberError as error:
        return " ".join(str(error).split())
    return None

"""`ember quantise`: a model directory with 4-bit weights, or one made dense again (L-3)."""

from pathlib import Path

from ember.commands.shared import DTYPES


def add(commands) -> None:
    parser = commands.add_parser("quantise", help="pack a model's weights, or make them dense")
    parser.add_argument("model", type=Path, metavar="MODEL", help="directory with config.json")
    parser.add_argument("--format", default="nvfp4", help="nvfp4 (default), nf4, int4 or dense")
    parser.add_argument("--out", type=Path, required=True, help="the directory to be made")
    parser.add_argument("--head", action="store_true", help="the head too, untied where it is tied")
    parser.add_argument("--from-dat", type=Path, help="weights from there, not from MODEL")
    parser.add_argument("--dat", type=Path, metavar="FILE", help="write a .dat file as well")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="of what stays dense")
    parser.set_defaults(run=_run)


def _run(options) -> str:
    import torch

    from ember.model.checkpoint import load_decoder, save_decoder
    from ember.model.dat import write_dat
    from ember.model.folder import weights_kind
    from ember.model.packed import densify, quantise_decoder
    from ember.model.packed_folder import load_dat, packed_state, save_packed
    from ember.text.tokenizer import TOKENIZER_FILES

    dtype, kind = getattr(torch, options.dtype), weights_kind(options.model)
    if options.from_dat:
        decoder = load_dat(options.from_dat, options.model, dtype=dtype)
    else:
        decoder = load_decoder(options.model, dtype=dtype)
    extra = [options.model / name for name in TOKENIZER_FILES]
    about = {"extra_files": [file for file in extra if file.is_file()], "weights": kind}
    if options.format == "dense":
        densify(decoder)
        save_decoder(decoder, options.out, **about)
    else:
        quantise_decoder(decoder, options.format, skip=() if options.head else ("lm_head",))
        save_packed(decoder, options.out, about={"format": options.format}, **about)
    if options.dat:
        write_dat(options.dat, packed_state(decoder))
    size = sum(file.stat().st_size for file in options.out.glob("*.safetensors"))
    return f"{options.out}: {size / 1e6:.1f} MB of {options.format} weights"

"""`ember why`: from a product back to everything it came from."""

from pathlib import Path


def add(commands) -> None:
    parser = commands.add_parser("why", help="walk back from a product to everything it came from")
    parser.add_argument("product", type=Path, metavar="PRODUCT")
    parser.set_defaults(run=_run)


def _run(options) -> str:
    from ember.records.provenance import carrier
    from ember.records.trace import format_trace, trace

    text = format_trace(trace(options.product))
    source = carrier(options.product)
    if source != options.product:
        text = f"{options.product} stands beside {source}, which carries its provenance\n\n{text}"
    return text

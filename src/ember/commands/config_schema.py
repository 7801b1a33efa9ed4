"""`ember config-schema`: the JSON Schema of the configuration."""


def add(commands) -> None:
    parser = commands.add_parser("config-schema", help="print the JSON Schema of the configuration")
    parser.set_defaults(run=_run)


def _run(options) -> str:
    from ember.config.load import json_schema

    return json_schema().rstrip("\n")

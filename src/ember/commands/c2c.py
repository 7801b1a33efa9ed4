"""`ember c2c`: the cache-to-cache channel (docs/c2c.md). Its commands are modules of their own."""

from ember.commands import c2c_ask, c2c_wire


def add(commands) -> None:
    parser = commands.add_parser("c2c", help="the cache-to-cache channel")
    below = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (c2c_ask, c2c_wire):
        command.add(below)

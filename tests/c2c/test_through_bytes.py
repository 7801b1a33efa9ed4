"""Sequential equals simultaneous: what went through bytes gives the receiver the same answers."""

import pytest
import torch

from ember.c2c.channel import Channel, receive
from ember.c2c.evaluate import answer_items, evaluate, number_of, share_items
from ember.c2c.pair import Pair
from ember.c2c.select import Selection
from ember.c2c.source import Context, Sent
from ember.c2c.wire import pack, unpack
from ember.formats.pairs import SPLIT
from tests.c2c import small

CHANNELS = {
    "fp16": Channel(),
    "int4": Channel("int4"),
    "split": Channel("int2", SPLIT),
    "nvfp4": Channel("nvfp4", "channel"),
    "back": Channel("int8", selection=Selection("back", 0.5)),
    "random": Channel("int4", "head", selection=Selection("random", 0.4, seed=3)),
    "nothing": Channel("int8", selection=Selection("front", 0.0)),
    "by layer": Channel("int8", layers={0: "fp16", 2: "mxfp4"}),
}


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("rotated", [False, True])
def test_answers_through_stored_bytes_are_those_of_the_simulated_channel(tmp_path, name, rotated):
    pair, items = small.pair(smear=False, rotated=rotated), small.ragged_items(9)
    channel = CHANNELS[name]
    simultaneous = evaluate(pair, items, transmit=channel.transmit, batch_size=4)

    # The sharer's half, with no receiver: one file a text.
    sharer = Pair(pair.sharer, None, pair.fuser)
    files, tokens = [], []
    for number, source in enumerate(share_items(sharer, items, batch_size=4)):
        tokens.append(source.tokens)
        texts = torch.tensor([number_of(item) for item in items[4 * number : 4 * number + 4]])
        context = Context(torch.ones_like(source.tokens), texts, None, None)
        for place, payload in enumerate(channel.send(source, context)):
            files.append((number, tmp_path / f"{number}-{place}"))
            files[-1][1].write_bytes(pack(payload))

    # The receiver's half, with no sharer: from the files alone.
    def stored():
        for number, all_tokens in enumerate(tokens):
            blobs = [file.read_bytes() for n, file in files if n == number]
            yield receive([unpack(blob) for blob in blobs], all_tokens.shape[1])

    sequential = answer_items(
        Pair(None, pair.receiver, pair.fuser),
        items,
        stored(),
        transmit=lambda source, context: Sent(source, [0] * len(source.tokens)),
        batch_size=4,
    )
    for one, other in zip(simultaneous, sequential, strict=True):
        assert one | {"bytes": 0} == other | {"bytes": 0}

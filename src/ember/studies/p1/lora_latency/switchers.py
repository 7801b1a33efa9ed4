"""What switches adapters: this library's Merger and PEFT, with the same four operations.

Made for a model, then given adapters by `prepare`, at most two, each from its folder.
"""

from collections.abc import Sequence
from pathlib import Path


class Ember:
    """Switches by `ember.lora.merge`."""

    name = "ember"

    def __init__(self, decoder, folders: Sequence[Path], keep: str):
        from ember.lora.merge import Merger

        self.keep, self.folders, self._next = keep, folders, 0
        self.merger = Merger(decoder, keep=keep)
        self.prepared: list = []

    def prepare(self) -> None:
        """Reads the next folder's adapter, checks it, brings it to the device."""
        from ember.lora.peft import load_adapter

        self.prepared.append(self.merger.prepare(load_adapter(self.folders[len(self.prepared)])))

    def apply(self) -> None:
        self.merger.swap(self.prepared[0])

    def replace(self) -> None:
        other = self.merger.active is self.prepared[0].adapter
        self.merger.swap(self.prepared[other])

    def rollback(self) -> None:
        self.merger.swap(None)

    def reload(self) -> None:
        """From a folder: read, check, move, swap."""
        from ember.lora.peft import load_adapter

        self._next = 1 - self._next
        self.merger.swap(load_adapter(self.folders[self._next]))

    @property
    def kept_bytes(self) -> int:
        return self.merger.base_bytes

    def close(self) -> None:
        self.merger.forget_base()


class Peft:
    """Switches by PEFT's merge_adapter, unmerge_adapter and hotswap_adapter.

    `peer`: Transformers' model, with weights of its own.
    """

    name, keep, kept_bytes = "peft", "none", 0

    def __init__(self, peer, folders: Sequence[Path]):
        self.folders, self._next = folders, 0
        self._peer, self.model = peer, None

    def prepare(self) -> None:
        """Reads the next folder's adapter into the model."""
        from peft import PeftModel

        if self.model is None:
            self.model = PeftModel.from_pretrained(self._peer, str(self.folders[0]), "first")
        else:
            self.model.load_adapter(str(self.folders[1]), adapter_name="second")

    @property
    def weights(self) -> list:
        from ember.lora.adapter import ATTENTION

        layers = self.model.base_model.model.model.layers
        attention = [getattr(layer.self_attn, name) for layer in layers for name in ATTENTION]
        return [linear.base_layer.weight for linear in attention]

    def apply(self) -> None:
        self.model.merge_adapter()

    def rollback(self) -> None:
        self.model.unmerge_adapter()

    def replace(self) -> None:
        self.model.unmerge_adapter()
        self.model.set_adapter("second" if self.model.active_adapter == "first" else "first")
        self.model.merge_adapter()

    def reload(self) -> None:
        """hotswap_adapter from a folder, merged again."""
        from peft.utils.hotswap import hotswap_adapter

        self._next = 1 - self._next
        self.model.unmerge_adapter()
        hotswap_adapter(
            self.model,
            str(self.folders[self._next]),
            adapter_name=self.model.active_adapter,
            torch_device=str(self.model.device),
        )
        self.model.merge_adapter()

    def close(self) -> None:
        self.model.unmerge_adapter()

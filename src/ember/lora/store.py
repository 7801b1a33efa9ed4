"""Adapters known by name and switched by name, merged into an engine's weights.

    store = AdapterStore(decoder, engine=engine)
    store.load("round-1", "results/tiny/p1/lora_adapters/trained")
    store.activate("round-1")     # one pass over the weights
    store.deactivate()            # the base, bit for bit

Contract. `load` does all that takes long or can fail (reading, checking, moving to the device), so
that `activate` only swaps. After each switch the engine is told the weights' new version, which is
the base's and the adapter's content hash: its prefix cache forgets what other weights made, and
every token records the version that it was sampled with. Whoever else caches what weights made
sees the switch in `ember.model.version`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ember.lora.adapter import Adapter, BadAdapter
from ember.lora.branch import check_name
from ember.lora.merge import Merger, Prepared
from ember.lora.peft import load_adapter
from ember.model.decoder import Decoder
from ember.model.version import version

HASH_DIGITS = 16  # of a version, enough to tell the adapters of any programme apart


class Versioned(Protocol):
    """What an engine shows of itself here."""

    decoder: Decoder

    @property
    def weights_version(self) -> str: ...

    def set_weights_version(self, version: str) -> None: ...


@dataclass(frozen=True)
class Loaded:
    """An adapter of the store; `bytes` is the memory of its factors where the weights are."""

    name: str
    version: str
    rank: int
    layers: tuple[int, ...]
    projections: tuple[str, ...]
    bytes: int
    active: bool


class AdapterStore:
    """The adapters of one decoder."""

    def __init__(self, decoder: Decoder, *, engine: Versioned | None = None, keep: str = "device"):
        """`keep`: as of `Merger`. The weights are now the base's."""
        if engine is not None and engine.decoder is not decoder:
            raise BadAdapter(
                "an engine runs adapters of its own decoder only.\n"
                "Pass the engine's decoder, or use the decoder alone."
            )
        self._decoder, self._engine = decoder, engine
        self._base_version = self._version_now()
        self._merger = Merger(decoder, keep=keep)
        self._prepared: dict[str, Prepared] = {}
        self._active: str | None = None

    @property
    def active(self) -> str | None:
        """Name of the adapter in use."""
        return self._active

    @property
    def version(self) -> str:
        """Version of the weights in use."""
        if self._active is None:
            self._base_version = self._version_now()
        return self._version(self._active)

    def forget_base(self) -> None:
        """Takes the adapter out and drops the copies of the base's weights.

        Call it before changing the base where torch does not count changes (through `.data`), or to
        free memory.
        """
        self.deactivate()
        self._merger.forget_base()

    @property
    def base_bytes(self) -> int:
        """Memory of the copies that make deactivating exact."""
        return self._merger.base_bytes

    def load(
        self, name: str, source: str | Path | Adapter, *, scale: float = 1.0, replace: bool = False
    ) -> Loaded:
        """Reads (or takes) an adapter and keeps it under a name, ready to be activated.

        `scale` multiplies its own scaling. With `replace` a name may be given again; if it is in
        use, the new adapter takes its place in one pass. Raises BadAdapter or NotEnoughMemory and
        changes nothing.
        """
        check_name(name)
        if name in self._prepared and not replace:
            raise BadAdapter(
                f"an adapter {name} is loaded already.\nUnload it, or load with replace=True."
            )
        adapter = source if isinstance(source, Adapter) else load_adapter(source)
        prepared = self._merger.prepare(adapter.scaled(scale))
        if name == self._active:
            self._merger.swap(prepared)
        self._prepared[name] = prepared
        if name == self._active:
            self._tell()
        return self._describe(name)

    def activate(self, name: str) -> str:
        """Switches to an adapter; returns the weights' version. Nothing has changed if it fails."""
        self._check_there(name)
        return self._switch(name)

    def deactivate(self) -> str:
        """Back to the base; returns its version."""
        return self._switch(None)

    def unload(self, name: str) -> None:
        """Forgets an adapter; one in use is taken out first."""
        self._check_there(name)
        if name == self._active:
            self.deactivate()
        del self._prepared[name]

    def list(self) -> list[Loaded]:
        """The adapters, in the order they were loaded."""
        return [self._describe(name) for name in self._prepared]

    def adapter(self, name: str) -> Adapter:
        """An adapter by name."""
        self._check_there(name)
        return self._prepared[name].adapter

    def _switch(self, name: str | None) -> str:
        if self._active is None:
            self._base_version = self._version_now()
        self._merger.swap(None if name is None else self._prepared[name])
        self._active = name
        self._tell()
        return self._version(name)

    def _tell(self) -> None:
        now = self._version(self._active)
        if self._engine is not None and self._engine.weights_version != now:
            self._engine.set_weights_version(now)

    def _version_now(self) -> str:
        """Version of the weights while no adapter is in them."""
        return version(self._decoder) if self._engine is None else self._engine.weights_version

    def _version(self, name: str | None) -> str:
        if name is None:
            return self._base_version
        return f"{self._base_version}+{self._prepared[name].adapter.hash[:HASH_DIGITS]}"

    def _describe(self, name: str) -> Loaded:
        prepared = self._prepared[name]
        adapter = prepared.adapter
        return Loaded(
            name=name,
            version=self._version(name),
            rank=adapter.rank,
            layers=adapter.layers,
            projections=adapter.projections,
            bytes=prepared.bytes,
            active=name == self._active,
        )

    def _check_there(self, name: str) -> None:
        if name not in self._prepared:
            there = ", ".join(self._prepared) or "none"
            raise BadAdapter(f"there is no adapter {name!r} (there are: {there}).\nLoad it first.")

"""What a rollout did, in numbers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass
class StepBatch:
    """Steps in a row with the same rows: what they read of the KV, and how long they took.

    A prompt's last token is among `prompt_tokens`, or among each row's own where rows run it.
    `prompt_tokens` are read once a step, all prompts together (where rows share their prompt's KV;
    else of each row its copy); `own_tokens` is the sum over all
    steps and rows of the tokens a row has of its own. `ms` includes sampling.
    """

    rows: int
    prompts: int
    prompt_tokens: int
    steps: int = 0
    own_tokens: int = 0
    ms: float = 0.0


PHASES = ("prefill", "correction", "lookup", "store", "decode", "sampling", "transfer")


@dataclass
class RolloutStats:
    """What a rollout did, as plain data; bytes are of KV in use (prompts stored, rows' slots).

    `prefill_ms` … `transfer_ms` are times of the device (of the host on the CPU) by phase, of the
    whole call: forwards of prompts and what brings their KV into the arena, low-rank corrections of
    kept KV, lookups in and copies to a prefix cache, decoding steps, sampling, and the wait for
    tokens on the host. `seconds` also has what the host does between phases. `batches` time steps
    and sampling together, batch by batch.
    """

    prompts: int = 0
    candidates: int = 0
    slots: int = 0
    prefills: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefix_hits: int = 0
    kept_prompts: int = 0  # whose last token was run by their rows, and the rest by nobody
    generated_tokens: int = 0
    discarded_tokens: int = 0  # sampled after a stop, before it was seen
    seconds: float = 0.0
    prefill_ms: float = 0.0
    correction_ms: float = 0.0
    lookup_ms: float = 0.0
    store_ms: float = 0.0
    decode_ms: float = 0.0
    sampling_ms: float = 0.0
    transfer_ms: float = 0.0
    peak_kv_bytes: int = 0
    reserved_kv_bytes: int = 0
    batches: list[StepBatch] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return sum(batch.steps for batch in self.batches)

    @property
    def tokens_per_s(self) -> float:
        return self.generated_tokens / self.seconds if self.seconds else 0.0

    @property
    def occupancy(self) -> float:
        """Mean share of the slots that a step had in use."""
        used = sum(batch.rows * batch.steps for batch in self.batches)
        return used / (self.steps * self.slots) if self.steps else 0.0

    def add_times(self, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """Adds what a clock counted between two readings (`PhaseClock.times_ms`)."""
        for name in PHASES:
            passed = after.get(name, 0.0) - before.get(name, 0.0)
            setattr(self, f"{name}_ms", getattr(self, f"{name}_ms") + passed)

    def as_dict(self) -> dict:
        more = ("steps", "tokens_per_s", "occupancy")
        return asdict(self) | {name: getattr(self, name) for name in more}

"""What a rollout did, in numbers."""

from dataclasses import asdict, dataclass, field


@dataclass
class StepBatch:
    """Steps in a row with the same rows: what they read of the KV, and how long they took.

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


@dataclass
class RolloutStats:
    """What a rollout did, as plain data; bytes are of KV in use (prompts stored, rows' slots)."""

    prompts: int = 0
    candidates: int = 0
    slots: int = 0
    prefills: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefix_hits: int = 0
    generated_tokens: int = 0
    discarded_tokens: int = 0  # sampled after a stop, before it was seen
    seconds: float = 0.0
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

    def as_dict(self) -> dict:
        more = ("steps", "tokens_per_s", "occupancy")
        return asdict(self) | {name: getattr(self, name) for name in more}

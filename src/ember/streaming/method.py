"""What every eviction method is, and the registry of those that a configuration can name (S-1).

A method is asked after each call how many tokens may come before it wants to be asked again
(`room`), and which are to go (`drop`). It holds no state: all that it may look at is in the
`Moment`. Cache and loop are the same for all methods.

To add one, write `ember/streaming/methods/<name>.py` with a dataclass of that `name`: its fields
are what a configuration may set. No torch is imported here.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ember.records.errors import EmberError

if TYPE_CHECKING:
    from torch import Tensor

    from ember.model.decoder import Decoder
    from ember.streaming.cache import StreamingCache

METHODS: dict[str, type["Method"]] = {}
"""Methods by name, those whose modules were imported; see `ember.streaming.build`."""


class BadMethod(EmberError):
    """A method nobody knows, or parameters that leave no window; the message says which."""


@dataclass
class Moment:
    """What a method may look at: the cache, and the streams (B, T) up to their token `step`."""

    decoder: "Decoder"
    cache: "StreamingCache"
    tokens: "Tensor"  # (B, T), of which `step` have been fed
    step: int = 0
    pruned_at: int | None = None  # step at which the last prune reached its target
    pruning: bool = False  # whether a prune has begun that has not reached its target
    entropy: "Tensor | None" = None  # (B, T): of the prediction made at each token, in nats
    structural: "Tensor | None" = None  # (V,): whether a token ends a line or a sentence
    calls: int = 0  # forwards that the method ran itself

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.cache.slots


@dataclass(frozen=True, kw_only=True)
class Method:
    """Sinks and a window; every `compression_interval` tokens the oldest others go.

    `peak`: the most tokens that a query ever sees, its own included. What is left of it for the
    window follows, so that methods are compared at equal peak. Raises `BadMethod` where nothing is.
    """

    name: ClassVar[str] = ""
    improves: ClassVar[str] = ""  # the indicator that it is meant to improve, as tables name it
    needs: ClassVar[frozenset[str]] = frozenset()  # of entropy, mass and structure
    observes: ClassVar[int] = 0  # last queries before a prune whose attention mass it reads
    one_row: ClassVar[bool] = False  # whether each stream goes its own way
    prunes: ClassVar[bool] = True

    peak: int
    n_sink: int = 4
    compression_interval: int = 1
    absolute: bool = False  # a control: tokens stay where they stood in the stream

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "name" in cls.__dict__:
            METHODS[cls.name] = cls

    def __post_init__(self):
        for key in ("peak", "compression_interval"):
            whole(self, key, 1)
        whole(self, "n_sink", 0)
        self.check()
        if self.prunes and self.window <= self.n_sink:
            raise BadMethod(
                f"{self.name}: a peak of {self.peak} tokens leaves a window of {self.window} "
                f"beside {self.n_sink} sinks, {self.reserved} kept tokens and {self.growth} new "
                "ones; raise peak or lower n_sink, compression_interval or what is kept"
            )

    def check(self) -> None:
        """Raises `BadMethod` for parameters of its own that cannot be."""

    @property
    def reserved(self) -> int:
        """Slots besides sinks and window that a prune leaves filled."""
        return 0

    @property
    def growth(self) -> int:
        """Tokens by which the cache outgrows its target at most."""
        return self.compression_interval

    @property
    def window(self) -> int:
        """The newest tokens, which no prune touches."""
        return self.peak - self.n_sink - self.reserved - self.growth

    @property
    def target_size(self) -> int:
        """Tokens that are left after a prune."""
        return self.peak - self.growth

    def room(self, moment: Moment) -> int:
        """Tokens that may be fed before `drop` must be asked again, 1 or more."""
        return max(1, self.peak - moment.length)

    def drop(self, moment: Moment) -> "Tensor | None":
        """Slots to drop now, as `StreamingCache.drop` takes them; None: nothing yet."""
        if moment.length < self.peak:
            return None
        return self.choose(moment, moment.length - self.target_size)

    def choose(self, moment: Moment, count: int) -> "Tensor":
        """Which `count` slots go: the oldest after the sinks."""
        return oldest(moment, self.n_sink, count)

    def apply(self, moment: Moment, places: "Tensor") -> None:
        """Carries a drop out."""
        moment.cache.drop(places)


def oldest(moment: Moment, first: int, count: int) -> "Tensor":
    """The slots first … first + count."""
    import torch

    return torch.arange(first, first + count, device=moment.cache.ids.device)


def lowest(scores: "Tensor", count: int) -> "Tensor":
    """Places (…, count) of the lowest scores (…, n); of equal ones the first, which are oldest.

    Raises `BadMethod` for scores that are not finite: they would rank silently.
    """
    if not bool(scores.isfinite().all()):
        raise BadMethod("scores hold NaN or infinity; find out what the model computed")
    return scores.sort(dim=-1, stable=True).indices[..., :count]


def whole(owner: Method, key: str, low: int) -> None:
    """Checks that a parameter is a whole number of `low` or more. Raises `BadMethod`."""
    value = getattr(owner, key)
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise BadMethod(f"{owner.name}: {key} is {value!r}; set it to {low} or more")

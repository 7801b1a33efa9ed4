"""What every selector of kept old tokens is, and the registry of those there are (S-1.4).

To add one, write `ember/streaming/selectors/<name>.py` with a subclass of that `name`.
"""

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from ember.streaming.method import Moment

SELECTORS: dict[str, type["Selector"]] = {}
"""Selectors by name, those whose modules were imported; see `ember.streaming.build`."""


class Selector:
    """Scores old tokens; the highest stay."""

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()  # of entropy, mass and structure

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        SELECTORS[cls.name] = cls

    def scores(self, moment: "Moment", start: int, stop: int) -> "Tensor":
        """Scores (L, B, stop - start) or (1, B, …) of the tokens in slots start … stop."""
        raise NotImplementedError


def numbers(moment: "Moment", start: int, stop: int) -> "Tensor":
    """Numbers (L, B, stop - start) in the streams of the tokens in slots start … stop."""
    return moment.cache.ids[:, :, start:stop]


def by_number(of_tokens: "Tensor", ids: "Tensor") -> "Tensor":
    """Values (B, T) of tokens for those numbered `ids` (L, B, n)."""
    return of_tokens.expand(ids.shape[0], -1, -1).gather(2, ids)

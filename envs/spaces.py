"""A space of text; `gymnasium.spaces.Text` is limited to a character set that it enumerates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium.spaces import Space


class Unicode(Space[str]):
    """Every str that encodes to UTF-8, of any length.

    `sample` draws short random text and, half of the time, a tagged turn, so that random play
    reaches the tools.
    """

    def __init__(
        self, tags: Sequence[str] = (), seed: int | np.random.Generator | None = None
    ) -> None:
        """Create the space; `tags` are names that `sample` may use."""
        self.tags = tuple(tags)
        super().__init__(shape=None, dtype=None, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """Text has no fixed shape."""
        return False

    def sample(self, mask: object = None, probability: object = None) -> str:
        """Draw a random text; masks have no meaning here.

        Raises:
            ValueError: a mask or a probability was given.
        """
        if mask is not None or probability is not None:
            raise ValueError("Unicode.sample takes no mask and no probability")
        points = self.np_random.integers(32, 0x2FFF, size=int(self.np_random.integers(0, 40)))
        text = "".join(chr(point) for point in points)
        if not self.tags or self.np_random.random() < 0.5:
            return text
        tag = self.tags[int(self.np_random.integers(len(self.tags)))]
        return f"<think> {text} </think> <{tag}> {self.np_random.integers(100)} </{tag}>"

    def contains(self, x: object) -> bool:
        """True for a str without lone surrogates."""
        if not isinstance(x, str):
            return False
        try:
            x.encode("utf-8")
        except UnicodeEncodeError:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        """True if both sample the same tags."""
        return isinstance(other, Unicode) and self.tags == other.tags

    def __repr__(self) -> str:
        return f"Unicode(tags={self.tags!r})"

"""What one rendering of a chat template may cost, and what is left of it."""

from collections.abc import Callable
from dataclasses import dataclass

from jinja2 import TemplateRuntimeError

PART_CHARS = 16  # what a value costs besides its text


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateLimits:
    """What one template may cost."""

    source_chars: int = 128 * 1024
    """Longest source; published templates have up to 30 thousand."""
    input_chars: int = 4_000_000
    """Most text in messages, tools and documents together."""
    made_chars: int = 64_000_000
    """Most text that may be made on the way, counting every copy."""
    output_chars: int = 8_000_000
    """Longest result."""
    seconds: float = 5.0
    """Longest time to render."""


class BudgetError(TemplateRuntimeError):
    """Report a template that takes or makes more than it may."""


class Budget:
    """What is left of the limits of one rendering."""

    def __init__(self, limits: TemplateLimits, timer: Callable[[], float]) -> None:
        self._limits = limits
        self._timer = timer
        self._deadline = timer() + limits.seconds
        self._chars = limits.made_chars

    def tick(self) -> None:
        """Look at the clock."""
        if self._timer() > self._deadline:
            raise BudgetError(f"it takes longer than {self._limits.seconds:g} s")

    def require(self, chars: int) -> None:
        """Refuse to begin what would make more than is left."""
        self.tick()
        if chars > self._chars:
            raise BudgetError(f"it makes more than {self._limits.made_chars} characters")

    def pay(self, chars: int) -> None:
        """Take what was made from what is left."""
        self.require(chars)
        self._chars -= chars

    def measure(self, value: object, *, per_level: int = 0) -> int:
        """Count the characters of `value`, as often as it holds them.

        Args:
            value: Text, a number, or a container of such.
            per_level: What each part costs in addition, times its depth.
        """
        total, num_parts, stack = 0, 0, [(value, 0)]
        while stack:
            part, depth = stack.pop()
            total += PART_CHARS + depth * per_level
            if isinstance(part, str):
                total += len(part)
            elif isinstance(part, dict):
                stack.extend((item, depth + 1) for pair in part.items() for item in pair)
            elif isinstance(part, (list, tuple)):
                stack.extend((item, depth + 1) for item in part)
            num_parts += 1
            if num_parts % 1024 == 0:
                self.require(total)
        return total

"""What the engine benchmark measures: how many requests, with which adapters."""

from dataclasses import dataclass

PROMPT_TOKENS = 32
NEW_TOKENS = 24
RANK = 16
ALL_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QUERY_VALUE = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Case:
    """Requests at a time, and distinct adapters among them; 0 for the base model."""

    num_requests: int
    num_adapters: int = 0
    targets: tuple[str, ...] = ALL_LINEARS

    @property
    def is_narrow(self) -> bool:
        return self.targets == QUERY_VALUE

    @property
    def key(self) -> str:
        return f"{self.num_requests}x{self.num_adapters}" + ("qv" if self.is_narrow else "")

    @property
    def base(self) -> "Case":
        """The same without adapters."""
        return Case(self.num_requests)

    @property
    def name(self) -> str:
        requests = f"{self.num_requests} request{'s' * (self.num_requests > 1)}"
        if self.num_adapters == 0:
            return f"{requests}, no adapter"
        adapters = f"{self.num_adapters} adapter{'s' * (self.num_adapters > 1)}"
        return f"{requests}, {adapters} on {'q and v' if self.is_narrow else 'all linears'}"


CASES = (
    *(Case(n) for n in (1, 8, 16)),
    *(Case(n, 1) for n in (1, 8, 16)),
    *(Case(n, 8) for n in (8, 16)),
    *(Case(n, 8, QUERY_VALUE) for n in (8, 16)),
)


def prompt(number: int, length: int = PROMPT_TOKENS) -> tuple[int, ...]:
    """Tokens without repetition, different for every request."""
    return tuple((7 * i + 131 * number) % 40_000 + 20 for i in range(length))

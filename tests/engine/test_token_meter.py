"""Numbers that are read while they are written."""

from hyprstream.engine.token_meter import TokenMeter


class FakeClock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_tokens_a_second_are_those_of_the_last_ten_that_are_over():
    clock = FakeClock()
    meter = TokenMeter(clock)
    assert meter.per_second == 0
    counted: dict[int, int] = {}
    for step in range(300):
        clock.now = 1000 + step * 0.25
        number = (7 * step) % 13
        meter.add(number)
        second = int(clock.now)
        counted[second] = counted.get(second, 0) + number
        expected = sum(counted.get(s, 0) for s in range(second - 10, second)) / 10
        assert meter.per_second == expected
    assert meter.num_tokens == sum(counted.values())
    clock.now += 5
    assert meter.per_second == sum(counted.get(s, 0) for s in range(1069, 1079)) / 10
    clock.now += 1000
    assert meter.per_second == 0

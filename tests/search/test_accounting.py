import pytest

from jaxreward.search.accounting import Costs, Spent, add, as_metrics, cost, times


def test_sums_and_prices():
    both = add(Spent(2, 1, 3, 1), times(Spent(1, 0, 1), 4))
    assert both == Spent(6, 1, 7, 1)
    assert cost(both) == 6 + 2
    assert cost(both, Costs(9.9, 0.2, 1.0, 0.0)) == pytest.approx(59.4 + 0.2 + 7)


def test_as_metrics():
    found = as_metrics(Spent(4, 1, 2, 3), Costs(1.0, 0.0, 0.0, 2.0))
    assert {name: float(value) for name, value in found.items()} == {
        "spent/network_calls": 4, "spent/decodes": 1, "spent/reward_calls": 2,
        "spent/backward_calls": 3, "spent/cost": 10,
    }  # fmt: skip


def test_a_negative_price_is_refused():
    with pytest.raises(ValueError, match="decode = -1.0"):
        cost(Spent(1), Costs(decode=-1.0))

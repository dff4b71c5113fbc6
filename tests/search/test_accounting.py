import pytest

from jaxreward.search.accounting import Costs, Spent, add, cost, times


def test_sums_and_prices():
    both = add(Spent(2, 1, 3, 1), times(Spent(1, 0, 1), 4))
    assert both == Spent(6, 1, 7, 1)
    assert cost(both) == 6 + 2
    assert cost(both, Costs(9.9, 0.2, 1.0, 0.0)) == pytest.approx(59.4 + 0.2 + 7)


def test_a_negative_price_is_refused():
    with pytest.raises(ValueError, match="decode = -1.0"):
        cost(Spent(1), Costs(decode=-1.0))

"""The coordinate check: muP passes from width 64 to 1024, the standard parametrization fails."""

import numpy as np
import pytest
from settings import model_config, parametrization_config

from lab.parametrization.check import CoordinateCheck, coordinate_check, fit_slope

FAMILY = {"width": 64, "head_width": 16, "sequence_length": 16, "vocab_size": 32}


@pytest.fixture(scope="module")
def checks():
    def check(name):
        return coordinate_check(model_config(**FAMILY), parametrization_config(name=name, base_width=64))

    return {name: check(name) for name in ("mup", "standard")}


def test_mup_passes(checks):
    check = checks["mup"]
    assert check.widths == (64, 128, 256, 512, 1024)
    assert check.passed, str(check)
    assert [slope.name for slope in check.slopes][:3] == ["embedding", "layer 0 attention", "layer 0 mlp"]
    assert all(slope.low < slope.slope < slope.high for slope in check.slopes)


def test_standard_fails_first_where_the_first_hidden_product_is(checks):
    """Adam moves each hidden weight by the learning rate, so that a product changes as width^1 (section 5)."""
    check = checks["standard"]
    assert not check.passed and check.offenders[0].name == "layer 0 attention", str(check)
    slopes = {slope.name: slope for slope in check.slopes}
    assert slopes["layer 0 mlp"].low > 0.6 and slopes["logits"].low > 0.3
    assert "failed, first at layer 0 attention" in str(check)


def test_both_agree_at_the_base_width(checks):
    for mup, standard in zip(checks["mup"].slopes, checks["standard"].slopes, strict=True):
        np.testing.assert_allclose(mup.changes[0], standard.changes[0], rtol=0.02)


def test_slope_and_interval_of_a_known_power():
    """Interval by hand: t(0.975, 4) = 2.776445, three widths and two seeds, residuals of +-0.1 at each width."""
    widths = [1, np.e, np.e**2]
    changes = np.exp(np.array([[0.1, -0.1], [0.6, 0.4], [1.1, 0.9]]))
    found = fit_slope("x", widths, changes, 0.95)
    half = 2.776445 * np.sqrt(6 * 0.01 / 4) / np.sqrt(4)
    np.testing.assert_allclose([found.slope, found.low, found.high], [0.5, 0.5 - half, 0.5 + half], rtol=1e-6)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_change_that_has_no_slope_is_not_passed(bad):
    found = fit_slope("x", [1, 2], np.array([[1.0, 1.0], [1.0, bad]]), 0.95)
    assert np.isnan(found.slope)
    check = CoordinateCheck((1, 2), (-9.0, 9.0), (found,))
    assert not check.passed and check.offenders == (found,)

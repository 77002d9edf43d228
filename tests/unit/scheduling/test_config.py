"""The scheduler's configuration refuses values out of range and names the field, the value and what is expected."""

import math

import pytest

from ovi_ray.scheduling.config import (
    AdmissionConfig,
    CircuitBreakerConfig,
    CorrectionConfig,
    CostModelConfig,
    RetryConfig,
    SchedulerConfig,
    SpeculationConfig,
)

OUT_OF_RANGE = [
    (SchedulerConfig, "text_batch", 0),
    (SchedulerConfig, "max_latents", 0),
    (SchedulerConfig, "patience_s", -1.0),
    (SchedulerConfig, "patience_s", math.nan),
    (SchedulerConfig, "look_ahead", 0),
    (SchedulerConfig, "replan_share", -0.1),
    (RetryConfig, "max_attempts", 0),
    (RetryConfig, "max_crashes", 0),
    (CircuitBreakerConfig, "max_consecutive_failures", 0),
    (CircuitBreakerConfig, "max_refutations", 0.0),
    (CircuitBreakerConfig, "cooldown_s", -1.0),
    (SpeculationConfig, "speedup", 0.5),
    (SpeculationConfig, "late_share", -1.0),
    (AdmissionConfig, "embeddings_gb", -1.0),
    (AdmissionConfig, "embedding_gb_per_token", 0.0),
    (CostModelConfig, "max_load_ratio", 0.5),
]


@pytest.mark.parametrize(("config", "field", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_named_with_its_field(config, field, value):
    with pytest.raises(
        ValueError, match=rf"{config.__name__}\.{field} is {value!r}; expected (.* or more|more than 0)"
    ):
        config(**{field: value})


def test_a_negative_variance_is_refused():
    with pytest.raises(ValueError, match="variance"):
        CorrectionConfig(variance=-1.0, drift=0.0)


def test_the_defaults_are_valid_and_latents_may_be_unlimited():
    assert SchedulerConfig(max_latents=None) == SchedulerConfig()

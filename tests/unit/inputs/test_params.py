"""`SamplingParams` declares the sampling parameters; everything else that names them agrees with it."""

import dataclasses
import typing
from datetime import UTC, datetime

import pytest

from ovi.config import SamplingParams, param_specs
from ovi.errors import InvalidRequest
from ovi_ray.inputs.columns import INPUT_COLUMNS, OVERRIDES, SIZE_COLUMN
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import MANIFEST_SCHEMA
from ovi_ray.inputs.params import DEFAULT_PARAMS, PARAM_FIELDS, parse_param
from ovi_ray.inputs.rows import MANIFEST_COLUMNS
from ovi_ray.inputs.task_table import ClipTask
from ovi_ray.output.result_row import RESULTS_SCHEMA, result_row
from ovi_ray.scheduling.task import ClipStatus
from tests.support.params import another_value


def test_a_job_has_every_parameter_with_its_type_and_default():
    types = typing.get_type_hints(SamplingParams)
    fields = {name: field for name, field in JobSpec.model_fields.items() if name in PARAM_FIELDS}
    assert {name: field.annotation for name, field in fields.items()} == types
    assert {name: field.default for name, field in fields.items()} == dataclasses.asdict(DEFAULT_PARAMS)


def test_every_parameter_is_a_column_of_lists_and_manifests():
    assert set(PARAM_FIELDS) < set(OVERRIDES) < set(INPUT_COLUMNS)
    assert set(MANIFEST_SCHEMA.names) == {*INPUT_COLUMNS, *MANIFEST_COLUMNS} - {SIZE_COLUMN}


def test_results_show_parameters_as_the_manifest_has_them():
    shared = [name for name in RESULTS_SCHEMA.names if name in PARAM_FIELDS]
    assert shared
    assert set(shared) == set(PARAM_FIELDS) - {SIZE_COLUMN}
    assert [RESULTS_SCHEMA.field(name).type for name in shared] == [MANIFEST_SCHEMA.field(name).type for name in shared]
    params = SamplingParams(**{name: another_value(name) for name in PARAM_FIELDS})
    given = {field.name: 0 for field in dataclasses.fields(ClipTask)} | {"params": params, "clip_id": "a", "meta": {}}
    row = result_row(ClipTask(**given), {}, status=ClipStatus.DONE, finished_at=datetime.now(UTC))
    assert {name: row[name] for name in shared} == {name: getattr(params, name) for name in shared}


@pytest.mark.parametrize("name", PARAM_FIELDS)
def test_a_parameter_reads_back_from_the_text_of_its_value(name):
    value = another_value(name)
    text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
    assert parse_param(name, text) == value


@pytest.mark.parametrize("name", PARAM_FIELDS)
def test_a_parameter_of_another_type_is_refused_with_what_it_accepts(name):
    with pytest.raises(ValueError, match=r".") as refused:
        parse_param(name, {})
    assert str(refused.value).startswith(param_specs()[name].expected)
    with pytest.raises(InvalidRequest, match=f"^{name} is "):
        SamplingParams(**{name: {}})

"""The JSON Schema of a job file, with which editors complete and check it. `ovi-ray job schema` prints it."""

from typing import Any

from ovi.config import MODEL_SPECS, param_specs
from ovi_ray.inputs.job_file import ALIASES
from ovi_ray.inputs.job_spec import Help, JobSpec
from ovi_ray.inputs.params import PARAM_FIELDS

_SIZE_FORMS = [
    {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
    {"type": "string", "pattern": "^[0-9]+x[0-9]+$"},
]
_SECTION_HELP = {
    "resources": "What the job runs on: devices, how many, their memory and prices.",
    "policies": "What may be traded for what: retries, copies, checkpoints, speed-ups that change pixels.",
}


def job_schema() -> dict[str, Any]:
    """The schema. A field of a section is accepted at the top level as well, where the published files have it."""
    declared = JobSpec.model_json_schema()
    fields = {name: _field(name, schema) for name, schema in declared["properties"].items()}
    sections = {
        section: {
            "description": _SECTION_HELP[section],
            "type": "object",
            "properties": {name: fields[name] for name in names},
            "additionalProperties": False,
        }
        for section, names in JobSpec.sections.items()
    }
    aliases = {alias: {**fields[name], "description": f"Another name of {name}."} for alias, name in ALIASES.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ovi-ray job",
        "description": "A job of ovi-ray. Relative paths start from the folder of the file.",
        "type": "object",
        "properties": {**fields, **sections, **aliases},
        "additionalProperties": False,
        "$defs": declared["$defs"],
    }


def job_keys() -> list[str]:
    """Every key of a job file, those of sections and of a sweep as "section.key"."""
    grouped = [f"{section}.{name}" for section, names in JobSpec.sections.items() for name in names]
    in_sections = {name for names in JobSpec.sections.values() for name in names}
    return [*(name for name in JobSpec.model_fields if name not in in_sections), *grouped, *ALIASES]


def _field(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    expected = param_specs()[name].expected if name in PARAM_FIELDS else schema.get("description", "")
    field = {key: value for key, value in schema.items() if key != "title"}
    if name == "video_frame_height_width":
        field = {"anyOf": _SIZE_FORMS, "default": list(field["default"])}
    if name == "model_name":
        field["enum"] = list(MODEL_SPECS)
    return {**field, "description": f"{help_of(name)} Expected: {expected}.".strip()}


def help_of(name: str) -> str:
    """One line on a field of a job."""
    if name in PARAM_FIELDS:
        return param_specs()[name].help
    return next((str(part) for part in JobSpec.model_fields[name].metadata if isinstance(part, Help)), "")

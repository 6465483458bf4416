"""The name table and the JSON Schema that is made of it."""

import re

import jsonschema
import pytest

from tcptrace.probes.engine import schema
from tcptrace.probes.engine.constants import How, TcpState
from tcptrace.probes.states import STACKS

VALUES = {"string": "x", "integer": 1, "number": 1.5, "boolean": True}
VALUES |= {"strings": ["x"], "integers": [1]}


def example(name):
    """An event of that kind with every field filled in."""
    event = {
        field.name: field.values[0] if field.values else VALUES[field.kind]
        for field in schema.EVENTS[name]
    }
    return event | {"event": name}


@pytest.fixture(scope="module")
def validator():
    made = schema.json_schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


@pytest.mark.parametrize("name", schema.EVENTS)
def test_an_event_with_all_fields_is_valid(validator, name):
    validator.validate(example(name))


@pytest.mark.parametrize("name", schema.EVENTS)
def test_each_field_must_be_there_and_a_later_version_may_add_some(validator, name):
    event = example(name)
    assert validator.is_valid(event | {"added_later": 1})
    for field in schema.EVENTS[name]:
        without = {key: event[key] for key in event if key != field.name}
        assert validator.is_valid(without) == field.optional, field.name


def test_only_the_frames_of_stacks_may_be_left_out():
    optional = {
        field.name for fields in schema.EVENTS.values() for field in fields if field.optional
    }
    assert optional == {f"{name}_stack" for name in STACKS}


def test_each_stack_has_a_field_for_its_id():
    ids = [field.name for field in schema.STATE if field.name.endswith("_stack_id")]
    assert ids == [f"{name}_stack_id" for name in STACKS]


@pytest.mark.parametrize("name", schema.EVENTS)
def test_null_is_allowed_exactly_where_the_table_says(validator, name):
    for field in schema.EVENTS[name]:
        allowed = validator.is_valid(example(name) | {field.name: None})
        assert allowed == field.nullable, field.name


def test_a_value_outside_the_enumeration_is_refused(validator):
    assert not validator.is_valid(example("state") | {"new_state": "ESTAB"})
    assert not validator.is_valid(example("state") | {"cookie": 4711})  # 64 bits: a string


@pytest.mark.parametrize("name", schema.EVENTS)
def test_names_are_flat_snake_case_and_explained(name):
    names = [field.name for field in schema.EVENTS[name]]
    assert len(names) == len(set(names))
    for field in schema.EVENTS[name]:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", field.name)
        assert field.says
    assert schema.SAYS[name].endswith(".")


def test_the_enumerations_know_all_that_the_tracer_can_say():
    values = {field.name: field.values for field in schema.STATE}
    shown = {state.name for state in TcpState} - {"NEW_SYN_RECV"}  # told as SYN_RECV
    assert set(values["new_state"]) == set(values["old_state"]) == shown
    assert set(values["how"]) == {how.name.lower() for how in How} - {"unknown"}

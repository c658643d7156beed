"""Text becomes data: the same for YAML and JSON, with the place of what is wrong."""

import json

import pytest

from llmux.config.fields import WrittenFloat
from llmux.config.parse import parse
from llmux.errors import ConfigError, Problem


def problem_of(text: str, source: str = "llmux.yaml") -> Problem:
    with pytest.raises(ConfigError) as caught:
        parse(text, source)
    (problem,) = caught.value.problems
    assert caught.value.source == source
    return problem


def test_yaml_and_json_give_equal_data() -> None:
    yaml = "a: {b: [1, -2.5, 1.0e3, true, null, 'x']}\nc:\n  - d: text\n"
    as_json = json.dumps({"a": {"b": [1, -2.5, 1.0e3, True, None, "x"]}, "c": [{"d": "text"}]})
    assert parse(yaml, "").data == parse(as_json, "").data == json.loads(as_json)


@pytest.mark.parametrize("word", ["no", "yes", "on", "010", "0x1F", "12:30:45", "2024-01-01", "1_000", ".inf", "+1"])
def test_words_that_yaml_1_1_would_convert_stay_strings(word: str) -> None:
    assert parse(f"a: {word}", "").data == {"a": word}


@pytest.mark.parametrize("key", ["no", "70", "1.10", "null", "true"])
def test_keys_are_strings_as_written(key: str) -> None:
    assert parse(f"{key}: 1", "").data == {key: 1}


@pytest.mark.parametrize("text", ["a: [1.10, 5e-1, .5]", '{"a": [1.10, 5e-1, 0.5]}'])
def test_floats_remember_their_spelling(text: str) -> None:
    data = parse(text, "").data
    assert isinstance(data, dict)
    assert data["a"] == [1.1, 0.5, 0.5]
    assert [number.text for number in data["a"] if isinstance(number, WrittenFloat)][:2] == ["1.10", "5e-1"]


def test_json_with_tabs_and_surrogate_pairs() -> None:
    assert parse('{\n\t"a": "\\ud83d\\ude00"\n}', "").data == {"a": "😀"}


def test_a_flow_mapping_is_yaml_even_where_it_is_not_json() -> None:
    assert parse("{a: 1, b: [x,],}", "").data == {"a": 1, "b": ["x"]}


def test_aliases_and_merge_keys() -> None:
    text = "base: &base {x: 1, y: 2}\nother:\n  <<: *base\n  y: 3\n"
    parsed = parse(text, "")
    assert parsed.data == {"base": {"x": 1, "y": 2}, "other": {"x": 1, "y": 3}}
    assert parsed.problems == ()


def test_keys_given_twice_in_yaml_are_all_found_with_their_lines() -> None:
    parsed = parse("a:\n  b: 1\n  b: 2\nc: [{d: 1, d: 2}]\na: 3\n", "")
    assert [(problem.path, problem.message) for problem in parsed.problems] == [
        ("a.b", "the key is given twice (lines 2 and 3)"),
        ("c.0.d", "the key is given twice (lines 4 and 4)"),
        ("a", "the key is given twice (lines 1 and 5)"),
    ]


def test_keys_given_twice_in_json_are_all_found() -> None:
    parsed = parse('{"a": {"b": 1, "b": 2}, "c": [{"d": 1, "d": 2}], "e": 1}', "")
    assert [problem.path for problem in parsed.problems] == ["a.b", "c.0.d"]


def test_bad_yaml_is_reported_with_line_and_column() -> None:
    problem = problem_of("a: 1\nb: [1, 2\nc: 3\n")
    assert "not YAML at line 3, column 2" in problem.message


def test_a_tab_gets_its_own_remedy() -> None:
    assert problem_of("a:\n\tb: 1\n").remedy == "indent with spaces"


def test_bad_json_is_reported_as_json_where_the_file_says_so() -> None:
    assert "not JSON at line 2, column 6" in problem_of('{\n "a" 1]', "config.json").message
    assert "not YAML at line" in problem_of('{\n "a" 1]', "config.yaml").message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("a: 1\n---\nb: 2\n", "a single document", id="two-documents"),
        pytest.param("a: !!python/object/apply:os.getcwd []", "could not determine a constructor", id="python-object"),
        pytest.param("? [a, b]\n: 1", "unhashable key", id="list-as-key"),
        pytest.param("a: \x01", "not YAML: unacceptable character", id="control-character"),
        pytest.param("a: " + "[" * 5000, "nested too deeply", id="deep-yaml"),
        pytest.param('{"a": ' + "[" * 50000, "nested too deeply", id="deep-json"),
        pytest.param("a: " + "9" * 5000, "the file cannot be read", id="number-of-5000-digits"),
    ],
)
def test_other_unreadable_files_have_one_clear_problem(text: str, words: str) -> None:
    assert words in problem_of(text).message


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_has_no_data(text: str) -> None:
    assert parse(text, "").data is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a:\t 1", id="tab-after-a-colon"),
        pytest.param("a\t: 1", id="tab-in-a-key"),
        pytest.param("a: {b: c?}", id="question-mark-in-a-flow-mapping"),
        pytest.param("a: {!b, !c: 1}", id="tag-in-a-flow-mapping"),
        pytest.param("a: >-#\n  b", id="comment-at-a-header"),
        pytest.param("%YAML 1.1#\n---\na: 1", id="comment-at-a-directive"),
        pytest.param("a: 1\n\ufeff", id="byte-order-mark-at-the-end"),
    ],
)
def test_what_only_libyaml_accepts_is_refused(text: str) -> None:
    assert "not YAML at line" in problem_of(text).message

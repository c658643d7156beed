"""The register of names."""

from llmux.core.names import ModelName, NameKind, own_names, register


def test_of_equal_names_the_first_counts_and_the_order_stays() -> None:
    names = [ModelName("b", "b", "b"), ModelName("a", "a", "a"), ModelName("a", "b", "b", NameKind.ALIAS)]
    assert list(register(names).values()) == names[:2]


def test_a_model_without_further_names_is_called_by_its_own() -> None:
    assert own_names(["x"]) == {"x": ModelName("x", "x", "x", NameKind.MODEL)}

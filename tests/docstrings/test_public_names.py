"""Every public name tells its parameters, what it gives, what it raises, and the shapes of its tensors."""

from __future__ import annotations

import inspect
import re

import pytest

from .public import Callee, callees

pytest.importorskip("trl")

ALL = callees()
SHAPE = re.compile(r"\[[^\]\n]*\]|scalar|\bshape\b")


def test_the_table_is_not_empty() -> None:
    names = {callee.name for callee in ALL}
    assert {"peft_reft.ReftConfig", "peft_reft.convert", "peft_reft.causal.Pca.fit"} <= names
    assert len(names) > 180


@pytest.mark.parametrize("callee", ALL, ids=lambda callee: callee.name)
def test_a_docstring_says_all_that_a_caller_needs(callee: Callee) -> None:
    assert callee.doc
    assert re.match(r".+[.:?]($|\n| )", callee.doc), "the first line is a sentence"
    told = callee.told
    if callee.source is not None and not callee.inherited:
        assert sorted(told) == sorted(callee.parameters), "Args: every parameter and no other"
        annotation = inspect.signature(callee.source).return_annotation
        nothing = annotation in (None, "None", inspect.Signature.empty) or callee.source.__name__ == "__init__"
        if callee.parameters and not nothing:
            assert callee.section("Returns") or callee.section("Yields"), f"Returns: {annotation}"
    named = {name: callee.exception(name) for name in callee.items("Raises")}
    assert None not in named.values(), f"Raises: {named}"
    kinds = tuple(kind for kind in named.values() if kind)
    untold = [each.__name__ for each in callee.raised if not issubclass(each, kinds)]
    assert not untold or callee.inherited, "Raises: what the body raises"


@pytest.mark.parametrize("callee", [each for each in ALL if each.source], ids=lambda callee: callee.name)
def test_a_tensor_has_its_shape(callee: Callee) -> None:
    if callee.inherited or callee.source is None:
        return
    spoken = [str(annotation) for annotation in inspect.get_annotations(callee.source).values()]
    if any(re.search(r"\bTensor\b|LongTensor", annotation) for annotation in spoken):
        assert SHAPE.search(callee.doc), "the shape of a tensor"

"""Tags and the spans that they mean: every scheme, and the same spans as conlleval's rule gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.tag_schemes import first_unopened, is_tag, scheme_of, spans_of_tags, tags_of_spans

SPANS = [(0, 2, "person"), (2, 3, "person"), (4, 7, "creative-work")]
IN_SCHEME = {
    "IOB2": "B-person I-person B-person O B-creative-work I-creative-work I-creative-work",
    "IOB1": "I-person I-person B-person O I-creative-work I-creative-work I-creative-work",
    "IOBES": "B-person E-person S-person O B-creative-work I-creative-work E-creative-work",
    "BILOU": "B-person L-person U-person O B-creative-work I-creative-work L-creative-work",
    "BMES": "B-person E-person S-person O B-creative-work M-creative-work E-creative-work",
}


def test_the_same_spans_in_every_scheme() -> None:
    for scheme, tags in IN_SCHEME.items():
        assert spans_of_tags(tags.split()) == SPANS, scheme
        assert scheme_of([tags.split()]) == scheme
    assert tags_of_spans(SPANS, 7) == IN_SCHEME["IOB2"].split()


def test_runs_without_any_b() -> None:
    tags = ["I-x", "I-x", "O", "I-y", "I-x"]
    assert scheme_of([tags]) == "IO"
    assert spans_of_tags(tags) == [(0, 2, "x"), (3, 4, "y"), (4, 5, "x")]
    assert scheme_of([["O", "O"], []]) is None


def test_what_continues_nothing_opens_a_span_and_is_named() -> None:
    assert spans_of_tags(["O", "I-x", "I-x", "B-y", "I-x"]) == [(1, 3, "x"), (3, 4, "y"), (4, 5, "x")]
    assert first_unopened(["B-x", "I-x", "O", "I-x"]) == 3
    assert first_unopened(["B-x", "I-x", "O", "S-x", "B-y", "E-y"]) is None
    assert first_unopened(["S-x", "I-x"]) == 1


def test_what_is_a_tag() -> None:
    assert all(map(is_tag, ["O", "B-PER", "I_LOC", "U-creative-work", "B-人"]))
    assert not any(map(is_tag, ["", "0", "o", "PER", "B", "B-", "X-PER", "IN", "O "]))


@given(st.lists(st.sampled_from(["O", *(f"{m}-{x}" for m in "BIES" for x in "ab")]), max_size=12))
def test_spans_come_in_order_and_do_not_overlap(tags: list[str]) -> None:
    spans = spans_of_tags(tags)
    covered = [n for start, end, _ in spans for n in range(start, end)]
    assert covered == [n for n, tag in enumerate(tags) if tag != "O"]
    assert spans_of_tags(tags_of_spans(spans, len(tags))) == spans

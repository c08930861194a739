import pytest

from sae_lib.report.tokens import Piece, pieces, shown_tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", [Piece("cat", False)]),
        ("a\nb", [Piece("a", False), Piece("↵", True), Piece("b", False)]),
        ("\u200b\u202e", [Piece("U+200B", True), Piece("U+202E", True)]),
        ("\x00", [Piece("U+0000", True)]),
        ("\u2028", [Piece("U+2028", True)]),
        ("<b>&\"'", [Piece("<b>&\"'", False)]),
        ("語 é", [Piece("語 é", False)]),
        ("", []),
    ],
)
def test_what_cannot_be_seen_becomes_a_sign_and_the_rest_stays(text, expected):
    assert pieces(text) == expected


def _text(shown):
    return "".join(piece.text for token in shown for piece in token.pieces)


def test_tokens_that_bring_their_spaces_are_joined_as_they_are():
    shown = shown_tokens(["Once", " up", "on"], [0.0, 1.0, 0.0], strongest=2.0, peak=1)
    assert _text(shown) == "Once upon"


def test_tokens_of_whole_words_are_given_spaces():
    shown = shown_tokens(["once", "upon"], [0.0, 1.0], strongest=2.0, peak=1)
    assert _text(shown) == "once upon"


def test_strength_is_relative_to_the_strongest_and_stays_between_0_and_1():
    shown = shown_tokens(list("abcd"), [0.0, 1.0, 5.0, -1.0], strongest=2.0, peak=2)
    assert [token.share for token in shown] == [0.0, 0.5, 1.0, 0.0]
    assert [token.activation for token in shown] == [0.0, 1.0, 5.0, -1.0]
    assert [token.is_peak for token in shown] == [False, False, True, False]


def test_a_latent_that_never_fires_lights_up_nothing():
    assert [t.share for t in shown_tokens(["a"], [0.0], strongest=0.0, peak=0)] == [0.0]

import pytest

from worker.tokens import Session, is_operator, operator_token, read_session, session_text

SECRET = b"s" * 32
SESSION = Session("key_ab12", 3, 2_000)


def test_a_session_says_who_until_it_is_over() -> None:
    text = session_text(SECRET, SESSION)
    assert read_session(SECRET, text, 1_999) == SESSION
    assert read_session(SECRET, text, 2_000) is None


def test_no_change_of_a_session_goes_unseen() -> None:
    text = session_text(SECRET, SESSION)
    for i in range(len(text)):
        changed = text[:i] + chr(ord(text[i]) ^ 1) + text[i + 1 :]
        assert read_session(SECRET, changed, 0) is None
    assert read_session(b"other", text, 0) is None


@pytest.mark.parametrize("text", ["", ".", "a", "a.b.c.d", "key_ab12.3.9999", "é" * 90, "." * 99])
def test_nonsense_is_nobody(text: str) -> None:
    assert read_session(SECRET, text, 0) is None
    assert not is_operator(SECRET, text, 0)
    assert not is_operator(SECRET, "zimage-operator." + text, 0)


def test_an_operators_token_lasts_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.tokens.time.time", lambda: 1_000.0)
    text = operator_token(SECRET)
    assert is_operator(SECRET, text, 1_599)
    assert not is_operator(SECRET, text, 1_600)
    assert not is_operator(b"other", text, 1_000)


def test_one_kind_of_proof_is_not_taken_for_the_other() -> None:
    assert read_session(SECRET, operator_token(SECRET), 0) is None
    assert not is_operator(SECRET, session_text(SECRET, SESSION), 0)

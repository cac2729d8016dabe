import hashlib
import hmac

import pytest

from worker.accounts.tokens import (
    Session,
    is_of_before_ids,
    is_operator,
    operator_token,
    read_session,
    session_text,
)

SECRET = b"s" * 32
SESSION = Session("key_ab12", 3, 2_000, "c0ffee", 1_000)
MAX_S = 5_000.0


def test_a_session_says_who_until_it_is_over() -> None:
    text = session_text(SECRET, SESSION)
    assert read_session(SECRET, text, 1_999, MAX_S) == SESSION
    assert read_session(SECRET, text, 2_000, MAX_S) is None


def test_a_session_that_is_renewed_again_and_again_ends_all_the_same() -> None:
    text = session_text(SECRET, SESSION)
    assert read_session(SECRET, text, 1_499, 500.0) == SESSION
    assert read_session(SECRET, text, 1_500, 500.0) is None


def _of_an_earlier_version(told: str) -> str:
    signature = hmac.new(SECRET, b"token " + told.encode(), hashlib.sha256).hexdigest()
    return f"{told}.{signature}"


def test_a_session_of_an_earlier_version_is_good_until_its_end_and_can_be_told() -> None:
    text = _of_an_earlier_version("key_ab12.3.2000")
    session = read_session(SECRET, text, 1_999, MAX_S)
    assert session is not None
    assert (session.key_id, session.version, session.expires_at) == ("key_ab12", 3, 2_000)
    assert session.started_at + MAX_S == session.expires_at
    other = read_session(SECRET, _of_an_earlier_version("key_ab12.3.2001"), 1_999, MAX_S)
    assert other is not None
    assert session.id != other.id
    assert len(session.id) == 32
    assert read_session(SECRET, text, 2_000, MAX_S) is None
    assert is_of_before_ids(text)
    assert not is_of_before_ids(session_text(SECRET, SESSION))


def test_no_change_of_a_session_goes_unseen() -> None:
    text = session_text(SECRET, SESSION)
    for i in range(len(text)):
        changed = text[:i] + chr(ord(text[i]) ^ 1) + text[i + 1 :]
        assert read_session(SECRET, changed, 0, MAX_S) is None
    assert read_session(b"other", text, 0, MAX_S) is None


@pytest.mark.parametrize("text", ["", ".", "a", "a.b.c.d", "key_ab12.3.9999", "é" * 90, "." * 99])
def test_nonsense_is_nobody(text: str) -> None:
    assert read_session(SECRET, text, 0, MAX_S) is None
    assert not is_operator(SECRET, text, 0)
    assert not is_operator(SECRET, "zimage-operator." + text, 0)


def test_an_operators_token_lasts_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.accounts.tokens.time.time", lambda: 1_000.0)
    text = operator_token(SECRET)
    assert is_operator(SECRET, text, 1_599)
    assert not is_operator(SECRET, text, 1_600)
    assert not is_operator(b"other", text, 1_000)


def test_one_kind_of_proof_is_not_taken_for_the_other() -> None:
    assert read_session(SECRET, operator_token(SECRET), 0, MAX_S) is None
    assert not is_operator(SECRET, session_text(SECRET, SESSION), 0)

"""Control characters of a received text are escaped: it can neither move the cursor nor pass for markup."""

from __future__ import annotations

import io
import json
import sys

import structlog
from hypothesis import given
from hypothesis import strategies as st

from bus.observability.logging import set_up_logs
from bus.utils.terminal import escape_control


def test_controls_are_written_out():
    assert escape_control("a\x1b[2Jb\x9bc\rd\u202ee\nf") == "a\\u001b[2Jb\\u009bc\\u000dd\\u202ee\\u000af"
    assert escape_control("two\nlines", keep="\n") == "two\nlines"


@given(st.text())
def test_nothing_else_changes_and_json_is_the_same(text):
    line = json.dumps(text, ensure_ascii=False)
    assert json.loads(escape_control(line)) == text
    result = escape_control(text)
    assert not any(character < " " or "\x7f" <= character <= "\x9f" for character in result)
    assert escape_control(result) == result


def test_no_character_at_all_commands_a_terminal_or_cannot_be_printed():
    for number in range(sys.maxunicode + 1):
        result = escape_control(chr(number)).encode()
        assert result.isascii() == (number < 0x80 or result.startswith(b"\\u")), hex(number)
        assert not any(byte < 0x20 or byte == 0x7F for byte in result), hex(number)


def test_logs_on_a_terminal_are_escaped():
    terminal = io.StringIO()
    try:
        set_up_logs("info", terminal, json=False)
        structlog.get_logger("test").info("poison", problem="\x1b]0;owned\x07", about={"name": "\x1b[2J"}, of=b"\x1b")
    finally:
        set_up_logs("info")
    assert "\\u001b]0;owned\\u0007" in terminal.getvalue()
    assert "\x1b]" not in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()

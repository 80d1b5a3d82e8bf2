"""Stories of the protocol, each as the text that it has in transcripts/: what went into the cores, and what came out.

A difference is a changed behaviour. When it is meant: `pytest tests/unit/vsr/test_transcripts.py
--rewrite-transcripts`, and the files are read before they are committed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from lab.transcripts import play

STORIES = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_story_is_told_as_before(path: Path, request: pytest.FixtureRequest) -> None:
    before = path.read_text(encoding="utf-8")
    now = play(before)
    if request.config.getoption("--rewrite-transcripts"):
        path.write_text(now, encoding="utf-8")
    else:
        assert now == before, (
            f"{path.name} is told in another way; when that is meant: --rewrite-transcripts, and read it"
        )


def test_a_story_is_told_the_same_way_twice() -> None:
    text = STORIES[0].read_text(encoding="utf-8")
    assert play(play(text)) == play(text)


def test_a_command_that_there_is_not_is_said() -> None:
    with pytest.raises(ValueError, match="no command `fly`"):
        play("> fly\n")

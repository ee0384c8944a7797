"""`scripts/pictures` makes the pictures of the documentation."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

from tests.browser import needs_browser
from tests.pictures import IMAGES, PICTURES, WINDOWS

SCRIPT = IMAGES.parent.parent / "scripts" / "pictures"


def size(picture: bytes) -> tuple[int, int]:
    """Width and height of a PNG."""
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    return int(width), int(height)


@needs_browser
def test_it_makes_a_picture_anew(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, "--to", tmp_path, "invitation-mail"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (made,) = tmp_path.iterdir()
    assert made.name == "invitation-mail.png"
    width, height = size(made.read_bytes())
    assert width == 2 * 8 + sum(round(window * 0.7) for window, _ in WINDOWS)
    assert width == size((IMAGES / made.name).read_bytes())[0] and 300 < height < 800  # which fonts there are decides
    assert len(made.read_bytes()) > 50_000  # or there is nothing on it


def test_what_there_is_no_picture_of_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, "--to", tmp_path, "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "choose from mail, invitation-mail, invitation" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_picture_of_the_documentation_can_be_made() -> None:
    pages = "".join(page.read_text() for page in IMAGES.parent.glob("*.md"))
    shown = set(re.findall(r"\(images/([\w-]+)\.png\)", pages))
    assert shown == set(PICTURES) == {path.stem for path in IMAGES.glob("*.png")}

"""Text as files and columns can hold it: half a character, as a cut within an emoji leaves it, is none."""

import json
from typing import Any

HALF = "holds half a character: a text was cut within one"


def is_whole(value: Any) -> bool:
    """Whether all texts of a JSON value can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True

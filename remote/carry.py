"""Carries files between two machines, told by one line of JSON; sent along with each call, since a machine may have
nothing of ours yet.

    carry.py list ROOT                      what is in a folder, NUL-separated
    carry.py take ROOT < order, frames      hold what comes; answers in lines of JSON
    carry.py give ROOT < order > frames     send what is asked for and what the asker lacks
    carry.py survey ROOT < order            sizes and hashes of what is there, and the free room
"""

import contextlib
import errno
import os
import sys
from typing import Any, Dict

from remote.frames import CHUNK, Broken, Pieces, frames, line_of, packed, unpacked
from remote.holdings import HASHES, PARTS, Hashes, lacking, records, survey
from remote.taking import Taker, remove

ABSENT = 44  # exit code: there is no such file or folder


def main(verb: str, root: str) -> int:
    """0; `ABSENT`; 1 with a last line {"error": one sentence, "errno": …}."""
    out = sys.stdout.buffer

    def tell(value: Dict[str, Any]) -> None:
        out.write(line_of(value))
        out.flush()

    try:
        if verb == "list":
            out.writelines(records(root))
            out.flush()
            return 0
        pieces = Pieces(iter(lambda: os.read(0, CHUNK), b""))
        order = pieces.line()
        if verb == "take":
            remove(root, order.get("remove") or ())
            parts = os.path.join(root, PARTS) if order.get("parts") else ""
            hashes = Hashes(os.path.join(root, HASHES)) if parts else None
            body = unpacked(pieces.rest()) if order.get("packed") else pieces.rest()
            os.makedirs(root, exist_ok=True)
            Taker(root, tell, parts, hashes=hashes).take(Pieces(body))
            if parts:
                with contextlib.suppress(OSError):
                    os.rmdir(parts)  # empty, unless something else was cut
            tell({"done": True})
        elif verb == "give":
            if not os.path.lexists(root):
                return ABSENT
            body = frames(root, lacking(root, order), order.get("offsets"))
            for piece in packed(body) if order.get("packed") else body:
                out.write(piece)
            out.flush()
        else:
            if order.get("must") and not os.path.lexists(root):
                return ABSENT
            tell(survey(root, order, tell))
    except Broken as e:
        tell({"error": "what was sent can't be read: {}".format(e), "errno": 0})
        return 1
    except OSError as e:
        if e.errno == errno.EPIPE:  # nobody listens any more
            return 1
        where = os.fsdecode(e.filename) if isinstance(e.filename, (str, bytes)) else root
        with contextlib.suppress(OSError):
            tell({"error": "{}: {}".format(where, e.strerror or e), "errno": e.errno})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))

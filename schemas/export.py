"""Write the JSON Schema of every event to schemas/json/: `make json`. A contract test proves that they are in step."""

from __future__ import annotations

import json
from pathlib import Path

from schemas.events import EVENTS, json_schema

FOLDER = Path(__file__).parent / "json"


def rendered() -> dict[str, str]:
    """Return the file name and text of each event's schema."""
    return {f"{name}.json": json.dumps(json_schema(event), indent=2) + "\n" for name, event in EVENTS.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)

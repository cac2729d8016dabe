"""What every server in the comparison answers with: 20 KB of base64 PNG in JSON."""

import base64
import json
import os

PNG_BYTES = 15_000


def picture() -> str:
    """Base64 of as many bytes as a small PNG has."""
    return base64.b64encode(os.urandom(PNG_BYTES)).decode()


PICTURE = picture()


def answer(prompt: str) -> dict[str, object]:
    """OpenAI's shape."""
    return {"created": 0, "data": [{"b64_json": PICTURE, "prompt": prompt}]}


def json_answer(prompt: str) -> str:
    return json.dumps(answer(prompt))

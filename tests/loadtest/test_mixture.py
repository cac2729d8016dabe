"""What the pictures of a mixed load are held to, and what they are asked for with."""

import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes

import numpy as np
import pytest
from PIL import Image

from loadtest.checks import TINY, Checker, Pixels, Shown
from loadtest.client import EDITS, UPLOADS, Client
from loadtest.mixture import ADAPTERS, KINDS, SIDE, Asked, Mixture
from tests.http_server import QuietHandler, serving
from tests.loadtest.test_checks import png
from tinymodel.shapes import Scene, Shape, draw

RED = Shape("circle", "red", "large", "left")


def picture(*shapes: Shape, background: str = "white") -> Pixels:
    return np.asarray(draw(Scene(background, shapes), SIDE, SIDE))


@dataclass
class Cell:
    """Takes uploads, answers every drawing with ``answer``, and remembers what was sent."""

    url: str = ""
    answer: Pixels = field(default_factory=lambda: picture(RED))
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)


@pytest.fixture
def cell() -> Iterator[Cell]:
    told = Cell()

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.asked.append((self.path, self.headers["Content-Type"], body))
            number = len(told.asked)
            if self.path == UPLOADS:
                self.tell(201, {"id": f"upload_{number}"})
            else:
                self.tell(200, {"data": [{"b64_json": png(told.answer), "seed": 7}]})

        def do_GET(self) -> None:
            self.tell(200, {})

        def tell(self, status: int, content: object) -> None:
            self.send_response(status)
            self.send_header("X-Request-ID", f"r{len(told.asked)}")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

    with serving(Handler) as told.url:
        yield told


@pytest.fixture
def client(cell: Cell) -> Iterator[Client]:
    client = Client(cell.url, Checker(TINY))
    yield client
    client.session.close()


@pytest.fixture
def mixture(client: Client) -> Mixture:
    return Mixture(client)


def asked_for(mixture: Mixture, kind: str, **body: object) -> Asked:
    """One whose body has all of ``body``; 200 are looked at."""
    all_of_them = (mixture.asked(kind, random.Random(number)) for number in range(200))
    return next(a for a in all_of_them if a.kind == kind and body.items() <= a.body.items())


def problem(asked: Asked, pixels: Pixels) -> str:
    checker = asked.way.checker
    assert isinstance(checker, Shown)
    return checker.wrong(pixels)


def test_all_kinds_are_asked_for_as_files_uploads_and_pictures_of_the_gallery(
    mixture: Mixture, cell: Cell
) -> None:
    ids = {f"upload_{n + 1}" for n, (path, *_) in enumerate(cell.asked) if path == UPLOADS}
    gallery = {f"r{n + 1}-0" for n, (path, *_) in enumerate(cell.asked) if path == EDITS}
    assert (len(ids), len(gallery)) == (4, 2)
    asked = [mixture.asked(kind, random.Random(n)) for kind in KINDS for n in range(40)]
    named = {a.body["image"] for a in asked if "image" in a.body}
    assert named & ids
    assert named & gallery
    for kind, files in (("image", {"image"}), ("mask", {"image", "mask"})):
        assert {frozenset(a.way.files) for a in asked if a.kind == kind} == {
            frozenset(files),
            frozenset(),
        }
    names = {lora["name"] for a in asked for lora in a.body.get("lora", [])}
    assert names == {*ADAPTERS.values()}


def test_a_form_has_the_files_and_what_was_asked_for(
    mixture: Mixture, client: Client, cell: Cell
) -> None:
    asked = next(a for n in range(40) if (a := mixture.asked("mask", random.Random(n))).way.files)
    client.draw(asked.body, asked.way)
    path, content_type, body = cell.asked[-1]
    form = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    parts = {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
        for part in form.get_payload()
        if not isinstance(part, str)
    }
    assert path == EDITS
    assert parts["prompt"] == asked.body["prompt"].encode()
    assert parts["store"] == b"false"
    mask = parts["mask"]
    assert isinstance(mask, bytes)
    assert Image.open(io.BytesIO(mask)).getchannel("A").getextrema() == (0, 255)


def test_the_composition_must_be_kept_and_drawn_anew(mixture: Mixture) -> None:
    asked = next(
        a
        for n in range(40)
        if (a := mixture.asked("image", random.Random(n))).way.checker is not None
        and "circle" in a.body["prompt"]
        and a.way.files
        and np.array_equal(np.asarray(Image.open(io.BytesIO(a.way.files["image"]))), picture(RED))
    )
    source = picture(RED)
    lighter = (source.astype(int) * 9 // 10).astype(np.uint8)
    assert problem(asked, lighter) == ""
    assert "that was sent" in problem(asked, source)
    assert "composition" in problem(asked, np.roll(lighter, 60, axis=1))


def test_outside_of_the_mask_each_value_must_be_kept(mixture: Mixture) -> None:
    asked = mixture.asked("mask", random.Random(0))
    colour = asked.body["prompt"].split(" small ")[2].split()[0]
    star = Shape("star", "red", "small", "left")
    before = picture(star, Shape("heart", "blue", "small", "right"))
    drawn = before.copy()
    drawn[:, SIDE // 2 :] = picture(star, Shape("heart", colour, "small", "right"))[:, SIDE // 2 :]
    assert problem(asked, drawn) == ""
    assert "within the mask" in problem(asked, before)
    drawn[0, 0, 0] -= 1
    assert "outside" in problem(asked, drawn)


def test_adapters_must_show(mixture: Mixture) -> None:
    night = asked_for(mixture, "lora", lora=[{"name": ADAPTERS["night"], "scale": 1.0}])
    stars = asked_for(mixture, "lora", lora=[{"name": ADAPTERS["stars"], "scale": 1.0}])
    star = Shape("star", "red", "large")
    assert problem(night, picture(RED, background="black")) == ""
    assert problem(night, picture(RED)) == "a white background"
    assert problem(stars, picture(star)) == ""
    assert "instead of a star" in problem(stars, picture(RED))
    assert "black" in problem(stars, picture(star, background="black"))


def test_the_same_request_must_give_the_same_picture(
    mixture: Mixture, client: Client, cell: Cell
) -> None:
    asked = asked_for(mixture, "lora", lora=[{"name": ADAPTERS["stars"], "scale": 1.0}])
    body = asked.body | {"seed": 7}
    cell.answer = picture(Shape("star", "red", "large"))
    assert client.draw(body, asked.way).error == ""
    cell.answer = picture(Shape("star", "green", "large"))
    assert "differs" in client.draw(body, asked.way).error
    other = asked_for(mixture, "text")
    cell.answer = picture(Shape("star", "green", "large"))
    assert "differs" not in client.draw(body | {"prompt": other.body["prompt"]}, other.way).error

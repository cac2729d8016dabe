"""Scenes in words, English and Chinese, and back.

`caption` phrases a scene in one of many ways; `scene_of` reads a phrase and says what it asks for.
Both, and the tokenizer, share one vocabulary. Words outside it are ignored.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal
from unicodedata import normalize
from zlib import crc32

from tinymodel.shapes import KINDS, OPPOSITE, PALETTE, POSITIONS, SIZES, Scene, Shape

Language = Literal["en", "zh"]

# Words for each thing: (English, Chinese).
COLOURS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "red": (("red",), ("红色", "红")),
    "orange": (("orange",), ("橙色", "橙", "橘色")),
    "yellow": (("yellow", "golden"), ("黄色", "黄", "金色")),
    "green": (("green",), ("绿色", "绿")),
    "cyan": (("cyan", "turquoise"), ("青色", "青")),
    "blue": (("blue",), ("蓝色", "蓝")),
    "purple": (("purple", "violet"), ("紫色", "紫")),
    "pink": (("pink",), ("粉色", "粉红色", "粉")),
    "brown": (("brown",), ("棕色", "褐色", "棕")),
    "black": (("black",), ("黑色", "黑")),
    "white": (("white",), ("白色", "白")),
    "grey": (("grey", "gray"), ("灰色", "灰")),
}
KIND_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "circle": (("circle", "disc", "disk", "dot", "ball"), ("圆形", "圆", "圆圈", "圆点", "球")),
    "square": (("square", "box", "block"), ("正方形", "方块", "方形", "正方")),
    "triangle": (("triangle",), ("三角形", "三角")),
    "star": (("star",), ("星星", "五角星", "星形", "星")),
    "heart": (("heart",), ("心形", "爱心", "心")),
    "ring": (("ring", "hoop", "donut"), ("圆环", "环", "环形")),
    "cross": (("cross", "plus"), ("十字", "十字形", "加号")),
    "moon": (("moon", "crescent"), ("月亮", "月牙", "弯月")),
}
SIZE_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "small": (("small", "little", "tiny"), ("小", "小小", "很小")),
    "large": (("large", "big", "huge", "giant"), ("大", "巨大", "很大")),
}
# Chinese names a corner in one word, English in two.
_SIDES_EN = {
    "left": ("left",),
    "right": ("right",),
    "top": ("top", "upper", "above"),
    "bottom": ("bottom", "lower", "below", "under"),
    "centre": ("centre", "center", "middle"),
}
PLACES_ZH: dict[str, tuple[str, ...]] = {
    "centre": ("中间", "中央", "中心", "正中"),
    "left": ("左边", "左侧", "左面"),
    "right": ("右边", "右侧", "右面"),
    "top": ("上面", "上方", "顶部", "上边"),
    "bottom": ("下面", "下方", "底部", "下边"),
    "top left": ("左上角", "左上方", "左上"),
    "top right": ("右上角", "右上方", "右上"),
    "bottom left": ("左下角", "左下方", "左下"),
    "bottom right": ("右下角", "右下方", "右下"),
}
_BACKGROUNDS = ("background", "backdrop", "背景", "底")
_BREAKS = (",", "and", "和", "还有", "与")
_FILLERS = (
    "a", "an", "the", "one", "is", "in", "on", "at", "to", "of", "with", "against", "there", "side",
    "corner", "plain", "solid", "draw", "paint", "picture", "image", "drawing", "show", "please",
    "一", "个", "一个", "一颗", "一只", "的", "在", "是", "有", "上", "里", "画", "图", "图片",
    "请", "纯", "画面", "为", "靠",
)  # fmt: skip

_HELD_OUT_SHARE = 10  # one scene in so many is never trained on


@dataclass(frozen=True)
class _Word:
    role: str  # colour, kind, size, place, background, break or filler
    value: str


def _roles() -> dict[str, _Word]:
    words = {word: _Word("filler", word) for word in _FILLERS}
    for role, table in (("colour", COLOURS), ("kind", KIND_WORDS), ("size", SIZE_WORDS)):
        for value, (english, chinese) in table.items():
            words |= {word: _Word(role, value) for word in english + chinese}
    for places in (_SIDES_EN, PLACES_ZH):
        words |= {word: _Word("place", v) for v, synonyms in places.items() for word in synonyms}
    words |= {word: _Word("background", word) for word in _BACKGROUNDS}
    return words | {word: _Word("break", word) for word in _BREAKS}


_ROLES = _roles()
VOCABULARY: tuple[str, ...] = tuple(_ROLES)


def pattern() -> str:
    """A regular expression for the words known, longest first (normalised text: NFKC, lower)."""
    longest = sorted(VOCABULARY, key=lambda word: (-len(word), word))
    english = "|".join(word for word in longest if word.isascii() and word.isalpha())
    others = "|".join(
        re.escape(word) for word in longest if not (word.isascii() and word.isalpha())
    )
    return rf"(?<![a-z])(?:{english})(?![a-z])|{others}"


_PATTERN = re.compile(pattern())


def words(text: str) -> list[str]:
    """The known words of a text in order; the tokenizer splits in the same way."""
    return _PATTERN.findall(normalize("NFKC", text).lower())


# --- from scenes to words -------------------------------------------------------------------


def random_scene(rng: Random) -> Scene:
    """A scene as somebody may ask for it: some things said, others left open."""
    background = rng.choice(list(PALETTE)) if rng.random() < 0.9 else None
    draw = rng.random()
    if draw < 0.02 and background:
        return Scene(background)
    count = 1 if draw < 0.55 else 2
    free = [colour for colour in PALETTE if colour != background]
    colours: list[str | None] = list(rng.sample(free, count))
    if rng.random() < 0.08:
        colours = [colours[0]] * count
    if count == 1 and rng.random() < 0.04:
        colours = [None]
    spots = _random_spots(count, rng)
    shapes = [
        Shape(rng.choice(KINDS), colour, rng.choice((None, *SIZES)), spot)
        for colour, spot in zip(colours, spots, strict=True)
    ]
    return Scene(background, tuple(shapes))


def is_held_out(scene: Scene) -> bool:
    """Whether the scene is kept from training, for evaluation; the same in every process."""
    return crc32(repr(scene).encode()) % _HELD_OUT_SHARE == 0


def caption(scene: Scene, language: Language, rng: Random) -> str:
    """One of many phrasings of a scene."""
    return _english(scene, rng) if language == "en" else _chinese(scene, rng)


def _random_spots(count: int, rng: Random) -> list[str | None]:
    if rng.random() < 0.3:
        return [None] * count
    if count == 1:
        return [rng.choice(list(POSITIONS))]
    while True:
        first, second = rng.sample(list(POSITIONS), 2)
        (x, y), (u, v) = POSITIONS[first], POSITIONS[second]
        if max(abs(x - u), abs(y - v)) == 2:  # neighbours would overlap
            return [first, second]


def _english(scene: Scene, rng: Random) -> str:
    if not scene.shapes:
        return _some(rng, "a {0} background", "plain {0}", "a plain {0} picture", "{0}").format(
            _colour_en(scene.background, rng)
        )
    body = _relation_en(scene, rng) if _is_relation(scene) and rng.random() < 0.35 else None
    body = body or _some(rng, " and ", " and ", ", ").join(
        _shape_en(shape, len(scene.shapes), rng) for shape in scene.shapes
    )
    intro = _some(
        rng,
        *[""] * 6,
        "draw ",
        "a picture of ",
        "there is ",
        "an image of ",
        "paint ",
        "please draw ",
    )
    if scene.background is None:
        return intro + body
    colour = _colour_en(scene.background, rng)
    if rng.random() < 0.25:
        before = _some(
            rng, "{0} background, ", "on a {0} background, ", "a {0} background with ",
            "on a {0} background ", "a {0} background and ",
        )  # fmt: skip
        return before.format(colour) + body
    return intro + body + _some(
        rng, " on a {0} background", " on a {0} background", " against a {0} background",
        " with a {0} background", ", {0} background", ", the background is {0}", " {0} background",
        " on {0}", " on a {0} backdrop", " on the {0} background",
    ).format(colour)  # fmt: skip


def _shape_en(shape: Shape, count: int, rng: Random) -> str:
    noun = _noun_en(shape, rng)
    if shape.position is None:
        return noun
    place = _place_en(shape.position, rng)
    if rng.random() < 0.2:
        # "on the left, a circle" reads well alone only: with two it is unclear whose place it is.
        return place + (_some(rng, " ", ", ") if count == 1 else " ") + noun
    return f"{noun} {place}"


def _noun_en(shape: Shape, rng: Random) -> str:
    words = [_one(COLOURS, shape.colour, 0, rng)] if shape.colour else []
    if shape.size:
        words.insert(0 if rng.random() < 0.85 else len(words), _one(SIZE_WORDS, shape.size, 0, rng))
    article = _some(rng, "a", "a", "a", "a", "one", "the", "")
    return " ".join(filter(None, [article, *words, _one(KIND_WORDS, shape.kind, 0, rng)]))


def _place_en(position: str, rng: Random) -> str:
    if position == "centre":
        word = rng.choice(_SIDES_EN["centre"])
        return _some(rng, "in the {0}", "in the {0}", "at the {0}", "{0}").format(word)
    if " " in position:
        line, column = position.split()
        line = rng.choice(_SIDES_EN[line][:2])
        return _some(
            rng, "in the {0} {1} corner", "in the {0} {1}", "at the {0} {1}", "{0} {1}",
            "at the {0} on the {1}" if line in ("top", "bottom") else "in the {0} {1}",
        ).format(line, column)  # fmt: skip
    if position in ("left", "right"):
        return _some(
            rng, "on the {0}", "on the {0}", "on the {0} side", "at the {0}", "to the {0}", "{0}",
            "on the {0} of the picture",
        ).format(position)  # fmt: skip
    return _some(
        rng, "at the {0}", "at the {0}", "on the {0}", "{0}", "at the {0} of the picture"
    ).format(position)


def _relation_en(scene: Scene, rng: Random) -> str:
    first, second = scene.shapes
    between = {
        "left": ("to the left of", "left of", "on the left of"),
        "right": ("to the right of", "right of", "on the right of"),
        "top": ("above",),
        "bottom": ("below", "under"),
    }[first.position or ""]
    return f"{_noun_en(first, rng)} {rng.choice(between)} {_noun_en(second, rng)}"


def _chinese(scene: Scene, rng: Random) -> str:
    if not scene.shapes:
        return _some(rng, "{0}背景", "纯{0}背景", "{0}", "纯{0}").format(
            _colour_zh(scene.background, rng)
        )
    body = _relation_zh(scene, rng) if _is_relation(scene) and rng.random() < 0.35 else None
    body = body or _some(rng, "和", "和", "，", "还有", "与").join(
        _shape_zh(shape, rng) for shape in scene.shapes
    )
    intro = _some(rng, *[""] * 6, "画", "请画", "图片里有", "画面上有", "有")
    if scene.background is None:
        return intro + body
    colour = _colour_zh(scene.background, rng)
    if rng.random() < 0.45:
        before = _some(
            rng, "{0}背景，", "{0}背景上", "{0}的背景上", "在{0}背景上", "在{0}的背景上，",
            "{0}背景上有", "{0}底，", "背景是{0}，",
        )  # fmt: skip
        return before.format(colour) + body
    return intro + body + _some(
        rng, "，{0}背景", "，{0}背景", "，{0}的背景", "，背景是{0}", "，背景为{0}", "，{0}底",
        " {0}背景", "，背景{0}",
    ).format(colour)  # fmt: skip


def _shape_zh(shape: Shape, rng: Random) -> str:
    noun = _noun_zh(shape, rng)
    if shape.position is None:
        return noun
    place = rng.choice(PLACES_ZH[shape.position])
    return _some(
        rng, "{1}{0}", "{1}有{0}", "{1}是{0}", "{1}的{0}", "{0}在{1}", "在{1}画{0}", "在{1}的{0}",
    ).format(noun, place)  # fmt: skip


def _noun_zh(shape: Shape, rng: Random) -> str:
    colour = _one(COLOURS, shape.colour, 1, rng) if shape.colour else ""
    size = _one(SIZE_WORDS, shape.size, 1, rng) if shape.size else ""
    if colour and rng.random() < 0.5:
        colour += "的"
    if len(size) > 1 and rng.random() < 0.5:
        size += "的"
    article = _some(rng, "一个", "一个", "一个", "", "一颗", "一只", "个")
    described = size + colour if rng.random() < 0.7 else colour + size
    return article + described + _one(KIND_WORDS, shape.kind, 1, rng)


def _relation_zh(scene: Scene, rng: Random) -> str:
    first, second = scene.shapes
    place = rng.choice(PLACES_ZH[first.position or ""])
    return f"{_noun_zh(first, rng)}在{_noun_zh(second, rng)}{_some(rng, '的', '')}{place}"


def _is_relation(scene: Scene) -> bool:
    if len(scene.shapes) != 2:
        return False
    first, second = (shape.position for shape in scene.shapes)
    return first in OPPOSITE and OPPOSITE[first] == second


def _some(rng: Random, *choices: str) -> str:
    return rng.choice(choices)


def _one(
    table: dict[str, tuple[tuple[str, ...], tuple[str, ...]]], value: str, column: int, rng: Random
) -> str:
    """A word for a value; the first synonym as often as all others together."""
    synonyms = table[value][column]
    return synonyms[0] if rng.random() < 0.5 else rng.choice(synonyms)


def _colour_en(colour: str | None, rng: Random) -> str:
    return _one(COLOURS, colour or "white", 0, rng)


def _colour_zh(colour: str | None, rng: Random) -> str:
    return _one(COLOURS, colour or "white", 1, rng)


# --- from words to scenes -------------------------------------------------------------------


def scene_of(prompt: str) -> Scene | None:
    """What a prompt asks for, as far as its words are known; None if it names nothing."""
    found = [_ROLES[word] for word in words(prompt)]
    found = [word for word in found if word.role != "filler"]
    background, rest = _take_background(found)
    shapes = [shape for group in _grouped(list(_clauses(rest))) for shape in _shapes(group)]
    if not shapes and background is None:
        return None
    return Scene(background, tuple(shapes[:2]))


def _take_background(found: list[_Word]) -> tuple[str | None, list[_Word]]:
    """The background's colour, and the words without those that named it.

    It stands before the word background, or after it, or as a colour that no shape follows.
    """
    for at, word in enumerate(found):
        if word.role == "background":
            for colour in (at - 1, at + 1):
                if 0 <= colour < len(found) and found[colour].role == "colour":
                    used = (at, colour)
                    return found[colour].value, [w for i, w in enumerate(found) if i not in used]
    for at in reversed(range(len(found))):
        following = [w.role for w in found[at + 1 :] if w.role != "size"]
        if found[at].role == "colour" and following[:1] not in (["kind"], ["colour"]):
            return found[at].value, found[:at] + found[at + 1 :]
    return None, found


def _clauses(found: list[_Word]) -> Iterator[list[_Word]]:
    clause: list[_Word] = []
    for word in found:
        if word.role == "break":
            yield clause
            clause = []
        else:
            clause.append(word)
    yield clause


def _grouped(clauses: list[list[_Word]]) -> list[list[_Word]]:
    """Clauses that name a shape; a place that stands alone joins the next one, else the last."""
    groups: list[list[_Word]] = []
    waiting: list[_Word] = []
    for clause in clauses:
        if any(word.role == "kind" for word in clause):
            groups.append(waiting + clause)
            waiting = []
        else:
            waiting += clause
    if groups and waiting:
        groups[-1] = groups[-1] + waiting
    return groups


def _shapes(clause: list[_Word]) -> list[Shape]:
    """The shapes of a clause. Two with one place between or after them: first of second."""
    shapes: list[Shape] = []
    said: dict[str, str] = {}
    for word in clause:
        if word.role == "kind":
            shapes.append(Shape(word.value, said.get("colour"), said.get("size")))
            said = {}
        else:
            said[word.role] = word.value
    place = _place({word.value for word in clause if word.role == "place"})
    if len(shapes) == 1:
        return [Shape(shapes[0].kind, shapes[0].colour, shapes[0].size, place)]
    spots = (place, OPPOSITE[place]) if place in OPPOSITE else (None, None)
    return [
        Shape(shape.kind, shape.colour, shape.size, spot)
        for shape, spot in zip(shapes[:2], spots, strict=True)
    ]


def _place(sides: set[str]) -> str | None:
    if len(sides) == 1:
        return next(iter(sides))
    for position in POSITIONS:
        if " " in position and set(position.split()) == sides:
            return position
    return "centre" if "centre" in sides else None

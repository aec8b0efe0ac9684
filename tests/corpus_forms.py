"""Small corpora of real forms, whose documents have other lengths in each line."""

import json
import pathlib
import random

from etils import epath

WORDS = ["a", "tern", "dives", "for", "small", "fish", "über", "the", "sea"]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randrange(1, 30)))


def kilt_page(number: int, rng: random.Random) -> str:
    text = ["Tern\n", sentence(rng), "Section::::Diet.\n", sentence(rng)]
    return json.dumps({"wikipedia_id": str(number), "wikipedia_title": "Tern", "text": text})


def passage(number: int, rng: random.Random) -> str:
    return json.dumps({"id": f"p{number}", "title": "Tern", "text": sentence(rng) if number % 7 else " "})


def row(number: int, rng: random.Random) -> str:
    text = sentence(rng) if number % 5 else f'"{sentence(rng)} ""7""\t{sentence(rng)}"'
    return f"{number}\t{text}\tTern"


CORPORA = {"passages.jsonl": passage, "psgs_w100.tsv": row, "kilt_knowledgesource.json": kilt_page}


def write_form(name: str, folder: pathlib.Path) -> epath.Path:
    """A corpus of sixty documents in one of the forms."""
    rng = random.Random(0)
    lines = [CORPORA[name](number, rng) for number in range(1, 61)]
    head = ["id\ttext\ttitle"] if name.endswith("tsv") else []
    (folder / name).write_text("\n".join([*head, *lines]) + "\n")
    return epath.Path(folder / name)

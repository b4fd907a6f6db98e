"""Questions with known answers: which of four endings a text has, and sums; the same ones for the same texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from operator import add, mul, sub
from typing import Any

NUM_CHOICES = 4
MAX_QUESTIONS = 100
QUESTIONS_PER_DOCUMENT = 8
CONTEXT_WORDS = 40
ENDING_WORDS = 8
WORD = re.compile(r"\s*\S+")

SUMS = (("plus", add, 97, 89), ("minus", sub, 97, 89), ("times", mul, 10, 9))
"""Said between two numbers, what it means, and their bounds: without a common factor, so that no pair comes again."""
SUMS_OF_EACH = 30


def choice_questions(texts: Sequence[str]) -> list[dict[str, Any]]:
    """{"context", "choices", "answer"}: words of a text as they stand there, and its next ones among those of others.

    None where the texts have fewer than four different endings. Every place of the answer is equally frequent.
    """
    pieces = [piece for text in texts for piece in _pieces(text)][:MAX_QUESTIONS]
    endings = list(dict.fromkeys(ending for _, ending in pieces))
    if len(endings) < NUM_CHOICES:
        return []
    place = {ending: number for number, ending in enumerate(endings)}
    questions = []
    for number, (context, ending) in enumerate(pieces):
        distances = [other * len(endings) // NUM_CHOICES for other in range(1, NUM_CHOICES)]
        choices = [endings[(place[ending] + distance) % len(endings)] for distance in distances]
        answer = number % NUM_CHOICES
        choices.insert(answer, ending)
        questions.append({"context": context, "choices": choices, "answer": answer})
    return questions


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Stretches of the text, one behind the other, each with its ending."""
    words = [match.span() for match in WORD.finditer(text)]
    length = CONTEXT_WORDS + ENDING_WORDS
    for first in range(0, min(len(words) - length + 1, QUESTIONS_PER_DOCUMENT * length), length):
        middle = words[first + CONTEXT_WORDS][0]
        yield text[words[first][0] : middle].lstrip(), text[middle : words[first + length - 1][1]]


def arithmetic_questions() -> Iterator[dict[str, str]]:
    """{"question", "answer"} as in GPT-3's evaluation (Brown et al. 2020, section 3.9.1), of one and two digits."""
    for word, operation, first, second in SUMS:
        for number in range(1, SUMS_OF_EACH + 1):
            a, b = number * 37 % first, number * 5 % second
            yield {"question": f"Question: What is {a} {word} {b}?\nAnswer:", "answer": f" {operation(a, b)}"}

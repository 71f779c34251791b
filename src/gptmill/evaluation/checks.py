"""Rules that judge an answer: words, numbers, lists, lengths, refusals."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptmill.data.questions import Question

MARKER = re.compile(r"^\s*(?:[-*+\u2022\u2013]|\(?\d{1,3}[.):]|[a-z][.)])\s+\S", re.IGNORECASE)
INLINE_MARKER = re.compile(r"(?:^|\s)\(?\d{1,2}[.)]\s+(?=\S)")
SEPARATOR = re.compile(r"\s*[,;]\s*(?:and\b|or\b)?\s*|\s+(?:and|or|&)\s+")
NUMBER = re.compile(r"(?<![\w.])(?<!\d:)[-\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\d)")

TO_NINETEEN = """zero one two three four five six seven eight nine ten eleven twelve thirteen
fourteen fifteen sixteen seventeen eighteen nineteen"""
BY_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ONES, TENS = TO_NINETEEN.split(), BY_TENS.split()
NUMBER_WORDS = {word: value for value, word in enumerate(ONES)} | {
    f"{ten}-{ONES[one]}" if one else ten: 10 * place + one
    for place, ten in enumerate(TENS, start=2)
    for one in range(10)
}
NUMBER_WORD = re.compile(
    rf"\b(?:(?:{'|'.join(TENS)})(?:[- ](?:{'|'.join(ONES[1:10])}))?|{'|'.join(ONES)})\b"
)

REFUSAL = re.compile(
    r"\b(?:i|we)(?:'m| am)?\b[^.!?\n]{0,40}\b(?:cannot|can't|can not|can only|could not|couldn't"
    r"|unable|not able|not allowed|(?:do not|don't) (?:actually |currently |really )?(?:know|have)"
    r"|will not|won't|must decline|must refuse|have no)\b"
    r"|\b(?:sorry|no way to know|not possible to|impossible to|nobody (?:can|knows)"
    r"|no one (?:can|knows)|cannot be (?:known|predicted)|ha(?:s|ve) never been|never existed"
    r"|does not exist|doesn't exist|there (?:is|was) no|is illegal|against the law)\b"
)
"""Words by which an answer declines, or says that an assistant cannot know."""


def passes(question: Question, answer: str) -> bool | None:
    """Return whether all rules of the question hold; None without a check.

    An answer without a word never passes, and neither does an answer that repeats the prompt.
    """
    if question.check is None:
        return None
    rules, prompt = question.check.rules(), question.prompt
    if not answer.strip() or " ".join(fold(prompt).split()) in " ".join(fold(answer).split()):
        return False
    return all(RULES[name](value, answer, prompt) for name, value in rules.items())


def has_phrase(text: str, phrase: str) -> bool:
    """Return whether a text contains a phrase as whole words, in any case."""
    words = r"\s+".join(map(re.escape, fold(phrase).split()))
    return re.search(rf"(?<!\w){words}(?!\w)", fold(text)) is not None


def fold(text: str) -> str:
    """Return a text in lower case with straight apostrophes and hyphens."""
    return text.casefold().replace("\u2019", "'").replace("\u2011", "-")


def numbers(text: str) -> list[float]:
    """Return the numbers in digits, in order; without digits, the numbers in words.

    Words are read up to ninety-nine; of a time such as 7:30, the hour counts.
    """
    return _in_digits(text) or _in_words(text)


def _in_digits(text: str) -> list[float]:
    plain = (match[0].replace(",", "").replace("\u2212", "-") for match in NUMBER.finditer(text))
    return [float(digits) for digits in plain]


def _in_words(text: str) -> list[float]:
    words = (match[0].replace(" ", "-") for match in NUMBER_WORD.finditer(fold(text)))
    return [float(NUMBER_WORDS[word]) for word in words]


def final_number(answer: str, prompt: str) -> float | None:
    """Return the last number of an answer that the prompt does not have.

    An answer may repeat the numbers of the prompt, before or after the result. Without a new
    number, the last number counts; without any number, the result is None.
    """
    given = {*_in_digits(prompt), *_in_words(prompt)}
    found = numbers(answer)
    new = [value for value in found if value not in given]
    counted = new or found
    return counted[-1] if counted else None


def marked_items(answer: str) -> int:
    """Return the number of lines that begin with a bullet, a number or a letter."""
    return sum(MARKER.match(line) is not None for line in answer.splitlines())


def count_items(answer: str) -> int:
    """Return the number of items of a list in any form.

    The forms are marked lines, numbers within a line, plain lines after an optional heading that
    ends in a colon, and words between commas and `and`.
    """
    marked = marked_items(answer)
    if marked > 1:
        return marked
    inline = len(INLINE_MARKER.findall(answer))
    if inline > 1:
        return inline
    lines = [line for line in answer.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].rstrip().endswith(":"):
        lines = lines[1:]
    if len(lines) > 1:
        return len(lines)
    line = (lines or [""])[0]
    return len([part for part in SEPARATOR.split(line.rpartition(": ")[2]) if part.strip()])


def refuses(answer: str) -> bool:
    """Return whether an answer declines, or says that an assistant cannot know."""
    return REFUSAL.search(fold(answer)) is not None


def _contains_any(phrases: Sequence[str], answer: str, _: str) -> bool:
    return any(has_phrase(answer, phrase) for phrase in phrases)


def _contains_all(phrases: Sequence[str], answer: str, _: str) -> bool:
    return all(has_phrase(answer, phrase) for phrase in phrases)


def _excludes(phrases: Sequence[str], answer: str, prompt: str) -> bool:
    return not _contains_any(phrases, answer, prompt)


RULES: Mapping[str, Callable[[Any, str, str], bool]] = {
    "contains_any": _contains_any,
    "contains_all": _contains_all,
    "excludes": _excludes,
    "matches": lambda pattern, answer, _: re.search(pattern, answer) is not None,
    "number": lambda number, answer, prompt: final_number(answer, prompt) == number,
    "items": lambda items, answer, _: count_items(answer) == items,
    "max_words": lambda most, answer, _: len(answer.split()) <= most,
    "refuses": lambda wanted, answer, _: refuses(answer) == wanted,
}
"""A rule's name in `Check`: a function of the rule's value, the answer and the last message."""

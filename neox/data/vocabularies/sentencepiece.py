"""SentencePiece's models, BPE and Unigram, read without its library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from neox.config.errors import UserError
from neox.data import protobuf

SPACE = "▁"
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type


@dataclass(frozen=True)
class Piece:
    """A token, its score, and its type."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Model:
    """What a .model file says, sentencepiece_model.proto's ModelProto."""

    pieces: list[Piece]
    kind: int
    has_byte_fallback: bool
    charsmap: bytes
    has_dummy_prefix: bool
    is_trimmed: bool
    """Whether spaces at both ends go, and runs of them become one."""


def read_model(path: Path) -> Model:
    """Parse a .model file. UserError when it is none, or does what a tokenizer.json cannot."""
    try:
        parts = protobuf.fields(path.read_bytes())
        trainer, normalizer = (protobuf.fields(_bytes(parts.get(number, [b""])[-1])) for number in (2, 3))
        pieces = [_piece(_bytes(part)) for part in parts.get(1, [])]
        model = Model(
            pieces,
            kind=_number(trainer, 3, UNIGRAM),
            has_byte_fallback=bool(_number(trainer, 35, 0)),
            charsmap=_bytes(normalizer.get(2, [b""])[-1]),
            has_dummy_prefix=bool(_number(normalizer, 3, 1)),
            is_trimmed=bool(_number(normalizer, 4, 1)),
        )
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a model of SentencePiece ({error})") from error
    unknown = [piece for piece in pieces if piece.kind == UNKNOWN]
    wrong = {
        "no pieces, or not one unknown piece": len(unknown) != 1,
        "a model that is neither Unigram nor BPE": model.kind not in (UNIGRAM, BPE),
        "spaces at the end of words": bool(_number(trainer, 24, 0)),
        "spaces that are not escaped": not _number(normalizer, 5, 1),
        "pieces that are not used": any(piece.kind == UNUSED for piece in pieces),
        "symbols defined by the user in BPE": model.kind == BPE and any(p.kind == USER_DEFINED for p in pieces),
    }
    if reason := next((reason for reason, holds in wrong.items() if holds), None):
        raise UserError(f"{path}: {reason}, which cannot be converted")
    return model


def convert(path: Path) -> Tokenizer:
    """The model as a tokenizer.json.

    Text that spells a control symbol like </s> becomes it, as with other tokenizers. A model that normalises does so by
    the same table, but this library drops combining marks behind a character that the table replaces alone.
    """
    model = read_model(path)
    tokenizer = Tokenizer(_bpe(model) if model.kind == BPE else _unigram(model))
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.is_trimmed:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    # Not by this library's Metaspace, which puts no space before a text that begins with one.
    steps += [normalizers.Prepend(" ")] if model.has_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if model.has_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = [AddedToken(p.text, normalized=False) for p in model.pieces if p.kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens(special)
    return tokenizer


def original(path: Path) -> Callable[[str], list[int]]:
    """SentencePiece's own encoding. ImportError when it is not installed."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return lambda text: list(processor.encode(text))


def _unigram(model: Model) -> models.Unigram:
    unknown = next(number for number, piece in enumerate(model.pieces) if piece.kind == UNKNOWN)
    scores = [piece.score for piece in model.pieces if piece.kind == NORMAL]
    least, best = min(scores, default=0.0), max(scores, default=0.0)

    def score(piece: Piece) -> float:
        if piece.kind == USER_DEFINED:  # always chosen, unigram_model.cc
            return len(piece.text.encode()) * best - 0.1
        return piece.score if piece.kind == NORMAL else least  # which says how bad an unknown character is

    pieces = [(piece.text.replace(" ", SPACE), score(piece)) for piece in model.pieces]
    return models.Unigram(pieces, unknown, model.has_byte_fallback)


def _bpe(model: Model) -> models.BPE:
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    merges = [
        (piece.text[:at], piece.text[at:])
        for piece in sorted(model.pieces, key=lambda piece: -piece.score)
        if piece.kind == NORMAL
        for at in range(1, len(piece.text))
        if piece.text[:at] in ids and piece.text[at:] in ids
    ]
    unknown = next(piece.text for piece in model.pieces if piece.kind == UNKNOWN)
    return models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=model.has_byte_fallback)


def _piece(message: bytes) -> Piece:
    parts = protobuf.fields(message)
    score = protobuf.float32(parts[2][-1]) if 2 in parts else 0.0
    return Piece(_bytes(parts.get(1, [b""])[-1]).decode(), score, _number(parts, 3, NORMAL))


def _bytes(part: protobuf.Part) -> bytes:
    if not isinstance(part, bytes):
        raise ValueError("a number where a message must be")
    return part


def _number(parts: dict[int, list[protobuf.Part]], field: int, default: int) -> int:
    value = parts.get(field, [default])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {field} is no number")
    return value

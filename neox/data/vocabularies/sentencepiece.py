"""SentencePiece's models, BPE and Unigram, read without its library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from neox.config.errors import UserError

SPACE = "▁"


def read_model(path: Path) -> Any:
    """The ModelProto in a .model file. UserError when it holds none, or does what a tokenizer.json cannot."""
    from google.protobuf.message import DecodeError
    from transformers.utils.sentencepiece_model_pb2_new import ModelProto  # type: ignore[attr-defined]  # made at import

    try:
        model = ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except DecodeError as error:
        raise UserError(f"{path}: not a model of SentencePiece ({error})") from error
    trainer, kinds, found = model.trainer_spec, ModelProto.SentencePiece, {piece.type for piece in model.pieces}
    wrong = {
        "no pieces, or not one unknown piece": sum(piece.type == kinds.UNKNOWN for piece in model.pieces) != 1,
        "pieces that are not UTF-8": any(isinstance(piece.piece, bytes) for piece in model.pieces),
        "a model that is neither Unigram nor BPE": trainer.model_type not in (trainer.UNIGRAM, trainer.BPE),
        "spaces at the end of words": trainer.treat_whitespace_as_suffix,
        "spaces that are not escaped": not model.normalizer_spec.escape_whitespaces,
        "pieces that are not used": kinds.UNUSED in found,
        "symbols defined by the user in BPE": trainer.model_type == trainer.BPE and kinds.USER_DEFINED in found,
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
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    tokenizer = Tokenizer(_bpe(model) if trainer.model_type == trainer.BPE else _unigram(model))
    charsmap = normalizer.precompiled_charsmap
    try:
        steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    except Exception as error:  # the library has no narrower class
        raise UserError(f"{path}: not a model of SentencePiece ({error})") from error
    if normalizer.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    # Not by this library's Metaspace, which puts no space before a text that begins with one.
    steps += [normalizers.Prepend(" ")] if normalizer.add_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if normalizer.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = [AddedToken(p.piece, normalized=False) for p in model.pieces if p.type in (p.UNKNOWN, p.CONTROL)]
    tokenizer.add_special_tokens(special)
    return tokenizer


def original(path: Path) -> Callable[[str], list[int]]:
    """SentencePiece's own encoding. ImportError when it is not installed."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return lambda text: list(processor.encode(text))


def _unigram(model: Any) -> models.Unigram:
    unknown = next(number for number, piece in enumerate(model.pieces) if piece.type == piece.UNKNOWN)
    scores = [piece.score for piece in model.pieces if piece.type == piece.NORMAL]
    least, best = min(scores, default=0.0), max(scores, default=0.0)

    def score(piece: Any) -> float:
        if piece.type == piece.USER_DEFINED:  # always chosen, unigram_model.cc
            return len(piece.piece.encode()) * best - 0.1
        return piece.score if piece.type == piece.NORMAL else least  # which says how bad an unknown character is

    pieces = [(piece.piece.replace(" ", SPACE), score(piece)) for piece in model.pieces]
    return models.Unigram(pieces, unknown, model.trainer_spec.byte_fallback)


def _bpe(model: Any) -> models.BPE:
    ids = {piece.piece: number for number, piece in enumerate(model.pieces)}
    merges = [
        (piece.piece[:at], piece.piece[at:])
        for piece in sorted(model.pieces, key=lambda piece: -piece.score)
        if piece.type == piece.NORMAL
        for at in range(1, len(piece.piece))
        if piece.piece[:at] in ids and piece.piece[at:] in ids
    ]
    unknown = next(piece.piece for piece in model.pieces if piece.type == piece.UNKNOWN)
    fallback = model.trainer_spec.byte_fallback
    return models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback)

"""Sentences of any length and language to one token each, with nothing to download.

A sentence is split into words; a script that is written without spaces is split into characters. Each word has a hashed
embedding, each pair of neighbours another one (word n-grams: fastText, Joulin et al. 2016, arXiv 1607.01759), and each
position its sinusoids (Vaswani et al. 2017, arXiv 1706.03762, section 3.5), which know no longest sentence. A small
network reads each word with these, and the mean over all words is the token (Deep Sets, Zaheer et al. 2017, arXiv
1703.06114). Pairs tell the order of neighbours wherever they stand, positions tell the rest. And as each word lies in
two n-grams or more, two sentences have the same numbers only if two hashes or more collide at once.
"""

import hashlib
import unicodedata
from functools import lru_cache

import torch
from torch import Tensor, nn

BUCKETS = 4096  # of hashed n-grams; 0 is none
FEATURES = 64  # of an n-gram's embedding
ALONE = ("Sc", "Sm", "So", "Co", "Cn")  # Unicode categories: symbols, and what Python's Unicode does not know
UNSPACED = ("CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


class InstructionEncoder(nn.Module):
    """Sentences to one token each (B, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.grams = nn.Embedding(BUCKETS, FEATURES, padding_idx=0)
        self.mix = nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, sentences: list[str]) -> Tensor:
        hashed = [hash_sentence(sentence) for sentence in sentences]
        longest = max([1, *(len(ids) for ids in hashed)])
        padded = [(*ids, *[(0, 0)] * (longest - len(ids))) for ids in hashed]
        ids = torch.tensor(padded, device=self.grams.weight.device)  # (B, L, 2)
        is_pad = (ids == 0).all(-1, keepdim=True)
        features = self.mix(self.grams(ids).sum(-2) + positions(longest, ids.device)) * ~is_pad
        return features.sum(1) / (~is_pad).sum(1).clamp(min=1)


def positions(length: int, device: torch.device) -> Tensor:
    """The sinusoids of each position (L, FEATURES): sines first, then cosines, of wavelengths from 2 pi up."""
    frequencies = 10_000 ** -(torch.arange(0, FEATURES, 2, device=device) / FEATURES)
    angles = torch.arange(length, device=device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def split_words(sentence: str) -> list[str]:
    """Split a sentence into words, or characters of a script without spaces; case and punctuation make no difference.

    Letters, marks and digits make words, a symbol is one by itself. Text is compared as Unicode's NFKC, case folded.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", sentence).casefold())
    words: list[str] = []
    joins = False  # whether a letter that follows belongs to the last word
    for character in folded:
        kind = unicodedata.category(character)
        if kind == "Cf":  # invisible, such as a soft hyphen
            continue
        if kind[0] == "M" and words:
            words[-1] += character
        elif kind in ALONE or unicodedata.name(character, "").startswith(UNSPACED):
            words.append(character)
            joins = False
        elif kind[0] in "LMN":
            if joins:
                words[-1] += character
            else:
                words.append(character)
            joins = True
        else:
            joins = False
    return words


@lru_cache(maxsize=4096)
def hash_sentence(sentence: str) -> tuple[tuple[int, int], ...]:
    """For each word two numbers in 1..BUCKETS-1, the same on every machine: its own, and that of it after the last."""
    words = split_words(sentence)
    return tuple(
        (_bucket(word), _bucket(f"{before} {word}")) for before, word in zip(["", *words], words, strict=False)
    )


def _bucket(text: str) -> int:
    return 1 + int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % (BUCKETS - 1)

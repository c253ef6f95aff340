"""Sentences to tokens: different sentences differ, in any language and at any length; spelling of the same does not."""

import hashlib
import itertools
import math

import pytest
import torch

from apprentice.experts.seer.instruction import BUCKETS, InstructionEncoder, hash_sentence, positions, split_words
from apprentice.simulators.libero.simulator.suites import tasks

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")


@pytest.fixture(scope="module")
def encoder() -> InstructionEncoder:
    torch.manual_seed(0)
    return InstructionEncoder(48)


def tell_apart(encoder: InstructionEncoder, *sentences: str) -> float:
    """The least distance between two sentences' tokens, in units of a token's length."""
    with torch.no_grad():
        tokens = encoder(list(sentences))
    return float(torch.pdist(tokens).min() / tokens.norm(dim=1).mean())


@pytest.mark.parametrize(
    "sentences",
    [
        ("the bowl on the plate", "the plate on the bowl"),
        # The same words and the same pairs of neighbours: positions alone tell these apart.
        ("from the bowl to the plate to the cup", "from the plate to the bowl to the cup"),
        ("push", "push push", ""),
        ("把碗放在盘子上", "把盘子放在碗上", "打开抽屉"),
        ("ボウルを皿に置く", "皿をボウルに置く"),
        ("วางชามบนจาน", "วางจานบนชาม"),
        ("그릇을 접시에 놓아", "접시를 그릇에 놓아", "아버지가 방에", "아버지 가방에"),
        ("कटोरा प्लेट पर", "कटोरी प्लेट पर"),  # vowel signs are marks, no letters
        ("поставь чашу на тарелку", "поставь тарелку на чашу"),
        ("move 3 cm", "move 5 cm", "move 35 cm"),
        ("pick 🍎", "pick 🍌"),
        ("so on " * 20 + "left", "so on " * 20 + "right", "left " + "so on " * 20),
        ("word " * 300, "word " * 301),
    ],
    ids=lambda sentences: sentences[0][:12],
)
def test_different_sentences_differ(encoder: InstructionEncoder, sentences: tuple[str, ...]) -> None:
    assert tell_apart(encoder, *sentences) > 1e-4


@pytest.mark.parametrize(
    ("spelling", "other"),
    [
        ("Pick up the BOWL.", "pick up the bowl"),
        ("  pick -- up: the 'bowl'!\n", "pick up the bowl"),
        ("\uff50\uff49\uff43\uff4b up the bowl", "pick up the bowl"),
        ("pick up the bo\u00adwl\u200b", "pick up the bowl"),
        ("caf\u00e9", "cafe\u0301"),
        ("Straße", "STRASSE"),
        ("把碗放在盘子上。", "把碗 放在 盘子上"),
        ("", "?!"),
    ],
)
def test_case_width_composition_and_punctuation_make_no_difference(spelling: str, other: str) -> None:
    assert hash_sentence(spelling) == hash_sentence(other)


def test_scripts_without_spaces_are_split_into_characters() -> None:
    assert split_words("把碗放在plate上3次") == ["把", "碗", "放", "在", "plate", "上", "3", "次"]
    assert split_words("ชามที่") == ["ช", "า", "ม", "ที่"]  # a mark stays with its letter
    assert split_words("Don't move कटोरी") == ["don", "t", "move", "कटोरी"]


def test_hashes_are_the_same_on_every_machine() -> None:
    def bucket(text: str) -> int:
        return 1 + int(hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest(), 16) % 4095

    assert hash_sentence("The bowl!") == ((bucket("the"), bucket(" the")), (bucket("bowl"), bucket("the bowl")))
    assert hash_sentence("The bowl!") == ((2506, 1698), (2821, 153))


def test_positions_are_those_of_the_formula() -> None:
    found = positions(50, torch.device("cpu"))
    for position, pair in itertools.product((0, 1, 17, 49), (0, 5, 31)):
        angle = position / 10_000 ** (2 * pair / 64)
        assert found[position, pair].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert found[position, 32 + pair].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_a_sentence_has_the_same_token_alone_and_beside_longer_ones(encoder: InstructionEncoder) -> None:
    sentences = ["open the drawer", "", "put both the moka pots on the stove and then turn it off again, please"]
    alone = torch.cat([encoder([sentence]) for sentence in sentences])
    torch.testing.assert_close(encoder(sentences), alone, atol=1e-6, rtol=1e-5)
    assert (alone[1] == 0).all()


def test_libero_instructions_are_told_apart_though_single_words_would_likely_collide(
    encoder: InstructionEncoder,
) -> None:
    """With n words in b buckets, P(no two share one) is the product of 1 - i/b, i < n: the birthday problem."""
    instructions = sorted({task.instruction for suite in SUITES for task in tasks(suite)})
    words = {word for sentence in instructions for word in split_words(sentence)}
    some_word_shares = 1 - math.prod(1 - i / (BUCKETS - 1) for i in range(len(words)))
    # Two sentences are the same if each n-gram that they do not share collides: for any two, two hashes or more.
    hashed = [list(hash_sentence(sentence)) for sentence in instructions]
    chances = []
    for one, other in itertools.combinations([split_words(sentence) for sentence in instructions], 2):
        if len(one) == len(other):
            grams = [(w, f"{p} {w}") for p, w in zip(["", *one], one, strict=False)]
            others = [(w, f"{p} {w}") for p, w in zip(["", *other], other, strict=False)]
            differ = sum(
                a != b for mine, yours in zip(grams, others, strict=True) for a, b in zip(mine, yours, strict=True)
            )
            assert differ >= 2
            chances.append((BUCKETS - 1.0) ** -differ)
    assert len(instructions) >= 100 and some_word_shares > 0.5
    assert sum(chances) < 1e-4
    assert all(one != other for one, other in itertools.combinations(hashed, 2))
    assert tell_apart(encoder, *instructions) > 1e-3
    assert max(len(ids) for ids in hashed) > 16

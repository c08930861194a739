from collections import Counter
from itertools import pairwise
from math import log

import pytest

from sae_lib.synthetic.world.concepts import lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import document, split_of_text
from sae_lib.synthetic.world.kinds import KINDS
from sae_lib.synthetic.world.kinds.rare import SUBDOMAINS, share
from sae_lib.synthetic.world.tasks import task_documents

CFG = WorldConfig(kind_weights={"rare": 1.0})
OWN = {name: set(lexicon(f"rare-{name}-word")) for name in SUBDOMAINS}
EVEN = CFG.but(rarity=0.01)
"""With even shares, so that a few hundred documents show every subdomain."""
DOCS = [document(EVEN, index) for index in range(300)]


def test_each_subdomain_has_words_of_its_own():
    words = [word for name in SUBDOMAINS for word in OWN[name]]
    assert len(words) == len(set(words)) <= 90
    assert set(words) == set(lexicon("rare-word"))
    assert all(3 <= len(OWN[name]) <= 5 for name in SUBDOMAINS)
    for doc in DOCS:
        mine = OWN[doc.labels["subdomain"]]
        assert set(doc.tokens) & set(words) <= mine
        assert set(doc.tokens) & mine


def test_every_word_of_every_subdomain_is_used():
    cfg = CFG.but(rarity=0.01)
    used = {word for index in range(600) for word in document(cfg, index).tokens}
    assert set(lexicon("rare-word")) <= used


def test_shares_fall_from_half_a_percent_to_one_in_a_hundred_thousand():
    shares = share(WorldConfig())
    assert list(shares) == list(SUBDOMAINS)
    assert len(shares) >= 20
    assert sum(shares.values()) == pytest.approx(1)
    falling = list(shares.values())
    ratios = [later / earlier for earlier, later in pairwise(falling)]
    assert max(ratios) == pytest.approx(min(ratios))
    of_all = [KINDS["rare"].weight * value for value in falling]
    assert of_all[0] == pytest.approx(5e-3, rel=0.2)
    assert of_all[-1] == pytest.approx(1e-5, rel=0.2)


@pytest.mark.parametrize("rarity", [0.01, 1.0, 3.0])
def test_documents_come_in_the_shares_of_the_dial(rarity):
    cfg, num = CFG.but(rarity=rarity), 400
    counts = Counter(document(cfg, index).labels["subdomain"] for index in range(num))
    for name, expected in share(cfg).items():
        spread = (num * expected * (1 - expected)) ** 0.5
        assert counts[name] == pytest.approx(num * expected, abs=4 * spread + 1)
    assert share(cfg)["beekeeping"] / share(cfg)["tea"] == pytest.approx(1.31**rarity, rel=0.01)


def test_the_subdomain_is_a_context_from_its_name_on():
    for doc in DOCS:
        name = doc.labels["subdomain"]
        first = next(at for at, word in enumerate(doc.tokens) if word in OWN[name])
        for at, ids in enumerate(doc.contexts):
            found = {id for id in ids if id.startswith("rare-") and id != "rare-word-next"}
            assert found == ({f"rare-{name}"} if at >= first else set())
            if "rare-word-next" in ids:
                assert doc.tokens[at + 1] in OWN[name]


def test_the_surprise_can_be_computed_from_the_text():
    groups = {"color": 10, "profession": 30, "story-place": 8, "month": 8, "number-word": 9}
    shares = share(EVEN)
    for doc in DOCS[:60]:
        name = doc.labels["subdomain"]
        things = len(OWN[name]) - 1
        sentences = " ".join(doc.tokens).removesuffix(" .").split(" . ")[1:]
        nats = -log(shares[name]) + log(4)
        for sentence in sentences:
            nats += log(6)
            words = sentence.split()
            if sentence.startswith("a good"):
                nats += log(things) + log(things - 1)
            elif words[0] == "the" and words[2] == "is":
                nats += log(things) + log(14)
            else:
                sizes = [n for word in words for id, n in groups.items() if word in lexicon(id)]
                nats += sum(log(size) for size in sizes)
                nats += 0 if "books" in words else log(things)
        assert doc.nll == pytest.approx(nats, abs=1e-9)


@pytest.mark.parametrize("name", ["beekeeping", "archery", "puppetry"])
def test_tasks_find_enough_documents_of_the_rarest(name):
    for split in ("train", "test"):
        found = task_documents(f"rare-{name}", split, 30)
        assert sum(found.labels) == 15
        for line, label in zip(found.texts, found.labels, strict=True):
            assert bool(OWN[name] & set(line.split())) == bool(label)
            assert split_of_text(line) == split

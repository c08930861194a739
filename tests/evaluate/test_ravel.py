import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sae_lib.activations.task_tables import TableConfig
from sae_lib.errors import BadInput
from sae_lib.evaluate import Bench, measure_task, read_metric
from sae_lib.evaluate import _prompts as prompts_of
from sae_lib.evaluate._ravel_masks import (
    exchange,
    orthonormal,
    rotated,
    swapped,
    temperatures,
    train_masks,
)
from sae_lib.evaluate._ravel_pairs import draw_pairs, meet_in_training, read_prompts
from sae_lib.evaluate.ravel import RavelConfig, shares
from sae_lib.evaluate.reader import TextReader
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.topk import TopKConfig
from sae_lib.synthetic.dictionary import DictionaryConfig, ground_truth_dictionary
from sae_lib.synthetic.structure import Entities
from sae_lib.synthetic.world.config import WorldConfig

SITE = "resid_post.1"
SMALL = {
    "name": "ravel",
    "prompts": [{"id": "world:ravel-company"}],
    "train_pairs": 6,
    "test_pairs": 6,
    "epochs": 1,
    "max_entities": 10,
    "max_templates": 2,
    "mdas": False,
}


# --- by hand --------------------------------------------------------------------------------------


def test_disentangle_is_the_mean_of_cause_and_isolation():
    right = torch.tensor([True] * 6 + [False] * 4 + [True] * 7 + [False] * 3)
    is_cause = torch.arange(20) < 10
    found = shares(right, is_cause, torch.zeros(20, dtype=torch.long), 1)
    assert (found.cause.item(), found.isolation.item()) == (0.6, 0.7)
    assert found.disentangle.item() == pytest.approx(0.65)
    assert found.cause_error.item() == pytest.approx((0.6 * 0.4 / 9) ** 0.5)
    wanted = (0.6 * 0.4 / 9 + 0.7 * 0.3 / 9) ** 0.5 / 2
    assert found.disentangle_error.item() == pytest.approx(wanted)


def test_temperatures_are_even_in_their_logarithm():
    wanted = torch.tensor([1, 0.1, 0.01, 0.001, 0.0001])
    torch.testing.assert_close(temperatures(5), wanted)


@pytest.mark.parametrize(
    ("mask", "cause", "isolation"), [([1, 1, 0, 0], 1, 1), ([1] * 4, 1, 0), ([0] * 4, 0, 1)]
)
def test_toy_masks(mask, cause, isolation):
    base, source = torch.tensor([[1.0, 0, 1, 0]]), torch.tensor([[0.0, 1, 0, 1]])
    z = exchange(base, source, torch.tensor([mask]).float())
    a, b = z[0, :2].argmax().item(), z[0, 2:].argmax().item()
    right = torch.tensor([a == 1, b == 0])
    found = shares(right, torch.tensor([True, False]), torch.zeros(2, dtype=torch.long), 1)
    assert (found.cause.item(), found.isolation.item()) == (cause, isolation)


# --- planted entities, read off linearly ----------------------------------------------------------

GROUP = Entities(entities=24, values=(3, 4, 5))
PLANTED = DictionaryConfig(
    d_in=12, num_features=12, is_orthonormal=True, noise=0.0, groups=(GROUP,), seed=1
)
SHARPNESS = 8.0


class Planted:
    """Pairs of entities, and a model that reads each attribute off its directions."""

    def __init__(self, *, is_shuffled: bool = False) -> None:
        directions = ground_truth_dictionary(PLANTED)[-GROUP.size :].float()
        self.directions = directions
        self.table = GROUP.table()
        self.x = GROUP.features().float() @ directions
        ends = np.cumsum([0, *GROUP.values])
        self.readouts = [directions[low:high] for low, high in pairwise(ends)]
        draw = np.random.default_rng(0)
        rows = []
        for target in range(3):
            for base in range(24):
                for source in range(24):
                    others = [a for a in range(3) if self.differ(base, source, a)]
                    if target not in others:
                        continue
                    rows.append((target, base, source, target))
                    apart = [a for a in others if a != target]
                    if apart:
                        rows.append((target, base, source, int(draw.choice(apart))))
        self.rows = torch.tensor(rows)
        group, base, source, asked = self.rows.unbind(1)
        self.group, self.is_cause = group, group == asked
        self.wanted = torch.where(self.is_cause, self.table[source, asked], self.table[base, asked])
        names = [sorted((int(b), int(s))) for b, s in zip(base, source, strict=True)]
        self.is_train = torch.tensor([meet_in_training(str(b), str(s), held_out=0.3)
                                      for b, s in names])  # fmt: skip
        if is_shuffled:
            self.trained_toward = self.wanted.clone()
            for attribute in range(3):  # among rows that ask the same, so that answers exist
                own = (asked == attribute).nonzero()[:, 0]
                self.trained_toward[own] = self.wanted[own[draw.permutation(len(own))]]
        else:
            self.trained_toward = self.wanted

    def differ(self, base: int, source: int, attribute: int) -> bool:
        return bool(self.table[base, attribute] != self.table[source, attribute])

    def logits(self, x, asked):
        """Per row the logits of the attribute that is asked for, padded with -100."""
        found = torch.full((len(x), max(GROUP.values)), -100.0)
        for attribute, readout in enumerate(self.readouts):
            own = (asked == attribute).nonzero()[:, 0]
            columns = torch.arange(len(readout)).expand(len(own), -1)
            found = found.index_put((own[:, None], columns), SHARPNESS * x[own] @ readout.mT)
        return found

    def learn(self, change, width, others=()):
        """Masks for the three attributes."""
        chosen = self.is_train.nonzero()[:, 0]

        def losses(mask, rows):
            own = chosen[rows]
            group, base, source, asked = self.rows[own].unbind(1)
            x = change(self.x[base], self.x[source], mask, group)
            wanted = self.trained_toward[own]
            return F.cross_entropy(self.logits(x, asked), wanted, reduction="none")

        return train_masks(
            losses, self.group[chosen], 3, width,
            epochs=4, batch_pairs=16, lr=1e-2, seed=0, others=others,
        )  # fmt: skip

    def score(self, change, masks):
        """Mean disentangle of held-out pairs."""
        chosen = (~self.is_train).nonzero()[:, 0]
        group, base, source, asked = self.rows[chosen].unbind(1)
        x = change(self.x[base], self.x[source], masks[group], group)
        right = self.logits(x, asked).argmax(1) == self.wanted[chosen]
        return shares(right, self.is_cause[chosen], self.group[chosen], 3)


def changed_by(coder, **settings):
    return lambda base, source, mask, group: swapped(coder, base, source, mask, **settings)


@pytest.fixture(scope="module")
def planted():
    return Planted()


@pytest.fixture
def oracle(tools, planted):
    D = planted.directions
    return tools.coder_of(D.clone(), D.clone(), torch.zeros(len(D)), torch.zeros(D.shape[1]))


def test_the_oracle_reaches_one_and_trivial_masks_half(planted, oracle):
    change = changed_by(oracle)
    a = planted.learn(change, oracle.d_sae)
    found = planted.score(change, (a > 0).float())
    assert found.disentangle.tolist() == [1, 1, 1]
    for mask, cause in ((torch.zeros_like(a), 0), (torch.ones_like(a), 1)):
        trivial = planted.score(change, mask)
        assert trivial.cause.tolist() == [cause] * 3
        assert trivial.isolation.tolist() == [1 - cause] * 3


def test_latents_that_mix_attributes_score_less_and_shuffled_answers_teach_nothing(
    planted, oracle, tools
):
    d = planted.x.shape[1]
    Q = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0))).Q
    both = torch.cat([Q, -Q])
    mixed = tools.coder_of(both, both.clone(), torch.zeros(2 * d), torch.zeros(d))
    change = changed_by(mixed)
    torch.testing.assert_close(mixed(planted.x), planted.x)  # what it lacks is not fidelity
    found = planted.score(change, (planted.learn(change, 2 * d) > 0).float())
    assert found.disentangle.mean() < 0.85

    shuffled, change = Planted(is_shuffled=True), changed_by(oracle)
    found = shuffled.score(change, (shuffled.learn(change, oracle.d_sae) > 0).float())
    assert found.disentangle.mean() < 0.65


def test_a_rotation_finds_attributes_in_any_basis(planted):
    d = planted.x.shape[1]
    free = torch.linalg.qr(torch.randn(3, d, d, generator=torch.Generator().manual_seed(1))).Q

    def change(base, source, mask, group):
        return rotated(orthonormal(free), group, base, source, mask)

    given = planted.score(change, torch.ones(3, d))
    assert given.cause.tolist() == [1, 1, 1]
    a = planted.learn(change, d, [free])
    turns = orthonormal(free.detach())
    torch.testing.assert_close(turns @ turns.mT, torch.eye(d).expand(3, d, d), atol=1e-5, rtol=0)
    with torch.no_grad():
        found = planted.score(change, (a > 0).float())
    assert found.disentangle.mean() > 0.85


def test_training_is_the_same_again_and_other_with_another_order(planted, oracle):
    change = changed_by(oracle)
    one, other = (planted.learn(change, oracle.d_sae) for _ in range(2))
    torch.testing.assert_close(one, other, atol=0, rtol=0)
    assert all(parameter.grad is None for parameter in oracle.parameters())


def test_what_is_exchanged_does_not_depend_on_order_or_scale_of_latents(tools):
    coder = tools.random_coder(8, 20)
    generator = torch.Generator().manual_seed(5)
    base, source = torch.randn(2, 6, 8, generator=generator)
    mask = (torch.rand(1, 20, generator=generator) > 0.5).float()
    x = swapped(coder, base, source, mask)
    order = torch.randperm(20, generator=generator)
    permuted = tools.coder_of(coder.W_enc[order].detach(), coder.W_dec[order].detach(),
                              coder.b_enc[order].detach(), coder.b_dec.detach())  # fmt: skip
    torch.testing.assert_close(swapped(permuted, base, source, mask[:, order]), x)
    scaled = tools.coder_of(3 * coder.W_enc.detach(), coder.W_dec.detach() / 3,
                            3 * coder.b_enc.detach(), coder.b_dec.detach())  # fmt: skip
    torch.testing.assert_close(swapped(scaled, base, source, mask), x)
    zeros, ones = torch.zeros(1, 20), torch.ones(1, 20)
    torch.testing.assert_close(swapped(coder, base, source, zeros), coder(base))
    torch.testing.assert_close(swapped(coder, base, source, ones), coder(source))
    torch.testing.assert_close(swapped(coder, base, source, zeros, with_error=True), base)


# --- pairs ----------------------------------------------------------------------------------------


def read(id: str, **settings):
    given = {"test_share": 0.25, "max_entities": 12, "max_templates": 6}
    given |= {"world": WorldConfig(), "relative_to": None}
    return read_prompts(TableConfig(id=id), **(given | settings))


def test_pairs_differ_in_what_is_asked_and_say_their_kind():
    prompts = read("world:ravel-person")
    usable = [i for i, p in enumerate(prompts) if not (p.new_entity or p.new_template)]
    value = {(p.entity, p.attribute): p.values for p in prompts}
    sizes = [2] * len(prompts)

    def drawn(kind, meet):
        draw = np.random.default_rng(0)
        return draw_pairs(
            prompts, usable, "profession", kind, 20, meet=meet, sizes=sizes, draw=draw
        )

    def in_training(one, other):
        return meet_in_training(one, other, held_out=0.3)

    together = {}
    for kind in ("cause", "isolation"):
        for name, meet in {
            "train": in_training,
            "test": lambda a, b: not in_training(a, b),
        }.items():
            found = drawn(kind, meet)
            assert len(found) == len({(p.base, p.source) for p in found}) == 20
            assert found == drawn(kind, meet)
            for pair in found:
                base, source = prompts[pair.base], prompts[pair.source]
                assert (
                    (base.attribute == "profession") == (kind == "cause") == (pair.kind == "cause")
                )
                other = value[source.entity, base.attribute]
                assert value[base.entity, "profession"] != value[source.entity, "profession"]
                assert base.values != other
                assert pair.expected == (other if kind == "cause" else base.values)
                if base.text.endswith((" a", " an")):  # the article must not give the answer away
                    an = other[0][0] in "aeiou"
                    assert base.text.endswith(" an") == an
                names = frozenset((base.entity, source.entity))
                together.setdefault(name, set()).add(names)
    assert not together["train"] & together["test"]


def test_the_worlds_splits_share_neither_entities_nor_wordings():
    prompts = read("world:ravel-city")
    for get, is_new in (
        (lambda p: p.entity, lambda p: p.new_entity),
        (lambda p: p.frame, lambda p: p.new_template),
    ):
        new, old = ({get(p) for p in prompts if is_new(p) == side} for side in (True, False))
        assert new
        assert old
        assert not new & old


def test_a_local_table_is_split_by_entity_and_by_template(tmp_path):
    rows = [
        {"entity": f"e{i}", "attribute": "color", "value": ["red", "blue"][i % 2],
         "prompt": f"say {t} e{i} is", "template": t}
        for i in range(8) for t in "abcd"
    ]  # fmt: skip
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    prompts = read(str(file))
    assert len(prompts) == 32
    assert {p.entity for p in prompts if p.new_entity}.isdisjoint(
        {p.entity for p in prompts if not p.new_entity}
    )
    assert len({p.entity for p in prompts if p.new_entity}) == 2
    assert len({p.frame for p in prompts if p.new_template}) == 1
    assert [p.text[p.start : p.end] for p in prompts] == [p.entity for p in prompts]
    rows[0]["prompt"] = "say it"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BadInput, match="must hold its entity"):
        read(str(file))


# --- the bundled world ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return load_model(ModelConfig(id="world"))


@pytest.fixture(scope="module")
def reader(world):
    with TextReader(world, SITE) as found:
        yield found


def bench_of(model, reader, coders, **changes):
    given = {"world": WorldConfig()} | changes
    return Bench(model, SITE, coders, reader, torch.zeros(model.d_model), **given)


def exact(tools, d):
    """A coder without error: both signs of every coordinate."""
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    return tools.coder_of(both, both.clone(), torch.zeros(2 * d), torch.zeros(d))


def trained(reader, d):
    texts = ["weston motors paints everything black .", "who founded pruitt optics ?"] * 4
    x = reader.read(texts).x
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sae = TopKConfig(d_in=d, d_sae=64, k=8).build()
    adam = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for _ in range(50):
        loss = (sae(x) - x).square().sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return sae.requires_grad_(False).eval()


def test_on_the_world(world, reader, tools):
    coders = {"exact": exact(tools, world.d_model), "sae": trained(reader, world.d_model)}
    metric = read_metric(SMALL)
    found = measure_task(metric, bench_of(world, reader, coders))
    known = {(d.name, d.definition) for d in RavelConfig.definitions()}
    for measured in found.values():
        rows = measured.measurements
        assert {(r.name, r.definition) for r in rows} == known
        assert rows[0][0] == "ravel_disentangle"
        assert rows[0].definition == "mdbm"
        assert all(0 <= r.value <= 1 for r in rows if r.value is not None and "size" not in r.name)
        assert sum(r.definition == "attribute_of_one" for r in rows) == 12
    values = {
        name: {(r.name, r.definition): r.value for r in measured.measurements}
        for name, measured in found.items()
    }
    one = values["exact"]
    assert one["ravel_prompts_answered", "unmodified"] > 0.95
    assert one["ravel_disentangle", "no_swap"] == 0.5
    assert one["ravel_isolation", "no_swap"] == 1
    assert one["ravel_cause", "full_swap"] > 0.8
    for name in ("ravel_cause", "ravel_isolation", "ravel_disentangle"):
        assert one[name, "swap_all"] == one[name, "full_swap"]
        assert one[name, "mdas"] is None
    by_attribute = [
        r.value for r in found["sae"].measurements
        if r.definition == "attribute_of_one" and r.name == "ravel_cause"
    ]  # fmt: skip
    assert values["sae"]["ravel_cause", "mdbm"] == pytest.approx(np.mean(by_attribute))

    alone = measure_task(metric, bench_of(world, reader, {"sae": coders["sae"]}))
    assert alone["sae"] == found["sae"]  # again, and without the other


def test_an_edit_reaches_the_entity_alone_wherever_padding_put_it(world):
    text = "question : where was mara quill born ? answer :"
    end = text.index(" born")
    assert prompts_of.token_at(world, text, end) == text[:end].count(" ")
    rows = [prompts_of.prompt_ids(world, text), prompts_of.prompt_ids(world, "a longer " + text)]
    batch = prompts_of.padded(world, rows)
    seen = world.capture(batch.tokens, [SITE], mask=batch.mask)[SITE]
    columns = torch.tensor([batch.tokens.shape[1] - len(row) + 6 for row in rows])
    columns[1] += 2
    put = prompts_of.put_at(
        torch.arange(2), columns, tuple(batch.tokens.shape), torch.full((2, world.d_model), 7.0)
    )
    with world.intervene({SITE: put}):
        changed = world.capture(batch.tokens, [SITE], mask=batch.mask)[SITE]
    where = (changed != seen).any(-1).nonzero()
    assert where.tolist() == [[0, int(columns[0])], [1, int(columns[1])]]
    assert columns[0] == columns[1]  # both are the name's last token


def test_answers_are_compared_word_by_word():
    assert prompts_of.begins_with(" New York, which", ["new york"])
    assert not prompts_of.begins_with("yorkshire", ["york"])
    assert prompts_of.begins_with("the USA .", ["America", "the USA"])
    assert not prompts_of.begins_with("", ["york"])


def test_where_it_does_not_apply(world, reader, tools, tmp_path):
    coders = {"exact": exact(tools, world.d_model)}
    elsewhere = bench_of(world, reader, coders, world=None)
    rows = measure_task(read_metric("ravel"), elsewhere)["exact"].measurements
    assert all(r.value is None and "no prompts are named" in r.reason for r in rows)
    # values dealt to other entities: the model answers none as the table says
    file = tmp_path / "shuffled.jsonl"
    given = [p for p in read("world:ravel-company") if p.attribute == "founder"][:12]
    shuffled = [
        {"entity": p.entity, "attribute": p.attribute, "value": list(other.values),
         "prompt": p.text, "template": p.frame}
        for p, other in zip(given, given[5:] + given[:5], strict=True) if p.values != other.values
    ]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, shuffled)))
    metric = read_metric({"name": "ravel", "prompts": [{"id": str(file)}]})
    rows = measure_task(metric, bench_of(world, reader, coders))["exact"].measurements
    assert all("answers 0 of" in r.reason for r in rows)
    assert metric.files(tmp_path) == [file]
    with pytest.raises(BadInput, match="epochs"):
        read_metric({"name": "ravel", "epochs": 0})

import pytest

from sae_lib.apply import APPLICATIONS, apply_site, read_application
from sae_lib.apply.probing import ProbingConfig
from sae_lib.apply.selection import SelectionConfig
from sae_lib.apply.steering import SteeringConfig
from sae_lib.errors import BadInput, UnknownName
from sae_lib.synthetic.world.config import WorldConfig


def test_an_application_is_read_from_its_name_or_from_a_mapping():
    assert read_application("steering") == SteeringConfig()
    assert read_application({"kind": "probing", "k": [1, 2]}).k == (1, 2)
    with pytest.raises(UnknownName, match=r"'steerin'.*Did you mean 'steering'\?"):
        read_application("steerin")
    with pytest.raises(BadInput, match=r"apply\.strength\b.*strengths"):
        read_application({"kind": "steering", "strength": [1]})
    with pytest.raises(BadInput, match="needs a kind"):
        read_application({"strengths": [1]})


def test_every_application_says_what_it_is_needs_and_comes_from():
    assert set(APPLICATIONS) >= {"probing", "steering", "selection"}
    for config in APPLICATIONS.values():
        assert config.summary
        assert config.papers
        assert config.headline
        assert config.needs <= {"labelled_texts", "lm_head", "corpus"}
        assert set(config.dials) <= set(config.model_fields)
        assert all(field.description for field in config.model_fields.values())


def test_without_data_every_application_leaves_a_reason(bench):
    found = apply_site(bench, [ProbingConfig(), SteeringConfig(), SelectionConfig()])
    for rows in found.rows.values():
        assert [(row.application, row.measurement.value) for row in rows] == [
            ("probing", None),
            ("steering", None),
            ("selection", None),
        ]
        assert all(row.measurement.reason for row in rows)


def test_selection_reads_the_pool_once_and_fills_both_tables(bench):
    seen = []
    found = apply_site(
        bench._replace(world=WorldConfig()),
        [SelectionConfig(pool_documents=12, budgets=(3, 6))],
        on_progress=lambda *at: seen.append(at),
    )
    for name in bench.coders:
        assert len(found.selections[name]) == 6
        methods = {row.method for row in found.rows[name]}
        assert methods == {"sae_greedy", "random", "longest_first"}
        names = {row.measurement.name for row in found.rows[name]}
        assert names == {"coverage", "label_entropy"}
    assert seen[-1] == (100, 100)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)

"""Names of sites: what they mean, and what is said of wrong ones."""

import pytest

from sae_lib.errors import BadInput
from sae_lib.models.config import ModelConfig
from sae_lib.models.families import KINDS
from sae_lib.models.inspect import inspect_model
from sae_lib.models.sites import Site, check_site, site_width, sites_of


@pytest.fixture
def info_of(folder_of):
    return lambda name: inspect_model(ModelConfig(id=str(folder_of(name))))


@pytest.mark.parametrize(
    "text", [*(f"{kind}.12" for kind in KINDS), "module:model.layers.0.mlp", "resid_pre.0"]
)
def test_a_site_is_written_as_it_was_read(text):
    assert str(Site.parse(text)) == text


def test_a_site_is_its_parts():
    assert Site.parse("resid_post.2") == ("resid_post", 2, None)
    assert Site.parse("module:h.0.attn") == ("module", None, "h.0.attn")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resid_pst.2", "Did you mean 'resid_post'"),
        ("resid_post", r"counted from 0: resid_post\.0"),
        ("resid_post.-1", "counted from 0"),
        ("resid_post.02", "counted from 0"),
        ("resid_post.two", "counted from 0"),
        ("resid_post.²", "counted from 0"),
        ("resid_post.1.2", "counted from 0"),
        ("resid_post:1", "KIND.LAYER"),
        ("module:", "module:DOTTED.PATH"),
        ("", "KIND.LAYER"),
    ],
)
def test_what_is_no_site_is_refused(text, says):
    with pytest.raises(BadInput, match=says):
        Site.parse(text)


def test_a_layer_that_is_not_there_is_refused_with_the_place_where_it_was_written(info_of):
    with pytest.raises(BadInput) as caught:
        check_site(info_of("llama"), "resid_post.3", file="study.yaml", key="sites.1")
    assert str(caught.value) == (
        "study.yaml, key sites.1, value 'resid_post.3':"
        " resid_post.3 but the model has 3 layers: 0 to 2"
    )


def test_a_kind_that_is_not_there_is_refused_with_the_place_where_it_was_written(info_of):
    with pytest.raises(BadInput, match=r"study\.yaml, key sites\.0, value 'resid\.0'"):
        check_site(info_of("llama"), "resid.0", file="study.yaml", key="sites.0")


@pytest.mark.parametrize("name", ["gpt_neox", "gptj", "phi"])
def test_parallel_blocks_have_no_middle_and_say_why(info_of, name):
    info = info_of(name)
    assert not [site for site in sites_of(info) if site.startswith("resid_mid")]
    with pytest.raises(BadInput, match=r"has no resid_mid: .* both read the block's input"):
        check_site(info, "resid_mid.0")


def test_a_sequential_gpt_neox_has_a_middle(info_of):
    assert "resid_mid.1" in sites_of(info_of("gpt_neox_sequential"))


def test_every_listed_site_passes_its_own_check(lm):
    for site in sites_of(lm.info):
        assert str(check_site(lm.info, site)) == site
        assert site_width(lm.info, site) == (24 if site.startswith("mlp_act") else 16)


def test_the_width_of_a_module_is_unknown_until_it_is_loaded(info_of):
    assert site_width(info_of("llama"), "module:model.layers.0.mlp") is None

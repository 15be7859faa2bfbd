"""Claims about noise schedules and respacing."""

import numpy as np
import pytest
from golden import load_npz

from vidm.schedules import linear_betas, respace, space_timesteps


def test_the_linear_tables_meet_their_reference():
    reference = load_npz("diffusion")
    assert np.allclose(linear_betas(1000), reference["betas"], rtol=1e-12, atol=0)
    assert np.allclose(np.cumprod(1 - linear_betas(1000)), reference["alphas_cumprod"].numpy(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("spec", ["100", "ddim100", "25", "10,15,20"])
def test_respacing_meets_its_reference(spec):
    reference = load_npz("diffusion")
    kept = space_timesteps(1000, spec)
    assert kept == reference[f"respaced_{spec.replace(',', '_')}"].tolist()
    betas = reference[f"respaced_betas_{spec.replace(',', '_')}"].numpy()
    assert np.allclose(respace(linear_betas(1000), kept), betas, rtol=1e-9, atol=0)


@pytest.mark.parametrize("spec", ["", "1000", "ddim1000"])
def test_keeping_every_step_changes_nothing(spec):
    betas = linear_betas(1000)
    assert np.allclose(respace(betas, space_timesteps(1000, spec)), betas, rtol=1e-9, atol=0)


def test_a_single_step_is_the_last():
    assert space_timesteps(1000, "1") == [999]
    betas = respace(linear_betas(1000), [999])
    assert np.allclose(1 - betas, np.prod(1 - linear_betas(1000)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("spec", ["0", "-5", "ten", "ddim", "10,,5", "ddim10,20", "1.5", "1001", "600,400"])
def test_a_spec_that_is_none_is_named(spec):
    with pytest.raises(ValueError, match=f"respacing '{spec}'"):
        space_timesteps(1000, spec)


def test_ddim_refuses_what_no_integer_stride_gives():
    with pytest.raises(ValueError, match="'ddim300': no integer stride over 1000 steps gives 300"):
        space_timesteps(1000, "ddim300")

"""What the tests of `make mutants` would import when they run: collected with them, it is imported once before all mutants."""

import numba.typed  # noqa: F401
import scipy.linalg  # noqa: F401
import scipy.spatial  # noqa: F401
import torch

import microdreamer_core.diffusion.analytic
import microdreamer_core.fields.nerf
import microdreamer_core.render.splat_numba
import microdreamer_core.sir.iterations
import microdreamer_core.sir.sds  # noqa: F401

torch.testing.assert_close(torch.zeros(1), torch.zeros(1))  # imports much of torch when first called
torch.optim.Adam([torch.zeros(1, requires_grad=True)])

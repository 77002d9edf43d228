"""The solvers against the published trajectories: v = tanh(W x) * (0.5 + t/1000) - 0.3 x."""

import pytest
import torch

from ovi.config import SolverName
from ovi.sampling.solvers import SolverState, make_solver

SCHEDULES = [(4, 5.0), (10, 5.0), (25, 3.0), (50, 5.0)]


def velocity(golden, x, t):
    return torch.tanh(golden["solver.W"] @ x) * (0.5 + t / 1000) - 0.3 * x


def run(golden, solver, state):
    for t in solver.timesteps[state.index :]:
        state = solver.step(state, velocity(golden, state.sample, t))
    return state


@pytest.mark.parametrize("name", list(SolverName))
@pytest.mark.parametrize(("steps", "shift"), SCHEDULES)
def test_the_schedule_is_the_published_one(golden, name, steps, shift):
    solver = make_solver(name, steps, shift)
    prefix = f"solver.{name}.{steps}.{shift}"
    sigmas, timesteps = torch.tensor(solver.sigmas).double(), torch.tensor(solver.timesteps).double()
    torch.testing.assert_close(sigmas, golden[f"{prefix}.sigmas"], rtol=0, atol=1e-7)
    torch.testing.assert_close(timesteps, golden[f"{prefix}.timesteps"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", list(SolverName))
@pytest.mark.parametrize(("steps", "shift"), SCHEDULES)
def test_the_trajectory_ends_where_the_published_one_ends(golden, assert_close_to_std, name, steps, shift):
    prefix = f"solver.{name}.{steps}.{shift}"
    state = run(golden, make_solver(name, steps, shift), SolverState(sample=golden[f"{prefix}.x0"]))
    assert state.index == steps
    assert_close_to_std(state.sample, golden[f"{prefix}.x"], 1e-5)


@pytest.mark.parametrize("name", list(SolverName))
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_few_steps_stay_finite(golden, name, steps):
    state = run(golden, make_solver(name, steps, 5.0), SolverState(sample=golden["solver.unipc.4.5.0.x0"]))
    assert state.sample.isfinite().all()


@pytest.mark.parametrize("name", list(SolverName))
@pytest.mark.parametrize("stopped_after", [0, 1, 2, 7])
def test_a_state_saved_and_loaded_resumes_bit_for_bit(golden, name, stopped_after):
    solver = make_solver(name, 10, 5.0)
    whole = state = SolverState(sample=golden[f"solver.{name}.10.5.0.x0"])
    for t in solver.timesteps[:stopped_after]:
        state = solver.step(state, velocity(golden, state.sample, t))
    saved = {key: tensor.clone() for key, tensor in state.tensors().items()}
    continued = run(golden, solver, SolverState.from_tensors(saved))
    assert torch.equal(continued.sample, run(golden, solver, whole).sample)

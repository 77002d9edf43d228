"""Linear programs over device classes: the best division of work, and how fast a cluster can be at most. Pure."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

FloatArray = npt.NDArray[np.float64]


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Balance:
    """The division of work that ends soonest if work could be cut at will."""

    makespan_s: float
    """Seconds from now until everything is done."""
    prices: FloatArray
    """[jobs] seconds of makespan that one more task of each job costs."""
    values: FloatArray
    """[classes] seconds of makespan that one more device-second of each class saves."""
    share: FloatArray
    """[classes, jobs] fraction of each job that each class does."""


def balance(
    seconds: FloatArray, amounts: FloatArray, capacity: FloatArray, committed: FloatArray | None = None
) -> Balance:
    """Divide jobs over device classes so that the last ends soonest.

    seconds: [classes, jobs] for one task of a job, infinite where a class cannot do it.
    amounts: [jobs] tasks of each job.   capacity: [classes] devices.   committed: [classes] device-seconds already given.
    A job that no class can do is left out (price 0).
    """
    classes, jobs = seconds.shape
    committed = np.zeros(classes) if committed is None else committed
    doable = np.isfinite(seconds) & (amounts > 0) & (capacity[:, None] > 0)
    load = np.where(doable, seconds, 0.0) * amounts  # [classes, jobs] device-seconds for the whole of a job
    rows, columns = np.nonzero(doable)
    needed = np.unique(columns)
    prices, values, share = np.zeros(jobs), np.zeros(classes), np.zeros((classes, jobs))
    if not len(needed):
        makespan = float(np.max(committed / np.maximum(capacity, 1e-9), initial=0.0))
        return Balance(makespan_s=makespan, prices=prices, values=values, share=share)
    scale = float(np.where(doable, load, np.inf).min(axis=0)[needed].sum() + committed.sum()) / capacity.sum() or 1.0
    variables = len(rows)
    position = np.searchsorted(needed, columns)
    whole = np.zeros((len(needed), variables + 1))
    whole[position, np.arange(variables)] = 1.0
    used = np.flatnonzero(capacity > 0)
    config = np.zeros((len(used), variables + 1))
    config[np.searchsorted(used, rows), np.arange(variables)] = load[rows, columns] / scale / capacity[rows]
    config[:, -1] = -1.0
    result = linprog(
        np.append(np.zeros(variables), 1.0),
        A_ub=config,
        b_ub=-committed[used] / scale / capacity[used],
        A_eq=whole,
        b_eq=np.ones(len(needed)),
        method="highs",
    )
    if not result.success:
        raise RuntimeError(f"the linear program of the division of work did not solve: {result.message}")
    share[rows, columns] = result.x[:-1]
    prices[needed] = result.eqlin.marginals * scale / amounts[needed]
    values[used] = -result.ineqlin.marginals / capacity[used]
    return Balance(makespan_s=float(result.fun) * scale, prices=prices, values=values, share=share)

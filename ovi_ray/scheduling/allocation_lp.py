"""The linear program that divides work over device classes: the fluid bound of the makespan and its shadow prices.

Shapes: [classes] device classes, [types] work types (a stage and a kind of clip).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

FloatArray = npt.NDArray[np.float64]


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class AllocationSolution:
    """The division of work with the shortest makespan if tasks could be cut at will."""

    makespan_s: float
    """Seconds from now until everything is done."""
    prices: FloatArray
    """[types] dual values: seconds of makespan that one more task of each type costs."""
    values: FloatArray
    """[classes] dual values: seconds of makespan that one more device-second of each class saves."""
    share: FloatArray
    """[classes, types] fraction of each type of work that each class does."""


def solve_allocation(
    seconds: FloatArray, amounts: FloatArray, capacity: FloatArray, committed: FloatArray | None = None
) -> AllocationSolution:
    """Divide work over device classes so that the last class ends soonest.

    seconds: [classes, types] per task, infinite where a class cannot do it.
    amounts: [types] tasks.   capacity: [classes] devices.   committed: [classes] device-seconds already assigned.
    Work that no class can do is left out, with price 0. Raises RuntimeError when the solver fails.
    """
    classes, types = seconds.shape
    committed = np.zeros(classes) if committed is None else committed
    feasible = np.isfinite(seconds) & (amounts > 0) & (capacity[:, None] > 0)
    load = np.where(feasible, seconds, 0.0) * amounts  # [classes, types] device-seconds if one class did all of it
    rows, columns = np.nonzero(feasible)
    needed = np.unique(columns)
    prices, values, share = np.zeros(types), np.zeros(classes), np.zeros((classes, types))
    if not len(needed):
        makespan = float(np.max(committed / np.maximum(capacity, 1e-9), initial=0.0))
        return AllocationSolution(makespan_s=makespan, prices=prices, values=values, share=share)
    scale = float(np.where(feasible, load, np.inf).min(axis=0)[needed].sum() + committed.sum()) / capacity.sum() or 1.0
    used = np.flatnonzero(capacity > 0)
    result = linprog(
        np.append(np.zeros(len(rows)), 1.0),  # minimise the makespan, the last variable
        A_ub=_time_limits(rows, columns, used, load / scale, capacity),
        b_ub=-committed[used] / scale / capacity[used],
        A_eq=_all_work_done(columns, needed),
        b_eq=np.ones(len(needed)),
        method="highs",
    )
    if not result.success:
        raise RuntimeError(f"the linear program of the allocation was not solved: {result.message}")
    share[rows, columns] = result.x[:-1]
    prices[needed] = result.eqlin.marginals * scale / amounts[needed]
    values[used] = -result.ineqlin.marginals / capacity[used]
    return AllocationSolution(makespan_s=float(result.fun) * scale, prices=prices, values=values, share=share)


def _all_work_done(columns: npt.NDArray[np.intp], needed: npt.NDArray[np.intp]) -> FloatArray:
    """[needed types, variables + 1] the shares of each type add up to 1."""
    matrix = np.zeros((len(needed), len(columns) + 1))
    matrix[np.searchsorted(needed, columns), np.arange(len(columns))] = 1.0
    return matrix


def _time_limits(
    rows: npt.NDArray[np.intp],
    columns: npt.NDArray[np.intp],
    used: npt.NDArray[np.intp],
    load: FloatArray,
    capacity: FloatArray,
) -> FloatArray:
    """[used classes, variables + 1] the work of a class, over its devices, minus the makespan."""
    matrix = np.zeros((len(used), len(rows) + 1))
    matrix[np.searchsorted(used, rows), np.arange(len(rows))] = load[rows, columns] / capacity[rows]
    matrix[:, -1] = -1.0
    return matrix

"""How many processes run together: given on the command line, or found from the environment."""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping

from tlflax.utils.errors import UserError

_FLAGS = '--coordinator, --num_processes and --process_id'


@dataclasses.dataclass(frozen=True)
class Launch:
    """A process's place among those that run together.

    Attributes:
        coordinator: 'host:port', at which process 0 is reached; '': JAX asks the environment.
        num_processes: Their number; 0: JAX asks the environment.
        process_id: The number of this one.
        method: The name by which JAX knows the environment; '': it is not asked, or finds out.
    """

    coordinator: str = ''
    num_processes: int = 0
    process_id: int = 0
    method: str = ''


def find(
    coordinator: str | None, num_processes: str | None, process_id: str | None
) -> Launch | None:
    """Returns how this process was launched; None where it runs alone.

    Args:
        coordinator: Of the command line, as the others; None: not given.
        num_processes: A number.
        process_id: A number.

    Raises:
        UserError: A value is missing or is not allowed.
    """
    given = {
        '--coordinator': coordinator,
        '--num_processes': num_processes,
        '--process_id': process_id,
    }
    if num_processes == '1' or not any(value is not None for value in given.values()):
        return None if num_processes == '1' else from_environment(os.environ)
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise UserError(
            f'{" and ".join(missing)} must be given too, or none of {_FLAGS}', where='command line'
        )
    assert coordinator is not None
    assert num_processes is not None
    assert process_id is not None
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f'--coordinator={coordinator} is not HOST:PORT',
            where='command line',
            fix='give a name or address of the machine of process 0, and a free port there',
        )
    count = _number('--num_processes', num_processes, 1, 2**16)
    return Launch(coordinator, count, _number('--process_id', process_id, 0, count - 1))


def _number(name: str, text: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise UserError(
            f'{name}={text} is not a whole number in {low}..{high}',
            where='command line',
            fix='processes are numbered from 0',
        )
    return int(text)


def from_environment(environ: Mapping[str, str]) -> Launch | None:
    """Returns the launch that the environment of this process describes; None: it runs alone.

    SLURM's and Open MPI's variables exist for a single process too, and those of Kubernetes for
    jobs whose processes have nothing to do with each other; only several that were started as one
    job step are taken together.

    Args:
        environ: Environment variables.

    Raises:
        UserError: There are several, and it does not say where process 0 is.
    """
    # A step of one task is alone, and so is the script that `sbatch` runs.
    if _several(environ, 'SLURM_NTASKS') and _several(environ, 'SLURM_STEP_NUM_TASKS'):
        return Launch(method='slurm')
    if _several(environ, 'OMPI_COMM_WORLD_SIZE'):
        if 'OMPI_MCA_orte_hnp_uri' in environ:
            return Launch(method='ompi')
        raise UserError(
            'this version of Open MPI does not say where process 0 is',
            where='OMPI_COMM_WORLD_SIZE',
            fix='give --coordinator=HOST:PORT --num_processes=$OMPI_COMM_WORLD_SIZE '
            '--process_id=$OMPI_COMM_WORLD_RANK',
        )
    if {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= {*environ}:
        if importlib.util.find_spec('kubernetes') is not None:
            return Launch(method='k8s')
        raise UserError(
            'this is one of the pods of an indexed job, and it is not known how many there are',
            where='JOB_COMPLETION_INDEX',
            fix=f'give {_FLAGS} (or --num_processes=1 for a run in each), or install kubernetes',
        )
    if ',' in environ.get('TPU_WORKER_HOSTNAMES', '') or _on_a_tpu_machine():
        return Launch()
    return None


def _several(environ: Mapping[str, str], name: str, default: str = '1') -> bool:
    value = environ.get(name, default)
    return value.isdecimal() and int(value) > 1


def _on_a_tpu_machine() -> bool:
    """Returns whether JAX would use a TPU of this machine, which may be a part of a larger one."""
    device = any(map(os.path.exists, ('/dev/accel0', '/dev/vfio/0')))
    return device and importlib.util.find_spec('libtpu') is not None

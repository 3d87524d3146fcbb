"""The processor of this machine."""

import os
import platform
import subprocess
import sys

CPUINFO = '/proc/cpuinfo'


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def processor() -> str:
    """Returns the name of the processor, or its architecture where the name cannot be found out."""
    return _cpuinfo('model name') or platform.processor() or platform.machine()


def described() -> str:
    """Names the processor, the cores that this process may use, and the width of their vectors."""
    return f'{processor()}, {cores()} cores, {vector_width()}'


def vector_width() -> str:
    """Names the widest vector instructions: 'AVX-512', 'AVX2', 'AVX', 'SSE', 'NEON' or 'unknown'.

    'AVX-512' means foundation, byte and word, double and quad word, and vector length together,
    which every compiler and library asks for; without one of them libraries use AVX2.
    """
    if platform.machine().lower() in ('arm64', 'aarch64'):
        return 'NEON'  # every 64-bit ARM processor has it
    return widest(features())


def widest(features: str) -> str:
    """Names the widest vectors of an x86 processor by its features, as an operating system has it.

    Args:
        features: Words between spaces, in upper or lower case, as in the line `flags` of
            /proc/cpuinfo on Linux or in `sysctl machdep.cpu` on macOS.
    """
    found = set(features.lower().replace('_', '').split())
    if {'avx512f', 'avx512bw', 'avx512dq', 'avx512vl'} <= found:
        return 'AVX-512'
    names = {'avx2': 'AVX2', 'avx': 'AVX', 'avx1.0': 'AVX', 'sse2': 'SSE'}
    return next((name for feature, name in names.items() if feature in found), 'unknown')


def features() -> str:
    """Returns the features of an x86 processor between spaces; '' where they are not known."""
    try:
        if sys.platform == 'darwin':
            keys = ['machdep.cpu.features', 'machdep.cpu.leaf7_features']
            return subprocess.run(
                ['/usr/sbin/sysctl', '-n', *keys], capture_output=True, text=True, check=False
            ).stdout
        return _cpuinfo('flags')
    except OSError:
        return ''


def _cpuinfo(wanted: str) -> str:
    """Returns the first value of a name in Linux's description of the processor; '' if none."""
    try:
        with open(CPUINFO, encoding='utf-8', errors='replace') as file:
            lines = (line.partition(':') for line in file)
            return next((value.strip() for name, _, value in lines if name.strip() == wanted), '')
    except OSError:
        return ''

"""The processor is named as the operating system describes it."""

import platform
import sys
from pathlib import Path

import pytest

from tlflax.utils import cpu

ZEN_3 = 'fpu sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c bmi1 avx2 bmi2 sha_ni vaes vpclmulqdq'
SERVER = ZEN_3 + ' avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512_vnni'
XEON_PHI = ZEN_3 + ' avx512f avx512cd avx512er avx512pf'
SANDY_BRIDGE = 'fpu sse sse2 ssse3 sse4_1 sse4_2 avx aes'
MAC = 'FPU SSE SSE2 SSE3 SSE4.1 SSE4.2 FMA AVX1.0\nBMI1 AVX2 BMI2 ERMS\n'
MAC_PRO = MAC + 'AVX512F AVX512DQ AVX512CD AVX512BW AVX512VL'


@pytest.mark.parametrize(
    ('features', 'width'),
    [
        (SERVER, 'AVX-512'),
        (MAC_PRO, 'AVX-512'),
        (ZEN_3, 'AVX2'),
        (XEON_PHI, 'AVX2'),
        (MAC, 'AVX2'),
        (SANDY_BRIDGE, 'AVX'),
        ('SSE SSE2 AVX1.0', 'AVX'),
        ('fpu sse sse2', 'SSE'),
        ('fpu', 'unknown'),
        ('', 'unknown'),
    ],
)
def test_widest_vectors_of_known_processors(features: str, width: str) -> None:
    assert cpu.widest(features) == width


def test_this_machine_is_as_numpy_finds_it() -> None:
    from numpy._core._multiarray_umath import __cpu_features__ as features

    width = cpu.vector_width()
    if platform.machine() in ('arm64', 'aarch64'):
        assert width == 'NEON'
    elif sys.platform in ('linux', 'darwin'):
        assert (width == 'AVX-512') == features['AVX512_SKX']
        assert (width in ('AVX-512', 'AVX2')) == features['AVX2']


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has the file')
@pytest.mark.parametrize('content', [None, '', 'processor\t: 0\n\nmodel name\t: one\n'])
def test_a_processor_that_is_not_described_is_unknown(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / 'cpuinfo'
    if content is not None:
        place.write_text(content)
    monkeypatch.setattr(cpu, 'CPUINFO', str(place))
    monkeypatch.setattr(platform, 'machine', lambda: 'x86_64')
    assert cpu.vector_width() == 'unknown'


def test_an_arm_processor_has_neon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, 'machine', lambda: 'aarch64')
    assert cpu.vector_width() == 'NEON'


def test_this_machine_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, number, width = cpu.described().rsplit(', ', 2)
    assert name == cpu.processor()
    assert number == f'{cpu.cores()} cores'
    assert width == cpu.vector_width()
    place = tmp_path / 'cpuinfo'
    place.write_text('processor\t: 0\nmodel name\t: Some: Processor\nmodel name\t: another\n')
    monkeypatch.setattr(cpu, 'CPUINFO', str(place))
    assert cpu.processor() == 'Some: Processor'
    place.write_text('')
    assert cpu.processor() in (platform.processor(), platform.machine())

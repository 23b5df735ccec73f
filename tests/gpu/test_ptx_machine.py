"""The PTX interpreter itself: kernels whose answers NumPy knows, and planted mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptx import EmulatedDevice, KernelError, why_not
from ptx.memory import BASE
from sparsednn.errors import DeviceMemoryError, SparseDNNError

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "NVRTC is there")

HEAD = """
typedef unsigned int u32; typedef unsigned long long u64; typedef unsigned short u16;
#define KERNEL extern "C" __global__ void
#define ME (blockIdx.x * blockDim.x + threadIdx.x)
"""


def run(
    text: str, *arguments: Any, blocks: Any = 1, threads: int = 64, shared: int = 0, **options: Any
) -> list[Any]:
    """Run the kernel `k` of `text`; arrays are uploaded, and returned as they are afterwards."""
    device = options.pop("device", None) or EmulatedDevice(memory=1 << 24, **options)
    kernel = device.compile(HEAD + text, "k")
    placed = [device.upload(a) if isinstance(a, np.ndarray) else a for a in arguments]
    device.launch(kernel, blocks, threads, placed, shared=shared)
    return [device.download(a) for a in placed if isinstance(a, np.ndarray)]


def randoms(n: int, dtype: Any = "f4", seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.normal(size=n).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, n, dtype, endpoint=True)


class TestAnswers:
    """Kernels without mistakes."""

    @pytest.mark.parametrize("lanes", [64, 1 << 15])
    def test_saxpy(self, lanes: int) -> None:
        x, y = randoms(5000), randoms(5000, seed=1)
        text = """KERNEL k(float a, const float* __restrict__ x, float* y, int n) {
            for (int i = ME; i < n; i += gridDim.x * blockDim.x) y[i] += a * x[i]; }"""
        _, got = run(text, np.float32(2), x, y, np.int32(5000), blocks=7, threads=96, lanes=lanes)
        assert np.array_equal(got, (2 * x.astype("f8") + y).astype("f4"))

    def test_collatz(self) -> None:
        text = """KERNEL k(const u32* x, int* y, int n) {
            int i = ME; if (i >= n) return;
            u64 v = x[i]; int steps = 0;
            while (v != 1) { if (v & 1) { v = 3 * v + 1; } else { v /= 2; } ++steps;
                if (steps > 100) break; }
            y[i] = steps; }"""
        x = np.arange(1, 1001, dtype="u4")
        _, got = run(text, x, np.zeros(1000, "i4"), np.int32(1000), blocks=16)
        for start, steps in zip(x.tolist(), got.tolist(), strict=True):
            v, expected = start, 0
            while v != 1 and expected <= 100:
                v, expected = (3 * v + 1 if v & 1 else v // 2), expected + 1
            assert steps == expected

    def test_reduction_in_shared_memory(self) -> None:
        text = """KERNEL k(const float4* x, float* y) {
            __shared__ float s[128]; extern __shared__ float d[];
            float4 v = x[ME]; s[threadIdx.x] = v.x + v.y; d[threadIdx.x] = v.z + v.w;
            __syncthreads();
            for (int h = blockDim.x / 2; h; h /= 2) {
                if (threadIdx.x < h) { s[threadIdx.x] += s[threadIdx.x + h];
                                       d[threadIdx.x] += d[threadIdx.x + h]; }
                __syncthreads();
            }
            if (threadIdx.x == 0) y[blockIdx.x] = s[0] + d[0]; }"""
        x = randoms(4 * 5 * 128)
        _, got = run(text, x, np.zeros(5, "f4"), blocks=5, threads=128, shared=512)
        np.testing.assert_allclose(got, x.astype("f8").reshape(5, -1).sum(axis=1), atol=1e-4)

    def test_transposition(self) -> None:
        text = """KERNEL k(const u16* x, u16* y, int n, int m) {
            __shared__ u16 s[32][33];
            int c = threadIdx.x % 32, r = threadIdx.x / 32;
            for (int j = r; j < 32; j += 8) {
                int row = blockIdx.y * 32 + j, col = blockIdx.x * 32 + c;
                if (row < n && col < m) s[j][c] = x[row * m + col]; }
            __syncthreads();
            for (int j = r; j < 32; j += 8) {
                int row = blockIdx.x * 32 + j, col = blockIdx.y * 32 + c;
                if (row < m && col < n) y[row * n + col] = s[c][j]; } }"""
        x = randoms(70 * 45, "u2").reshape(70, 45)
        n, m = np.int32(70), np.int32(45)
        _, got = run(text, x, np.zeros((45, 70), "u2"), n, m, blocks=(2, 3), threads=256)
        assert np.array_equal(got, x.T)

    def test_warps(self) -> None:
        text = """KERNEL k(const int* x, int* y) {
            int v = x[ME], lane = threadIdx.x % 32; const u32 all = ~0u;
            int sum = v; for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(all, sum, o);
            int* to = y + ME * 10;
            to[0] = sum; to[1] = __ballot_sync(all, v > 3); to[2] = __shfl_up_sync(all, v, 3);
            to[3] = __shfl_down_sync(all, v, 5, 8); to[4] = __shfl_sync(all, v, lane * 7);
            to[5] = __any_sync(all, v == 5); to[6] = __all_sync(all, v < 9);
            to[7] = __reduce_add_sync(all, v); to[8] = __reduce_max_sync(all, v);
            to[9] = __match_any_sync(all, v);
            if (lane < 16) { u32 half = 0xffff; to[6] += 10 * __popc(__ballot_sync(half, v > 0)); }
        }"""
        x = np.random.default_rng(3).integers(-5, 10, 192).astype("i4")
        _, got = run(text, x, np.zeros(1920, "i4"), blocks=3)
        got = got.reshape(-1, 32, 10)
        bits = 1 << np.arange(32, dtype="u8")
        lane = np.arange(32)
        for v, out in zip(x.reshape(-1, 32), got, strict=True):
            expected = np.empty((32, 10), "i4")
            expected[:, 0] = expected[:, 7] = v.sum()
            expected[:, 1] = (bits[v > 3].sum()).astype("u4").view("i4")
            expected[:, 2] = np.where(lane < 3, v, v[lane - 3])
            expected[:, 3] = np.where(lane % 8 + 5 < 8, v[(lane + 5) % 32], v)
            expected[:, 4] = v[lane * 7 % 32]
            expected[:, 5], expected[:, 6] = (v == 5).any(), (v < 9).all()
            expected[:16, 6] += 10 * (v[:16] > 0).sum()
            expected[:, 8] = v.max()
            expected[:, 9] = [bits[v == one].sum().astype("u4").view("i4") for one in v]
            assert np.array_equal(out, expected)

    def test_partial_warp(self) -> None:
        text = """KERNEL k(u32* y) { y[ME] = __activemask(); __syncwarp();
            y[ME] += __shfl_down_sync(~0u, threadIdx.x, 4, 8); }"""
        (got,) = run(text, np.zeros(80, "u4"), blocks=2, threads=40)
        lane = np.tile(np.arange(40), 2)
        mask = np.where(lane < 32, 2**32 - 1, 255)
        assert np.array_equal(got, (mask + np.where(lane % 8 < 4, lane + 4, lane)).astype("u4"))

    def test_atomics(self) -> None:
        text = """KERNEL k(u32* c, int* low, float* sum, u64* big, u32* ticket, u32* old) {
            u32 mine = atomicAdd(c, threadIdx.x + 1); old[ME] = mine;
            int other = threadIdx.x * 7 % 50; atomicMin(low, other - 9); atomicMax(low + 1, other);
            atomicAdd(sum + threadIdx.x % 3, 0.5f); atomicOr(big, 1ull << (threadIdx.x % 64));
            atomicAdd(big + 1, 1ull << 33);
            atomicExch(c + 1, 5); atomicInc(ticket, 9); atomicSub(c + 2, 1);
            __shared__ u32 s[2];
            if (threadIdx.x < 2) s[threadIdx.x] = 0;
            __syncthreads(); u32 place = atomicAdd(&s[threadIdx.x % 2], 1); __syncthreads();
            if (place == 31) atomicAdd(c + 3, s[0] + s[1]); }"""
        zero = [np.zeros(4, "u4"), np.zeros(2, "i4"), np.zeros(3, "f4"), np.zeros(2, "u8")]
        c, low, sums, big, ticket, old = run(
            text, *zero, np.zeros(1, "u4"), np.zeros(192, "u4"), blocks=3
        )
        assert c.tolist() == [3 * 64 * 65 // 2, 5, 2**32 - 192, 3 * 2 * 64]
        assert low.tolist() == [-9, 49]
        assert sums.sum() == 96
        assert big.tolist() == [2**64 - 1, 192 << 33]
        assert ticket[0] == 192 % 10
        assert len(np.unique(old)) == 192

    def test_hash_set_of_64_bit_keys(self) -> None:
        text = """KERNEL k(const u64* keys, u64* table, u32* found, int n, u32 mask) {
            int i = ME; if (i >= n) return;
            u64 key = keys[i]; u32 at = (u32)(key * 0x9E3779B97F4A7C15ull >> 40) & mask;
            while (true) {
                u64 there = atomicCAS(table + at, 0ull, key);
                if (there == 0 || there == key) break;
                at = (at + 1) & mask;
            }
            found[i] = at; }"""
        keys = np.random.default_rng(5).choice(randoms(300, "u8", 4), 1000)
        arguments = (np.zeros(512, "u8"), np.zeros(1000, "u4"), np.int32(1000), np.uint32(511))
        _, table, found = run(text, keys, *arguments, blocks=16)
        assert sorted(table[table != 0].tolist()) == sorted(set(keys.tolist()))
        assert np.array_equal(table[found], keys)

    def test_vectors(self) -> None:
        text = """KERNEL k(const float4* x, float2* y, const ulonglong2* w, u64* z, uchar4* b) {
            float4 v = x[ME]; y[ME] = make_float2(v.x * v.w, v.y - v.z);
            ulonglong2 u = w[ME]; z[ME] = u.x ^ u.y;
            uchar4 c = b[ME]; b[ME] = make_uchar4(c.w, c.z, c.y, c.x); }"""
        x, w, b = randoms(512).reshape(-1, 4), randoms(256, "u8").reshape(-1, 2), randoms(512, "u1")
        y, z = np.zeros((128, 2), "f4"), np.zeros(128, "u8")
        _, y, _, z, c = run(text, x, y, w, z, b, blocks=2)
        assert np.array_equal(y, np.stack([x[:, 0] * x[:, 3], x[:, 1] - x[:, 2]], axis=1))
        assert np.array_equal(z, w[:, 0] ^ w[:, 1])
        assert np.array_equal(c.reshape(-1, 4), b.reshape(-1, 4)[:, ::-1])

    def test_half_precision(self) -> None:
        text = """KERNEL k(u16* h, float* f, u16* b, float* g, u32* p) {
            int i = ME; float x, y; u16 out; u32 two;
            asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h[i])); f[i] = x;
            asm("{ .reg .b16 t; mov.b16 t, %1; cvt.f32.bf16 %0, t; }" : "=f"(y) : "h"(b[i]));
            asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(g[i])); h[i] = out;
            asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(g[i])); b[i] = out;
            asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(x), "f"(g[i])); p[i] = two;
            g[i] = y; }"""
        text = text.replace("cvt.f32.bf16 %0, t", "mov.b32 %0, {0, t}")
        h, b = randoms(4096, "u2"), randoms(4096, "u2", 1)
        g = (randoms(4096, seed=2) * 10.0 ** randoms(4096, seed=3)).astype("f4")
        h2, f, b2, y, p = run(text, h, np.zeros(4096, "f4"), b, g, np.zeros(4096, "u4"), blocks=64)
        assert np.array_equal(f, h.view("f2").astype("f4"), equal_nan=True)
        with np.errstate(over="ignore"):
            half = g.astype("f2").view("u2")
        assert np.array_equal(h2, half)
        wide = g.view("u4").astype("u8")
        assert np.array_equal(b2, ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype("u2"))
        assert np.array_equal(y.view("u4"), b.astype("u4") << 16)
        assert np.array_equal((p & 0xFFFF).astype("u2"), half)

    def test_switch_local_and_constant_memory(self) -> None:
        cases = "".join(f"case {c}: r = x[{c}] * {c + 3} ^ i; break;" for c in range(12))
        text = f"""__constant__ int scale[4] = {{1, 10, 100, 1000}}; __device__ int calls;
        KERNEL k(const int* x, int* y, int* n) {{
            int i = ME, r = -1, own[8];
            switch (x[i] & 15) {{ {cases} }}
            for (int j = 0; j < 8; ++j) own[j] = x[j];
            for (int j = 0; j < 8; ++j) own[x[i + j] & 7] += r;
            y[i] = own[i & 7] * scale[i & 3]; n[i] = atomicAdd(&calls, 1); }}"""
        x = randoms(80, "u1").astype("i4")
        _, got, n = run(text, x, np.zeros(64, "i4"), np.zeros(64, "i4"))
        for i in range(64):
            case = int(x[i]) & 15
            r = int(x[case]) * (case + 3) ^ i if case < 12 else -1
            own = x[:8].astype(int)
            for j in range(8):
                own[x[i + j] & 7] += r
            assert got[i] == own[i & 7] * 10 ** (i & 3)
        assert sorted(n.tolist()) == list(range(64))

    def test_addresses_and_generic_pointers(self) -> None:
        text = """KERNEL k(const long long* at, const double* x, float* y, int which) {
            __shared__ float s[64]; s[threadIdx.x] = threadIdx.x; __syncthreads();
            const float* p = (at[ME] & 1) ? &s[63 - threadIdx.x] : y + ME;
            float v = *p; y[ME] = v + (float)x[at[ME] - (1ll << 40)]; }"""
        at = np.random.default_rng(0).integers(0, 50, 64) + (1 << 40)
        x, y = randoms(50, "f8"), randoms(64)
        _, _, got = run(text, at, x, y, np.int32(0))
        first = np.where(at & 1, 63 - np.arange(64, dtype="f4"), y).astype("f4")
        assert np.array_equal(got, first + x[at - (1 << 40)].astype("f4"))

    def test_last_block_adds_up(self) -> None:
        text = """KERNEL k(const float* x, float* part, u32* ticket, float* total) {
            __shared__ bool last;
            if (threadIdx.x == 0) { part[blockIdx.x] = x[blockIdx.x]; __threadfence();
                last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1; }
            __syncthreads();
            if (last && threadIdx.x == 0) { float sum = 0;
                for (int b = 0; b < gridDim.x; ++b) sum += ((volatile float*)part)[b];
                *total = sum; } }"""
        x = np.arange(40, dtype="f4")
        zero = (np.zeros(1, "u4"), np.zeros(1, "f4"))
        *_, ticket, total = run(text, x, np.zeros(40, "f4"), *zero, blocks=40, lanes=256)
        assert (ticket[0], total[0]) == (0, x.sum())

    def test_half_precision_arithmetic(self) -> None:
        text = """KERNEL k(const u32* x, const u32* y, u32* s, u32* f, u16* m) {
            int i = ME; u32 v; u16 w;
            asm("add.f16x2 %0, %1, %2;" : "=r"(v) : "r"(x[i]), "r"(y[i])); s[i] = v;
            asm("fma.rn.f16x2 %0, %1, %2, %2;" : "=r"(v) : "r"(x[i]), "r"(y[i])); f[i] = v;
            asm("max.f16 %0, %1, %2;" : "=h"(w) : "h"((u16)x[i]), "h"((u16)y[i])); m[i] = w; }"""
        a, b = (randoms(128, seed=s).astype("f2") for s in (0, 1))
        zero = np.zeros(64, "u4")
        *_, s, f, m = run(text, a.view("u4"), b.view("u4"), zero, zero, np.zeros(64, "u2"))
        assert np.array_equal(s.view("f2"), a + b)
        assert np.array_equal(f.view("f2"), (a.astype("f8") * b + b).astype("f2"))
        assert np.array_equal(m.view("f2"), np.maximum(a, b)[::2])

    def test_asynchronous_copies(self) -> None:
        text = """KERNEL k(const float4* x, float4* y, int n) { __shared__ float4 s[64];
            u32 to = (u32)__cvta_generic_to_shared(s + threadIdx.x);
            int size = (int)ME < n ? 16 : 0;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                         :: "r"(to), "l"(x + (size ? ME : 0)), "r"(size));
            asm volatile("cp.async.commit_group; cp.async.wait_group 0;"); __syncthreads();
            y[ME] = s[63 - threadIdx.x]; }"""
        x = randoms(400).reshape(100, 4)
        _, y = run(text, x, np.ones((128, 4), "f4"), np.int32(100), blocks=2)
        padded = np.r_[x, np.zeros((28, 4), "f4")]
        assert np.array_equal(y.reshape(2, 64, 4), padded.reshape(2, 64, 4)[:, ::-1])

    def test_jump_table(self) -> None:
        text = """KERNEL k(const u32* x, u32* y) { u32 v = x[ME], r = 0;
            asm("{ table: .branchtargets one, two, three; brx.idx %1, table;"
                "one: mov.u32 %0, 10; bra done; two: mov.u32 %0, 20; bra done;"
                "three: mov.u32 %0, 30; done: }" : "=&r"(r) : "r"(v)); y[ME] = r; }"""
        x = np.random.default_rng(0).integers(0, 3, 64).astype("u4")
        _, y = run(text, x, np.zeros(64, "u4"))
        assert np.array_equal(y, 10 * x + 10)

    def test_block_wide_votes(self) -> None:
        text = """KERNEL k(const int* x, int* y) { int p = x[ME] > 0;
            int n = __syncthreads_count(p), a = __syncthreads_and(p), o = __syncthreads_or(p);
            y[ME] = n * 4 + (a != 0) * 2 + (o != 0); }"""
        x = np.repeat([[1], [0], [-3]], 64, axis=1).astype("i4")
        x[2, 7] = 5
        _, got = run(text, x, np.zeros(192, "i4"), blocks=3)
        assert got.reshape(3, 64)[:, 0].tolist() == [64 * 4 + 3, 0, 1 * 4 + 1]


EDGES = [0, 1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1]


def arithmetic(expression: str, kind: str, *columns: Any, result: str = "") -> Any:
    """Evaluate a C expression of a, b and c on a GPU."""
    result = result or kind
    text = f"""KERNEL k(const {kind}* pa, const {kind}* pb, const {kind}* pc, {result}* y, int n) {{
        for (int i = ME; i < n; i += 4096) {{ {kind} a = pa[i], b = pb[i], c = pc[i];
            y[i] = {expression}; }} }}"""
    out = {"int": "i4", "u32": "u4", "float": "f4", "double": "f8", "u64": "u8"}
    out["long long"] = "i8"
    zero = np.zeros(len(columns[0]), out[result])
    return run(text, *columns, zero, np.int32(len(zero)), blocks=64)[-1]


class TestArithmetic:
    """Instructions on random numbers and on edges, against Python's integers and NumPy's floats."""

    @pytest.mark.parametrize(
        ("expression", "exact"),
        [
            ("a * b + c", lambda a, b, c: a * b + c),
            ("a / (b | 1)", lambda a, b, c: _quotient(a, _signed_or(b, 1))),
            ("a % (b | 1)", lambda a, b, c: a - _signed_or(b, 1) * _quotient(a, _signed_or(b, 1))),
            ("a / 7 + b % 10", lambda a, b, c: _quotient(a, 7) + b - 10 * _quotient(b, 10)),
            ("min(a, b) ^ max(b, c)", lambda a, b, c: min(a, b) ^ max(b, c)),
            ("(a & b) | (~a & c)", lambda a, b, c: (a & b) | (~a & c)),
            (
                "(a < b) + 2 * (b >= c) + 4 * (a == c)",
                lambda a, b, c: (a < b) + 2 * (b >= c) + 4 * (a == c),
            ),
            ("a >> (b & 31)", lambda a, b, c: a >> (b & 31)),
            ("a << (b & 31)", lambda a, b, c: a << (b & 31)),
        ],
    )
    @pytest.mark.parametrize("kind", ["int", "u32", "long long", "u64"])
    def test_integers(self, kind: str, expression: str, exact: Any) -> None:
        dtype = {"int": "i4", "u32": "u4", "long long": "i8", "u64": "u8"}[kind]
        edges = np.array(EDGES, "u8").astype(dtype)
        grid = np.meshgrid(edges, edges, edges[::5])
        a, b, c = (np.concatenate([g.ravel(), randoms(200, dtype, s)]) for s, g in enumerate(grid))
        got = arithmetic(expression, kind, a, b, c)
        width = 8 * a.dtype.itemsize
        for index in range(len(a)):
            x, y, z = int(a[index]), int(b[index]), int(c[index])
            assert int(got[index]) % 2**width == exact(x, y, z) % 2**width, (x, y, z)

    @pytest.mark.parametrize(
        ("expression", "exact"),
        [
            ("__umulhi(a, b)", lambda a, b, c: a * b >> 32),
            (
                "__popc(a) + 64 * __clz(b)",
                lambda a, b, c: a.bit_count() + 64 * (32 - b.bit_length()),
            ),
            ("__brev(a)", lambda a, b, c: int(f"{a:032b}"[::-1], 2)),
            ("__ffs(a)", lambda a, b, c: (a & -a).bit_length()),
            ("__byte_perm(a, b, 0x1634)", lambda a, b, c: _bytes(a, b, (4, 3, 6, 1))),
            ("__funnelshift_l(a, b, c)", lambda a, b, c: ((b << 32 | a) << c % 32) >> 32),
            ("__funnelshift_rc(a, b, c)", lambda a, b, c: (b << 32 | a) >> min(c, 32)),
            ("(a >> 5) & 0x3ff", lambda a, b, c: a >> 5 & 0x3FF),
            ("__usad(a, b, c)", lambda a, b, c: abs(a - b) + c),
            ("c < 32 ? a << c : 0", lambda a, b, c: a << c if c < 32 else 0),
        ],
    )
    def test_bits(self, expression: str, exact: Any) -> None:
        edges = np.array(EDGES, "u4")
        grid = np.meshgrid(edges, edges[::3], edges)
        a, b, c = (np.concatenate([g.ravel(), randoms(99, "u4", s)]) for s, g in enumerate(grid))
        got = arithmetic(expression, "u32", a, b, c)
        for index in range(len(a)):
            x, y, z = int(a[index]), int(b[index]), int(c[index])
            assert int(got[index]) == exact(x, y, z) % 2**32, (x, y, z)

    @pytest.mark.parametrize("kind", ["u64", "long long"])
    def test_high_product_of_64_bits(self, kind: str) -> None:
        dtype = "u8" if kind == "u64" else "i8"
        a, b = randoms(500, dtype), randoms(500, dtype, 1)
        function = "__umul64hi" if kind == "u64" else "__mul64hi"
        got = arithmetic(f"{function}(a, b)", kind, a, b, b)
        exact = [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]
        assert got.tolist() == exact

    @pytest.mark.parametrize(
        ("instruction", "exact"),
        [
            ("lop3.b32 %0, %1, %2, %3, 0x96;", lambda a, b, c: a ^ b ^ c),
            ("lop3.b32 %0, %1, %2, %3, 0xE8;", lambda a, b, c: (a & b) | (b & c) | (a & c)),
            ("bfe.u32 %0, %1, 5, 9;", lambda a, b, c: a >> 5 & 511),
            ("bfe.u32 %0, %1, 28, 9;", lambda a, b, c: a >> 28),
            ("bfe.s32 %0, %1, 3, 7;", lambda a, b, c: ((a >> 3 & 127) ^ 64) - 64),
            ("bfi.b32 %0, %1, %2, 7, 6;", lambda a, b, c: (b & ~(63 << 7)) | (a & 63) << 7),
            ("shl.b32 %0, %1, %3;", lambda a, b, c: a << c if c < 32 else 0),
            ("shr.u32 %0, %1, %3;", lambda a, b, c: a >> c if c < 32 else 0),
            ("shr.s32 %0, %1, %3;", lambda a, b, c: (a - (a >> 31 << 32)) >> min(c, 31)),
            ("bfind.u32 %0, %1;", lambda a, b, c: a.bit_length() - 1),
            ("mad.hi.u32 %0, %1, %2, %3;", lambda a, b, c: (a * b >> 32) + c),
            ("{ .reg .pred p; setp.gt.s32 p, %1, 5; selp.b32 %0, %2, %3, p; }",
             lambda a, b, c: b if 5 < a < 2**31 else c),
            ("{ .reg .pred p; setp.lt.u32 p, %1, %2; mov.b32 %0, 7; @!p add.u32 %0, %0, %3; }",
             lambda a, b, c: 7 if a < b else 7 + c),
        ],
    )  # fmt: skip
    def test_inline_assembly(self, instruction: str, exact: Any) -> None:
        edges = np.array(EDGES, "u4")
        a, b, c = (np.r_[g.ravel(), randoms(9, "u4", 5)] for g in np.meshgrid(edges, edges, edges))
        text = instruction.replace('"', "")
        text = f"""KERNEL k(const u32* a, const u32* b, const u32* c, u32* y, int n) {{
            for (int i = ME; i < n; i += 4096) {{ u32 r;
                asm("{text}" : "=&r"(r) : "r"(a[i]), "r"(b[i]), "r"(c[i])); y[i] = r; }} }}"""
        n = np.int32(len(a))
        got = run(text, a, b, c, np.zeros(len(a), "u4"), n, blocks=64)[-1]
        for index in range(0, len(a), 7):
            x, y, z = int(a[index]), int(b[index]), int(c[index])
            assert int(got[index]) == exact(x, y, z) % 2**32, (x, y, z)

    @pytest.mark.parametrize("kind", ["float", "double"])
    @pytest.mark.parametrize(
        ("expression", "exact"),
        [
            ("a / b - c", lambda a, b, c: a / b - c),
            ("fmin(a, b) + fmax(b, c)", lambda a, b, c: np.fmin(a, b) + np.fmax(b, c)),
            ("sqrt(fabs(a))", lambda a, b, c: np.sqrt(np.abs(a))),
            ("-a < b ? c : a", lambda a, b, c: np.where(-a < b, c, a)),
            ("floor(a * 8) + rint(b * 8)", lambda a, b, c: np.floor(a * 8) + np.rint(b * 8)),
            ("copysign(a, b)", lambda a, b, c: np.copysign(a, b)),
            (
                "(double)(float)a + (int)(b * 16)",
                lambda a, b, c: a.astype("f4") + np.trunc(b * 16),
            ),
        ],
    )
    def test_floats(self, kind: str, expression: str, exact: Any) -> None:
        dtype = "f4" if kind == "float" else "f8"
        a, b, c = (randoms(500, dtype, seed) for seed in range(3))
        if kind == "float":
            expression = expression.replace("fmin", "fminf").replace("fmax", "fmaxf")
            for name in ("sqrt", "fabs", "floor", "rint", "copysign"):
                expression = expression.replace(name, name + "f")
        got = arithmetic(expression, kind, a, b, c)
        assert np.array_equal(got, exact(a, b, c).astype(dtype))

    def test_comparisons_with_nan(self) -> None:
        special = np.array([np.nan, 0, -0.0, 1, np.inf, -np.inf], "f4")
        a, b = (g.ravel() for g in np.meshgrid(special, special))
        text = (
            "(a < b) + 2 * (a <= b) + 4 * (a == b) + 8 * (a != b) + 16 * !(a > b) + 32 * !(a >= b)"
        )
        got = arithmetic(text, "float", a, b, b, result="int")
        exact = (a < b) + 2 * (a <= b) + 4 * (a == b) + 8 * (a != b) + 16 * ~(a > b) * 1
        assert np.array_equal(got, exact + 32 * ~(a >= b))
        got = arithmetic("fmaxf(a, b)", "float", a, b, b)
        assert np.array_equal(got, np.fmax(a, b), equal_nan=True)

    def test_fused_multiply_add_rounds_once(self) -> None:
        from fractions import Fraction

        a, b = randoms(3000), randoms(3000, seed=1)
        c = randoms(3000, seed=2) * np.float32(2) ** np.random.default_rng(0).integers(
            -30, 30, 3000
        )
        # Halfway cases: 1 + 2^-24 (1 ± tiny), where a second rounding would go to even.
        half = np.float32(2.0**-24)
        a = np.r_[a, half, half, half].astype("f4")
        b = np.r_[b, 1, 1 + np.float32(2.0**-23), 1 - half].astype("f4")
        c = np.r_[c, 1, 1, 1].astype("f4")
        got = arithmetic("fmaf(a, b, c)", "float", a, b, c)
        for x, y, z, r in zip(a, b, c, got, strict=True):
            exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
            near = [np.nextafter(r, np.float32(s) * np.float32(np.inf)) for s in (-1, 1)]
            error = abs(Fraction(float(r)) - exact)
            assert all(error <= abs(Fraction(float(other)) - exact) for other in near)

    @pytest.mark.parametrize(
        ("expression", "exact"),
        [
            ("expf(a)", np.exp),
            ("logf(fabsf(a))", lambda a: np.log(np.abs(a))),
            ("tanhf(a)", np.tanh),
            ("__expf(a)", np.exp),
            ("rsqrtf(fabsf(a))", lambda a: 1 / np.sqrt(np.abs(a))),
            ("1 / (1 + expf(-a))", lambda a: 1 / (1 + np.exp(-a))),
            ("log1pf(fabsf(a))", lambda a: np.log1p(np.abs(a))),
        ],
    )
    def test_functions(self, expression: str, exact: Any) -> None:
        a = np.r_[randoms(1000), 5 * randoms(1000, seed=1)].astype("f4")
        a = np.r_[a, np.float32(np.nan), np.float32(np.inf)]
        got = arithmetic(expression, "float", a, a, a)
        np.testing.assert_allclose(got, exact(a.astype("f8")), rtol=2e-6, atol=1e-6)

    def test_conversions(self) -> None:
        a = np.r_[randoms(200) * 300, np.nan, np.inf, -np.inf, 1e20, -1e20, 2.5, 3.5].astype("f4")
        with np.errstate(invalid="ignore"):
            clean = np.nan_to_num(a.astype("f8"), nan=0.0, posinf=1e300, neginf=-1e300)
        for expression, low, up, dtype in (
            ("__float2int_rz(a)", -(2**31), 2**31 - 1, np.trunc),
            ("__float2int_rn(a)", -(2**31), 2**31 - 1, np.rint),
            ("(int)__float2uint_rd(a)", 0, 2**32 - 1, np.floor),
        ):
            got = arithmetic(expression, "float", a, a, a, result="int")
            exact = [int(x) for x in np.clip(dtype(clean), low, up)]
            assert [int(x) % 2**32 for x in got] == [x % 2**32 for x in exact]
        i = randoms(200, "i8")
        got = arithmetic("(long long)((float)a * 0.5f) + (short)b + (unsigned char)c",
                         "long long", i, i, i)  # fmt: skip
        exact = (i.astype("f4") * np.float32(0.5)).astype("i8") + i.astype("i2") + i.astype("u1")
        assert np.array_equal(got, exact)


def _quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _signed_or(a: int, b: int) -> int:
    return a | b


def _bytes(a: int, b: int, order: tuple[int, ...]) -> int:
    every = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    return int.from_bytes(bytes(every[one] for one in order), "little")


def fails(message: str, text: str, *arguments: Any, **options: Any) -> str:
    with pytest.raises(KernelError, match=message) as caught:
        run(text, *arguments, **options)
    return str(caught.value)


class TestMistakes:
    """Planted mistakes, and their correct twins."""

    @pytest.mark.parametrize("what", ["x[i + 1]", "x[i - 1]", "x[i + (1ll << 33)]"])
    def test_out_of_bounds(self, what: str) -> None:
        text = f"KERNEL k(const float* x, float* y) {{ long long i = ME; y[i] = {what}; }}"
        said = fails("out of bounds", text, np.ones(64, "f4"), np.ones(64, "f4"))
        assert "kernel k, block 0 thread" in said
        assert "ld.global.f32" in said

    def test_out_of_bounds_stores(self) -> None:
        text = "KERNEL k(float* y) { y[2 * ME] = 1; }"
        said = fails("out of bounds", text, np.ones(127, "f4")[:100])
        assert "thread 50" in said
        assert "array of shape (100,)" in said
        fails("out of bounds", "KERNEL k(float* y) { *y = 1; }", None)
        text = """KERNEL k(int* y) { __shared__ int s[64]; s[ME + 1] = 1; __syncthreads();
            y[ME] = s[ME]; }"""
        fails("out of bounds.*shared", text, np.ones(64, "i4"))
        text = "KERNEL k(int* y) { extern __shared__ int s[]; s[ME] = 1; y[ME] = s[ME]; }"
        fails("out of bounds.*shared", text, np.ones(64, "i4"), shared=252)
        run(text, np.ones(64, "i4"), shared=256)

    def test_misaligned(self) -> None:
        text = "KERNEL k(const float* x, float4* y) { y[0] = *(const float4*)(x + ME); }"
        said = fails("misaligned: 16 bytes", text, np.ones(68, "f4"), np.ones(4, "f4"))
        assert "thread 1" in said

    def test_use_after_free(self) -> None:
        device = EmulatedDevice(memory=1 << 20)
        kernel = device.compile(HEAD + "KERNEL k(float** x) { **x = 1; }", "k")
        array = device.zeros(4, "f4")
        pointer = device.upload(np.array([BASE + device.arena.offset(array)], "u8"))
        device.launch(kernel, 1, 1, [pointer])
        assert array[0] == 1
        del array
        with pytest.raises(KernelError, match="out of bounds"):
            device.launch(kernel, 1, 1, [pointer])

    def test_uninitialised(self) -> None:
        device = EmulatedDevice(memory=1 << 20)
        text = "KERNEL k(const float* x, float* y) { y[ME] = x[ME]; }"
        kernel = device.compile(HEAD + text, "k")
        x, y = device.empty(64, "f4"), device.empty(64, "f4")
        with pytest.raises(KernelError, match=r"uninitialised.*never written"):
            device.launch(kernel, 1, 64, [x, y])
        device.upload(np.ones(63, "f4"), out=x[:63])
        with pytest.raises(KernelError, match=r"thread 63.*uninitialised"):
            device.launch(kernel, 1, 64, [x, y])
        device.launch(kernel, 1, 63, [x, y])
        device.initcheck = False
        device.launch(kernel, 1, 64, [x, y])
        assert np.isnan(y[63])

    def test_uninitialised_shared_memory(self) -> None:
        text = """KERNEL k(int* y) { __shared__ int s[64]; if (threadIdx.x) s[threadIdx.x] = 1;
            __syncthreads(); y[ME] = s[threadIdx.x]; }"""
        said = fails("uninitialised", text, np.ones(192, "i4"), blocks=3)
        assert "block 0 thread 0" in said
        device = EmulatedDevice(memory=1 << 20)
        run(text.replace("if (threadIdx.x)", ""), np.ones(64, "i4"), device=device)
        fails("uninitialised", text, np.ones(64, "i4"), device=device)  # nothing is left over

    SHARED = """KERNEL k(int* y) {{ __shared__ int s[128]; int t = threadIdx.x; s[t] = t;
        {} y[ME] = s[{}]; }}"""

    @pytest.mark.parametrize(
        ("sync", "index", "good"),
        [
            ("__syncthreads();", "127 - t", True),
            ("", "127 - t", False),
            ("", "t", True),
            ("__syncwarp();", "t ^ 1", True),
            ("", "t ^ 1", False),
            ("__syncwarp();", "t ^ 32", False),
            ("__shfl_sync(~0u, t, 0);", "t ^ 1", False),
            ("__syncthreads(); s[t ^ 1] = 7;", "t", False),
            ("__syncthreads(); s[t ^ 1] = 7; __syncthreads();", "t", True),
            ("__syncthreads(); int v = s[t ^ 1]; s[t] = v + 1;", "t", False),
            ("__syncthreads(); int v = s[5]; __syncwarp(); if (t < 32) s[5] = v;", "t & 1", False),
            ("__syncthreads(); int v = s[t / 32]; __syncwarp(); if (t % 32 == 0) s[t / 32] = v;",
             "t / 32 + 4", True),
            ("atomicAdd(&s[0], 1);", "t", False),
            ("__syncthreads(); atomicAdd(&s[0], 1); __syncthreads();", "0", True),
            ("__syncthreads(); s[0] = 1; __syncthreads();", "0", True),
            ("__syncthreads(); s[0] = t; __syncthreads();", "0", False),
        ],
    )  # fmt: skip
    def test_shared_races(self, sync: str, index: str, good: bool) -> None:
        text = self.SHARED.format(sync, index)
        y = np.ones(256, "i4")
        if good:
            run(text, y, blocks=2, threads=128)
        else:
            said = fails("race", text, y, blocks=2, threads=128)
            assert "PTX line" in said
            run(text, y, blocks=2, threads=128, races=False)

    @pytest.mark.parametrize(
        ("body", "good"),
        [
            ("y[i] = y[i] + 1;", True),
            ("y[i] = 1; __syncthreads(); x[i] = y[i ^ 1];", True),
            ("y[i] = 1; x[i] = y[i ^ 1];", False),
            ("y[i] = 1; __syncthreads(); x[i] = y[i ^ 64];", False),
            ("x[i] = y[i ^ 64]; __syncthreads(); y[i] = 1;", False),
            ("x[i] = y[0]; if (i == 127) y[0] = 3;", False),
            ("x[i] = y[1]; y[i + 2] = x[i];", True),
            ("y[0] = 5;", True),
            ("y[0] = i;", False),
            ("if (threadIdx.x == 0) y[0] = blockIdx.x;", False),
            ("atomicAdd(y, 1.0f); atomicMax((int*)x, 3);", True),
            ("atomicAdd(y, 1.0f); __syncthreads(); if (i == 0) y[0] = 1;", False),
            ("atomicAdd(y, 1.0f); __syncthreads(); x[i] = ((volatile float*)y)[0];", True),
            ("((u16*)y)[i] = i;", True),
            ("((u16*)y)[i] = i; __syncthreads(); x[i] = ((u16*)y)[i ^ 1];", True),
            ("((u16*)y)[i] = i; x[i] = ((u16*)y)[i ^ 1];", False),
            ("((u16*)y)[i] = i; x[i] = y[i / 2];", False),
            ("((unsigned char*)y)[i] = i;", True),
            ("((float4*)y)[i] = make_float4(1, 2, 3, 4); x[i] = y[4 * i + 3];", True),
            ("((float4*)y)[i] = make_float4(1, 2, 3, 4); x[i] = y[4 * i + 4];", False),
        ],
    )
    def test_global_races(self, body: str, good: bool) -> None:
        text = f"KERNEL k(float* x, float* y) {{ int i = ME; {body} }}"
        arguments = np.ones(1024, "f4"), np.ones(1024, "f4")
        for lanes in (64, 1 << 15):
            if good:
                run(text, *arguments, blocks=2, lanes=lanes)
            else:
                fails("race", text, *arguments, blocks=2, lanes=lanes)

    def test_launches_are_in_order(self) -> None:
        device = EmulatedDevice(memory=1 << 20)
        kernel = device.compile(HEAD + "KERNEL k(float* y, int s) { y[ME ^ s] += 1; }", "k")
        y = device.zeros(128, "f4")
        for shift in range(64):
            device.launch(kernel, 2, 64, [y, np.int32(shift)])
        assert (y == 64).all()

    def test_barrier_in_divergent_code(self) -> None:
        text = """KERNEL k(int* y) { if (threadIdx.x & 1) { y[ME] = 1; __syncthreads(); }
            else y[ME] = 2; }"""
        fails("deadlock.*divergent", text, np.ones(64, "i4"))
        text = "KERNEL k(int* y) { if (threadIdx.x > 50) return; __syncthreads(); y[ME] = 1; }"
        fails("deadlock.*13 threads have ended", text, np.ones(64, "i4"))
        run(text, np.ones(64, "i4"), early_exit=True)

    def test_warp_instructions_in_divergent_code(self) -> None:
        text = """KERNEL k(int* y) { int v = 1;
            if (threadIdx.x % 32 < 5) v = __shfl_xor_sync(%s, v, 1); y[ME] = v; }"""
        fails("deadlock", text.replace("%s", "~0u"), np.ones(64, "i4"))
        fails("does not take part", text.replace("%s", "31u"), np.ones(64, "i4"))
        fails("member mask", text.replace("%s", "15u"), np.ones(64, "i4"))

    def test_traps_divisions_and_endless_loops(self) -> None:
        y = np.ones(64, "i4")
        fails("trap", "KERNEL k(int* y) { if (y[ME] > 0) __trap(); }", y)
        text = "KERNEL k(int* y) { y[ME] /= (int)threadIdx.x - 3; }"
        assert "thread 3, PTX line" in fails("div.s32.*division by zero", text, y)
        text = "KERNEL k(volatile int* y) { while (y[0]) ; }"
        fails("endless", text, y, steps=1000)

    def test_unsupported_instructions_are_named(self) -> None:
        text = 'KERNEL k(u32* y) { asm volatile("vadd.u32.u32.u32 %0, %0, %0;" : "+r"(y[0])); }'
        with pytest.raises(NotImplementedError, match=r"PTX line \d+: vadd"):
            run(text, np.ones(1, "u4"))


class TestDevice:
    """`EmulatedDevice` apart from what kernels do."""

    TEXT = HEAD + "KERNEL k(int* y, float a, long long b) { y[ME] = a + b; }"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["y"], "3 arguments, got 1"),
            (["y", np.float32(1), 3], "argument 2.*int"),
            (["y", np.float32(1), np.int32(3)], "4 bytes for 8"),
            (["y", np.int32(1), np.int64(3)], "int32"),
            (["y", np.float64(1), np.int64(3)], "8 bytes for 4"),
            ([np.zeros(64, "i4"), np.float32(1), np.int64(3)], "not in the device's memory"),
        ],
    )
    def test_wrong_arguments(self, arguments: list[Any], message: str) -> None:
        device = EmulatedDevice(memory=1 << 20)
        y = device.zeros(64, "i4")
        kernel = device.compile(self.TEXT, "k")
        with pytest.raises(TypeError, match=message):
            device.launch(kernel, 1, 64, [y if isinstance(a, str) else a for a in arguments])

    def test_wrong_grids(self) -> None:
        device = EmulatedDevice(memory=1 << 20, shared_bytes=1024)
        kernel = device.compile(self.TEXT, "k")
        arguments = [device.zeros(64, "i4"), np.float32(1), np.int64(3)]
        for blocks, threads, shared in ((0, 32, 0), (1, 1025, 0), (1, 0, 0), (1, 32, 1025)):
            with pytest.raises(ValueError, match="k: "):
                device.launch(kernel, blocks, threads, arguments, shared=shared)

    def test_slices_and_views(self) -> None:
        device = EmulatedDevice(memory=1 << 20)
        kernel = device.compile(self.TEXT, "k")
        whole = device.zeros((4, 64), "i8")
        part = whole[2].view(np.int32)[64:]
        device.launch(kernel, 1, 64, [part, np.float32(2), np.int64(5)])
        assert (device.download(part) == 7).all()
        assert np.count_nonzero(whole[[0, 1, 3]]) == 0
        with pytest.raises(TypeError, match="not contiguous"):
            device.launch(kernel, 1, 4, [whole[:, 0], np.float32(2), np.int64(5)])

    def test_memory_is_limited_and_given_back(self) -> None:
        device = EmulatedDevice(memory=1 << 20)
        for _ in range(100):
            first = device.empty(1 << 19, "u1")
            assert device.free_bytes() == 1 << 19
            with pytest.raises(DeviceMemoryError) as caught:
                device.empty((1 << 19) + 1, "u1")
            assert (caught.value.wanted, caught.value.free) == ((1 << 19) + 1, 1 << 19)
            view = first[5:].view("i1")
            del first
            assert device.free_bytes() == 1 << 19
            del view
            assert device.free_bytes() == device.total_bytes()

    def test_freed_memory_is_used_again(self) -> None:
        device = EmulatedDevice(memory=1 << 26)
        weights = device.zeros(1000, "f4")
        for _ in range(100):
            array = device.zeros(1 << 20, "f4")
            del array
        assert device.arena._next < 40 << 20
        assert not weights.any()

    def test_capture_and_replay(self) -> None:
        device = EmulatedDevice(memory=1 << 20)
        kernel = device.compile(HEAD + "KERNEL k(int* y) { y[ME] += 1; }", "k")
        y, z = device.zeros(64, "i4"), device.zeros(64, "i4")

        def work(stream: Any) -> None:
            device.launch(kernel, 1, 64, [y], stream=stream)
            device.copy(y, z, stream=stream)
            device.fill_zero(y[:32], stream=stream)

        graph = device.capture(work)
        assert not y.any()
        device.replay(graph)
        device.replay(graph)
        assert y.tolist() == [0] * 32 + [2] * 32
        assert z.tolist() == [1] * 32 + [2] * 32

    def test_statistics(self) -> None:
        device = EmulatedDevice(memory=1 << 20, count=True)
        text = """KERNEL k(const float* x, float* y) { __shared__ float s[32 * 32];
            s[threadIdx.x * 32] = x[threadIdx.x * 8]; __syncthreads();
            y[threadIdx.x] = s[threadIdx.x * 32]; }"""
        kernel = device.compile(HEAD + text, "k")
        device.launch(kernel, 1, 32, [device.zeros(256, "f4"), device.zeros(32, "f4")])
        own = device.statistics["k"]
        assert (own.launches, own.lane_instructions) == (1, 32 * own.instructions)
        traffic = own.traffic
        assert traffic is not None
        assert (traffic.load_bytes, traffic.load_sectors) == (128, 32)
        assert (traffic.store_bytes, traffic.store_sectors) == (128, 4)
        assert (traffic.shared_accesses, traffic.wavefronts) == (2, 64)

    def test_compile_errors(self) -> None:
        device = EmulatedDevice(memory=1 << 20)
        with pytest.raises(SparseDNNError, match="undefined"):
            device.compile('extern "C" __global__ void k() { x = 1; }', "k")
        with pytest.raises(SparseDNNError, match="no kernel 'other'"):
            device.compile(self.TEXT, "other")

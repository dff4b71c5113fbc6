"""Counting what a compiled program does."""

import jax
import jax.numpy as jnp
import pytest

from experiments import hlo_cost


def test_a_loop_counts_as_often_as_it_runs(optimized):
    """XLA's own figure is that of one round."""

    def run(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    x = jax.ShapeDtypeStruct((8, 32), jnp.float32)
    weights = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32)
    cost = hlo_cost.count(jax.jit(run).lower(x, weights).compile().as_text())
    assert cost.flops == 5 * 2 * 8 * 32 * 32 and cost.unknown == 0
    assert 5 * 4 * 32 * 32 <= cost.bytes <= 30 * 4 * 32 * 32
    assert cost.wire == {}


PROGRAM = """
HloModule m, num_partitions=4

%cond (p: (s32[], bf16[8,16])) -> pred[] {
  %p = (s32[], bf16[8,16]) parameter(0)
  %n = s32[]{:T(128)} constant(7)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%open (p: (s32[], bf16[8,16])) -> pred[] {
  %p = (s32[], bf16[8,16]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %i), direction=LT
}

%part (a: bf16[2,16], b: bf16[16,16], c: bf16[8,16]) -> bf16[8,16] {
  %a = bf16[2,16] parameter(0)
  %b = bf16[16,16] parameter(1)
  %c = bf16[8,16] parameter(2)
  %gather.1 = bf16[8,16] all-gather(%a), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %conv = bf16[8,16] convolution(%c, %b), dim_labels=bf_io->bf
}

%body (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[], bf16[8,16]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[8,16]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %a = bf16[2,16] slice(%x), slice={[0:2], [0:16]}
  %w = bf16[16,16] constant({...})
  %one = bf16[8,16] fusion(%a, %w, %x), kind=kOutput, calls=%part
  %two = bf16[8,16] fusion(%a, %w, %one), kind=kOutput, calls=%part
  ROOT %t = (s32[], bf16[8,16]) tuple(%i, %two)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

ENTRY %main (x: bf16[8,16]) -> f32[64] {
  %x = bf16[8,16] parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,16]) tuple(%zero, %x)
  %loop = (s32[], bf16[8,16]) while(%start), condition=%cond, body=%body
  %more = (s32[], bf16[8,16]) while(%loop), condition=%CONDITION, body=%body
  %v = f32[64] constant({...})
  %r = f32[64] all-reduce(%v), channel_id=5, replica_groups={{0,1},{2,3}}, to_apply=%sum
  ROOT %s = f32[64] all-reduce(%r), channel_id=6, replica_groups=mesh['a'=2,'b'=2] {'a','b'}
}
"""


def test_collectives_by_kind_and_group():
    """One asynchronous gather in two fusions is one; its rounds count, and so do rings."""
    cost = hlo_cost.count(PROGRAM.replace("CONDITION", "cond"))
    assert cost.unknown == 0
    assert cost.calls["all-gather", 4, "3"] == 14
    assert cost.wire["all-gather", 4, "3"] == 14 * (8 * 16 * 2) * 3 / 4
    assert cost.wire["all-reduce", 2, "5"] == 2 * 256 / 2
    assert cost.wire["all-reduce", 4, "6"] == 2 * 256 * 3 / 4
    assert cost.flops == 14 * 2 * (2 * 8 * 16 * 16)


def test_a_loop_of_unknown_length_runs_as_often_as_told():
    text = PROGRAM.replace("CONDITION", "open")
    assert hlo_cost.count(text, rounds=3).calls["all-gather", 4, "3"] == 7 + 3
    assert hlo_cost.count(text).unknown == 1
    unsigned = text.replace("%n = s32[]", "%n = u32[]")  # the counter of a windowed product
    assert hlo_cost.count(unsigned, rounds=3) == hlo_cost.count(text, rounds=3)


def test_a_loop_that_was_unrolled_runs_fewer_rounds():
    text = PROGRAM.replace("CONDITION", "cond").replace(
        "ROOT %t = (s32[], bf16[8,16]) tuple(%i, %two)",
        "%by = s32[] constant(2)\n  %next = s32[] add(%i, %by)\n"
        "  ROOT %t = (s32[], bf16[8,16]) tuple(%next, %two)",
    )
    assert hlo_cost.count(text).calls["all-gather", 4, "3"] == 4 + 4


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # A batched product [2,8,16] x [2,16,4], the batch as a window with holes.
        (
            "convolution(%a, %b), window={size=2 stride=1 pad=0_0 lhs_dilate=2}, "
            "dim_labels=0bf_0io->0bf",
            2 * 2 * 8 * 16 * 4,
        ),
        # A window of two over two rows without a border: one output row.
        ("convolution(%a, %b), window={size=2}, dim_labels=0bf_0io->0bf", 2 * 2 * 8 * 16 * 4),
    ],
)
def test_products_as_convolutions(line, flops):
    out = "f32[2,8,4]" if "dilate" in line else "f32[1,8,4]"
    text = f"""
ENTRY %main (a: f32[2,8,16], b: f32[2,16,4]) -> {out} {{
  %a = f32[2,8,16] parameter(0)
  %b = f32[2,16,4] parameter(1)
  ROOT %c = {out} {line}
}}
"""
    assert hlo_cost.count(text).flops == flops


def test_memory_on_the_chip_does_not_count():
    text = """
ENTRY %main (a: f32[256]) -> f32[256] {
  %a = f32[256]{0:T(256)} parameter(0)
  %b = f32[256]{0:T(256)S(1)} negate(%a)
  ROOT %c = f32[256]{0:T(256)} negate(%b)
}
"""
    assert hlo_cost.count(text).bytes == 2 * 1024

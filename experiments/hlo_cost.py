"""What a compiled program does on one device, read from the text of its HLO.

XLA's own analysis counts the body of a loop once; here it counts as often as it runs. Only
what dominates is counted: the products, what the instructions that run read from and write to
the device's memory, and the collectives.
"""

import math
import operator
import re
from typing import NamedTuple

_WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16, "token": 0}
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
    "partition-id", "replica-id", "optimization-barrier", "while", "conditional", "call",
}  # fmt: skip
_COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")


Collective = tuple[str, int, str]


class Cost(NamedTuple):
    """Totals on one device.

    Attributes:
      flops: of products, a multiply and an add each.
      bytes: read from and written to the device's memory.
      wire: bytes that a device sends, by kind of collective, size of its groups and channel.
      calls: how often, likewise.
      unknown: loops whose number of rounds the program does not say.
    """

    flops: float
    bytes: float
    wire: dict[Collective, float]
    calls: dict[Collective, float]
    unknown: int


class _Instruction(NamedTuple):
    name: str
    kind: str  # type of the result
    op: str
    operands: tuple[str, ...]
    arguments: str  # text of the operands
    rest: str  # attributes
    root: bool


Computations = dict[str, list[_Instruction]]


def count(text: str, *, rounds: int = 1) -> Cost:
    """The cost of a program.

    Args:
      text: `compiled.as_text()`.
      rounds: how often a loop runs whose number of rounds is decided while it runs.
    """
    computations, entry = _parse(text)
    memo: dict[str, Cost] = {}
    return _cost(entry, computations, rounds, memo)


def _parse(text: str) -> tuple[Computations, str]:
    computations: Computations = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            current.append(_instruction(line.strip()))
    return computations, entry


def _instruction(line: str) -> _Instruction:
    root = line.startswith("ROOT ")
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].strip()
    op, start = rest[: rest.index("(")], rest.index("(")
    end = _closing(rest, start)
    operands = re.findall(r"%([\w.\-]+)", rest[start:end])
    arguments = rest[start + 1 : end]
    return _Instruction(name.lstrip("%"), kind, op, tuple(operands), arguments, rest[end:], root)


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    return len(text)


def _size(kind: str, *, memory_only: bool = True) -> float:
    """Bytes of a type; without what lies on the chip itself, if only memory counts."""
    total = 0.0
    for name, dims, layout in _SHAPE.findall(kind):
        if memory_only and re.search(r"S\([1-9]", layout):
            continue
        width = _WIDTHS.get(name) or (int(re.sub(r"\D.*", "", name[1:]) or 0) / 8)
        total += width * math.prod(map(int, filter(None, dims.split(","))))
    return total


def _dims(kind: str) -> list[int]:
    found = _SHAPE.search(kind)
    return [int(n) for n in found[2].split(",") if n] if found else []


def _cost(name: str, computations: Computations, rounds: int, memo: dict[str, Cost]) -> Cost:
    if name in memo:
        return memo[name]
    types = {i.name: i.kind for i in computations.get(name, ())}
    flops = traffic = 0.0
    wire: dict[Collective, float] = {}
    calls: dict[Collective, float] = {}
    unknown = 0
    for each in computations.get(name, ()):
        flops += _flops(each, types)
        traffic += _traffic(each, types, computations)
        _add_collective(each, types, name, wire, calls)
        unknown += each.op == "while" and _trips(each, computations) is None
        for inner, times, inside in _called(each, computations, rounds):
            cost = _cost(inner, computations, rounds, memo)
            flops += times * cost.flops
            traffic += 0 if inside else times * cost.bytes
            unknown += cost.unknown
            for total, part in ((wire, cost.wire), (calls, cost.calls)):
                for key, value in part.items():
                    # Several fusions may hold parts of one asynchronous collective.
                    both = max if inside else operator.add
                    total[key] = both(total.get(key, 0.0), times * value)
    memo[name] = Cost(flops, traffic, wire, calls, unknown)
    return memo[name]


def _trips(each: _Instruction, computations: Computations) -> int | None:
    """How often a loop runs: as it says, or the one bound that its counter from 0 has."""
    found = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', each.rest)
    if found:
        return int(found[1])
    condition = computations[re.search(r"condition=%?([\w.\-]+)", each.rest)[1]]
    bounds = [
        int(i.arguments)
        for part in [condition, *(computations.get(name, []) for name in _fusions(condition))]
        for i in part
        if i.op == "constant" and i.kind.startswith(("s32[]", "u32[]"))
    ]
    if len(bounds) != 1:
        return None
    return -(-bounds[0] // _stride(each, condition, computations))


def _stride(each: _Instruction, condition: list[_Instruction], computations: Computations) -> int:
    """What the body adds to the counter of the condition: loops may be unrolled by the compiler."""
    read = [i for i in condition if i.op == "get-tuple-element"]
    body = computations[re.search(r"body=%?([\w.\-]+)", each.rest)[1]]
    root = next(i for i in body if i.root)
    if len(read) != 1 or root.op != "tuple":
        return 1
    counter = root.operands[int(re.search(r"index=(\d+)", read[0].rest)[1])]
    inside = {i.name: i for i in body}
    added = inside[counter]
    if added.op != "add":
        return 1
    steps = [inside[name] for name in added.operands if inside[name].op == "constant"]
    return max(1, int(steps[0].arguments)) if steps else 1


def _fusions(instructions: list[_Instruction]) -> list[str]:
    found = (re.search(r"calls=%?([\w.\-]+)", i.rest) for i in instructions)
    return [match[1] for match in found if match]


def _called(
    each: _Instruction, computations: Computations, rounds: int
) -> list[tuple[str, int, bool]]:
    """`(computation, times, inside)`; what is inside a fusion moves no memory of its own."""
    if each.op == "while":
        body = re.search(r"body=%?([\w.\-]+)", each.rest)[1]
        trips = _trips(each, computations)
        return [(body, rounds if trips is None else trips, False)]
    if each.op == "conditional":
        names = re.search(r"branch_computations=\{([^}]*)\}", each.rest)
        listed = names[1] if names else " ".join(re.findall(r"(?:true|false)_\w+=(\S+)", each.rest))
        return [(n, 1, False) for n in re.findall(r"[\w.\-]+", listed)[-1:]]
    if each.op in ("fusion", "call", "async-start") or each.op.endswith("-fusion"):
        found = re.search(r"(?:calls|to_apply|called_computations=\{?)=?%?([\w.\-]+)", each.rest)
        return [(found[1], 1, each.op == "fusion")] if found else []
    return []


def _flops(each: _Instruction, types: dict[str, str]) -> float:
    if each.op == "dot":
        left = _dims(types[each.operands[0]])
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.rest)[1]
        return 2.0 * math.prod(_dims(each.kind)) * math.prod(
            left[int(a)] for a in axes.split(",") if a
        )
    return _convolution(each, types) if each.op == "convolution" else 0.0


def _convolution(each: _Instruction, types: dict[str, str]) -> float:
    """Products are convolutions on TPUs, batch axes being windows with holes."""
    left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.rest).groups()
    shapes = [_dims(types[name]) for name in each.operands[:2]] + [_dims(each.kind)]
    inputs, kernel, output = (
        dict(zip(labels, shape)) for labels, shape in zip((left, right, out), shapes)
    )
    total = 2.0 * output["b"] * output["f"] * kernel["i"]
    window = re.search(r"window=\{([^}]*)\}", each.rest)
    said = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
    for axis in sorted(label for label in output if label.isdigit()):
        part = {
            key: said[key].split("x")[int(axis)] if key in said else default
            for key, default in _WINDOW.items()
        }
        total *= _valid(inputs[axis], kernel[axis], output[axis], part)
    return total


_WINDOW = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1", "rhs_reversal": "0"}


def _valid(inputs: int, kernel: int, output: int, part: dict[str, str]) -> int:
    """Pairs of an output and a window place that meet an input."""
    stride, holes, gaps = (int(part[k]) for k in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(part["pad"].split("_")[0])
    total, last = 0, (inputs - 1) * holes
    for place in range(kernel):
        first = place * gaps - low
        starts = (first + o * stride for o in range(output)) if holes > 1 else None
        if starts is None:
            below = max(0, -(first // stride)) if first < 0 else 0
            above = (last - first) // stride if last >= first else -1
            total += max(0, min(output - 1, above) - below + 1)
        else:
            total += sum(0 <= at <= last and at % holes == 0 for at in starts)
    return total


def _traffic(each: _Instruction, types: dict[str, str], computations: Computations) -> float:
    op = each.op
    if op in _FREE or op.endswith("-done") or op.startswith("async"):
        return 0.0
    if op in ("dynamic-slice", "gather", "slice"):
        return 2 * _size(each.kind)
    if op in ("dynamic-update-slice", "scatter"):
        return 2 * _size(types.get(each.operands[-1 if op == "scatter" else 1], ""))
    if op.endswith("-start"):
        return _size(each.kind)
    if op == "fusion":
        if _callee(each) in computations:
            return _fusion_traffic(each, types, computations)
    return _size(each.kind) + sum(_size(types.get(name, "")) for name in each.operands)


def _fusion_traffic(each: _Instruction, types: dict[str, str], computations: Computations) -> float:
    """A fusion reads only the slices that it uses, and may write a slice in place."""
    inner = computations[_callee(each)]
    inside = {i.name: i for i in inner}
    root = next(i for i in inner if i.root)
    total, target = _size(each.kind), None
    if root.op == "dynamic-update-slice":
        target = root.operands[0]
        total = 2 * _size(inside[root.operands[1]].kind)
    elif root.op == "tuple":  # what a collective under way holds is handed on, not moved
        total = sum(_size(inside[n].kind) for n in root.operands if not _handed_on(inside[n]))
    for instruction in inner:
        if instruction.op == "parameter" and instruction.name != target:
            whole = _size(types.get(each.operands[int(instruction.arguments)], ""))
            total += min(whole, _read(instruction, inner, computations))
    return total


def _read(value: _Instruction, inner: list[_Instruction], computations: Computations) -> float:
    """Bytes of a value that the computation looks at."""
    total = 0.0
    for user in (i for i in inner if value.name in i.operands and not _handed_on(i)):
        if user.op in ("dynamic-slice", "gather", "slice") and user.operands[0] == value.name:
            total += _size(user.kind, memory_only=False)
        elif user.op == "bitcast":
            total += math.inf if user.root else _read(user, inner, computations)
        elif user.op == "fusion" and _callee(user) in computations:
            called = computations[_callee(user)]
            places = [n for n, name in enumerate(user.operands) if name == value.name]
            parts = [i for i in called if i.op == "parameter" and int(i.arguments) in places]
            total += sum(_read(part, called, computations) for part in parts)
        elif not (user.root and user.op == "tuple"):
            return math.inf
    return total


def _callee(each: _Instruction) -> str:
    found = re.search(r"calls=%?([\w.\-]+)", each.rest)
    return found[1] if found else ""


def _handed_on(instruction: _Instruction) -> bool:
    return instruction.op in ("parameter", "custom-call", *_COLLECTIVES)


def _add_collective(each, types, inside: str, wire, calls) -> None:
    """Adds what a collective sends: rings, so a share of (n - 1) / n."""
    base = each.op.removesuffix("-start")
    if base not in _COLLECTIVES:
        return
    groups = 2 if base == "collective-permute" else _group_size(each.rest)
    size = max(
        [_size(f"{n}[{d}]", memory_only=False) for n, d, _ in _SHAPE.findall(each.kind)]
        if each.op.endswith("-start") else [_size(each.kind, memory_only=False)]
    )  # fmt: skip
    share = (groups - 1) / groups if groups > 1 else 1.0
    if "all-reduce-scatter" in inside:
        base, sent = "reduce-scatter", share * size
    elif base == "all-reduce":
        sent = 2 * share * size
    elif base == "reduce-scatter":
        sent = (groups - 1) * size
    else:
        sent = size if base == "collective-permute" else share * size
    channel = re.search(r"channel_id=(\d+)", each.rest)
    key = (base, groups, channel[1] if channel else each.name)
    wire[key], calls[key] = sent, 1.0


def _group_size(rest: str) -> int:
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    if iota:
        return int(iota[1])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        used = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[name]) for name, part in used)
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return len(listed[1].split(",")) if listed else 1

"""The committed offsets of each CPython version, against the real headers and debug information where they are here.

Offsets of public and internal structures are compiled from the headers of every
interpreter that is installed with them (Debian: python3-dev). The task of
asyncio is in no header: its offsets come from the debug information of
_asyncio*.so, read with gdb. What is absent is skipped, and counted.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import helpers
import pythons

pytestmark = pytest.mark.beside

LAYOUTS = {"3." + path.stem.rsplit("_", 1)[1]: path for path in (helpers.ROOT / "tracer").glob("python_3_*.c")}

# Field of the layout -> expressions, the first one that this version's headers know.
HEADERS = {
    "runtime_interpreters": ["_PyRuntimeState.interpreters.head"],
    "runtime_gil": ["_PyRuntimeState.ceval.gil"],
    "runtime_gc_collecting": ["_PyRuntimeState.gc.collecting"],
    "interp_next": ["PyInterpreterState.next"],
    "interp_threads": ["PyInterpreterState.threads.head", "PyInterpreterState.tstate_head"],
    "interp_modules": ["PyInterpreterState.imports.modules", "PyInterpreterState.modules"],
    "interp_gil": ["PyInterpreterState.ceval.gil"],
    "interp_gc_collecting": ["PyInterpreterState.gc.collecting"],
    "gil_last_holder": ["struct _gil_runtime_state.last_holder"],
    "gil_locked": ["struct _gil_runtime_state.locked"],
    "gil_cond": ["struct _gil_runtime_state.cond"],
    "gil_end": ["sizeof struct _gil_runtime_state"],
    "thread_next": ["PyThreadState.next"],
    "thread_interp": ["PyThreadState.interp"],
    "thread_pthread": ["PyThreadState.thread_id"],
    "thread_tid": ["PyThreadState.native_thread_id"],
    "thread_frame": ["PyThreadState.current_frame", "PyThreadState.frame", "PyThreadState.cframe"],
    "cframe_current": ["_PyCFrame.current_frame"],
    "frame_code": ["_PyInterpreterFrame.f_executable", "_PyInterpreterFrame.f_code", "PyFrameObject.f_code"],
    "frame_back": ["_PyInterpreterFrame.previous", "PyFrameObject.f_back"],
    "frame_instruction": ["_PyInterpreterFrame.instr_ptr", "_PyInterpreterFrame.prev_instr", "PyFrameObject.f_lasti"],
    "frame_owner": ["_PyInterpreterFrame.owner"],
    "frame_entry": ["_PyInterpreterFrame.is_entry"],
    "frame_generator": ["PyFrameObject.f_gen"],
    "frame_stack_top": ["_PyInterpreterFrame.stacktop", "PyFrameObject.f_stackdepth", "PyFrameObject.f_stacktop"],
    "frame_stack": ["PyFrameObject.f_valuestack"],
    "frame_locals": ["_PyInterpreterFrame.localsplus", "PyFrameObject.f_localsplus"],
    "frame_size": ["sizeof _PyInterpreterFrame", "sizeof PyFrameObject"],
    "code_name": ["PyCodeObject.co_name"],
    "code_qualname": ["PyCodeObject.co_qualname"],
    "code_filename": ["PyCodeObject.co_filename"],
    "code_first_line": ["PyCodeObject.co_firstlineno"],
    "code_flags": ["PyCodeObject.co_flags"],
    "code_lines": ["PyCodeObject.co_linetable", "PyCodeObject.co_lnotab"],
    "code_bytes": ["PyCodeObject.co_code_adaptive"],
    "code_size": ["sizeof PyCodeObject"],
    "string_length": ["PyASCIIObject.length"],
    "string_state": ["PyASCIIObject.state"],
    "string_ascii": ["sizeof PyASCIIObject"],
    "string_compact": ["sizeof PyCompactUnicodeObject"],
    "bytes_data": ["PyBytesObject.ob_sval"],
    "generator_frame": ["PyCoroObject.cr_iframe", "PyCoroObject.cr_frame"],
    "generator_state": ["PyCoroObject.cr_frame_state"],
    "generator_running": ["PyCoroObject.cr_running"],
    "frame_state": ["PyFrameObject.f_state"],
    "generator_name": ["PyCoroObject.cr_qualname"],
    "dict_keys": ["PyDictObject.ma_keys"],
    "dict_values": ["PyDictObject.ma_values"],
    "code_locals": ["PyCodeObject.co_localsplusnames", "PyCodeObject.co_varnames"],
    "type_keys": ["PyHeapTypeObject.ht_cached_keys"],
    "keys_size": ["struct _dictkeysobject.dk_log2_size", "struct _dictkeysobject.dk_size"],
    "keys_index_bytes": ["struct _dictkeysobject.dk_log2_index_bytes"],
    "keys_kind": ["struct _dictkeysobject.dk_kind"],
    "keys_entries": ["struct _dictkeysobject.dk_nentries"],
    "keys_indices": ["struct _dictkeysobject.dk_indices"],
}

# The same in every version (python_layout.h).
COMMON = {
    "OBJECT_TYPE": "PyObject.ob_type",
    "VAR_SIZE": "PyVarObject.ob_size",
    "TYPE_NAME": "PyTypeObject.tp_name",
    "TYPE_MEMBERS": "PyTypeObject.tp_members",
    "TYPE_FLAGS": "PyTypeObject.tp_flags",
    "TYPE_BASE": "PyTypeObject.tp_base",
    "TYPE_DICT_AT": "PyTypeObject.tp_dictoffset",
    "LIST_ITEMS": "PyListObject.ob_item",
    "TUPLE_ITEMS": "PyTupleObject.ob_item",
    "CELL_TO": "PyCellObject.ob_ref",
    "SET_MASK": "PySetObject.mask",
    "SET_TABLE": "PySetObject.table",
    "WEAKREF_TO": "PyWeakReference.wr_object",
}

# What the agent reads of a coroutine that it sees resumed. From 3.12 on only the frame inside it has that, and
# the coroutine's own struct declares only where it begins.
CORO_CODE = ["PyCoroObject.cr_code", "sum PyCoroObject.cr_iframe _PyInterpreterFrame.f_executable",
             "sum PyCoroObject.cr_iframe _PyInterpreterFrame.f_code"]

# What the agent reads of what a handle runs, and the pointers that it hooks: name in its own files -> expression.
AGENT = {
    "UB_OBJECT_TYPE": "PyObject.ob_type",
    "UB_PYTHON_TYPE": "PyObject.ob_type",
    "UB_TYPE_NAME": "PyTypeObject.tp_name",
    "UB_TYPE_METHODS": "PyTypeObject.tp_methods",
    "UB_PYTHON_FINALIZE": "PyTypeObject.tp_finalize",
    "UB_WRAPPED": "PyMethodObject.im_func",
    "UB_C_FUNCTION_DEF": "PyCFunctionObject.m_ml",
}
FUNCTION_CODE = "PyFunctionObject.func_code"
CREATED = "value FRAME_CREATED"

DEBUG = {
    "task_coroutine": "TaskObj.task_coro",
    "task_name": "TaskObj.task_name",
    "task_waiter": "TaskObj.task_fut_waiter",
    "future_source": "TaskObj.task_source_tb|FutureObj.fut_source_tb",
    "future_state": "FutureObj.fut_state",
    "FUTURE_LOOP": "FutureObj.fut_loop",
}

DEBUG_QUEUE = {
    "queue_list": "simplequeueobject.lst",
    "queue_first": "simplequeueobject.lst_pos",
    "queue_count": "simplequeueobject.buf.num_items",
}


def committed(version):
    """{field: offset or None} of one version's file."""
    text = LAYOUTS[version].read_text()
    return {name: None if value == "UB_PYTHON_NONE" else int(value)
            for name, value in re.findall(r"\.(\w+) = (\d+|UB_PYTHON_NONE),", text)}


def begun(version):
    """The agent's [state, created, frame, last] of a version."""
    text = (helpers.ROOT / "agent/python/layout.h").read_text()
    row = re.search(rf"UB_PYTHON_BEGUN\({0x0300 | max(9, int(version[2:])):#06x},\s*(-?\d+),\s*(-?\d+),\s*(\d+),\s*(\d+)\)", text)
    return [int(value) for value in row.groups()]


def expression(what):
    if what.startswith("sizeof "):
        return f"sizeof({what[7:]})"
    if what.startswith("value "):  # small and maybe negative
        return f"100 + ({what[6:]})"
    if what.startswith("sum "):
        return " + ".join(expression(part) for part in what[4:].split())
    kind, field = what.rsplit(".", 1) if what.count(".") == 1 else what.split(".", 1)
    return f"offsetof({kind}, {field})"


SOURCE = """
#define Py_BUILD_CORE 1
#include <Python.h>
#include <frameobject.h>
#include <stddef.h>
#if __has_include(<internal/pycore_runtime.h>)
#include <internal/pycore_runtime.h>
#endif
#include <internal/pycore_pystate.h>
#if __has_include(<internal/pycore_interp.h>)
#include <internal/pycore_interp.h>
#endif
#if __has_include(<internal/pycore_gil.h>)
#include <internal/pycore_gil.h>
#endif
#if __has_include(<internal/pycore_frame.h>)
#include <internal/pycore_frame.h>
#endif
#if __has_include(<internal/pycore_dict.h>)
#include <internal/pycore_dict.h>
#endif
"""


def real_values(include, folder, wanted):
    """{what: its value} by these headers, for all that they know."""
    wanted = list(dict.fromkeys(wanted))
    source = folder / "offsets.c"
    first = SOURCE.count("\n") + 1
    cc = ["cc", "-std=gnu17", "-w", "-fmax-errors=0", f"-I{include}", f"-I{include}/internal", "-c", str(source),
          "-o", str(folder / "offsets.o")]
    for _ in range(3):
        source.write_text(SOURCE + "".join(f"const char value_{i}[{expression(w)} + 1];\n" for i, w in enumerate(wanted)))
        done = subprocess.run(cc, capture_output=True, text=True)
        if done.returncode == 0:
            break
        bad = {int(n) - first for n in re.findall(r"offsets\.c:(\d+):\d+: error", done.stderr)}
        assert bad and min(bad) >= 0, done.stderr[:2000]
        wanted = [w for i, w in enumerate(wanted) if i not in bad]
    else:
        raise AssertionError(done.stderr[:2000])
    out = subprocess.run(["nm", "-S", str(folder / "offsets.o")], capture_output=True, text=True, check=True).stdout
    return {wanted[int(n)]: int(size, 16) - 1 for size, n in re.findall(r"^\S+ (\S+) \w value_(\d+)$", out, re.M)}


@pytest.mark.parametrize("version", sorted(LAYOUTS, key=lambda v: int(v[2:])))
def test_headers(version, tmp_path):
    checked = 0
    for python in pythons.installed(version):
        include = pythons.ask(python, "import sysconfig; print(sysconfig.get_path('include'))")
        if not (Path(include) / "internal").is_dir():
            continue
        values = real_values(include, tmp_path, [w for c in [*HEADERS.values(), CORO_CODE] for w in c] +
                             [*COMMON.values(), *AGENT.values(), FUNCTION_CODE, CREATED])
        facts = committed(version)
        wrong = {}
        for field, candidates in HEADERS.items():
            real = next((values[c] for c in candidates if c in values), None)
            if field.startswith("keys_") and real is None:
                continue  # 3.8 to 3.10 keep the struct in a .c file
            if facts[field] != real:
                wrong[field] = (facts[field], real)
        header = (helpers.ROOT / "tracer/python_layout.h").read_text()
        for name, what in COMMON.items():
            value = int(re.search(rf"UB_PYTHON_{name}\s+(\d+)u", header)[1])
            if value != values.get(what):
                wrong[name] = (value, values.get(what))
        agents = (helpers.ROOT / "agent/loops/asyncio_layout.h").read_text()
        code = int(re.search(rf"UB_CORO_CODE_{version.replace('.', '_')}\s+(\d+)u", agents)[1])
        if code != next((values[c] for c in CORO_CODE if c in values), None):
            wrong["UB_CORO_CODE"] = (code, [values.get(c) for c in CORO_CODE])
        python_layout = (helpers.ROOT / "agent/python/layout.h").read_text()
        for name, what in AGENT.items():
            value = int(re.search(rf"{name}\s+(\d+)u", agents + python_layout)[1])
            if value != values[what]:
                wrong[name] = (value, values[what])
        name = "UB_FUNCTION_CODE_3_9" if int(version[2:]) < 10 else "UB_FUNCTION_CODE_3_10"
        if int(re.search(rf"{name}\s+(\d+)u", agents)[1]) != values[FUNCTION_CODE]:
            wrong[name] = values[FUNCTION_CODE]
        row = begun(version)
        if row[0] and row[1] != values[CREATED] - 100:
            wrong["FRAME_CREATED"] = (row, values[CREATED])
        assert not wrong, f"{python}: field: (committed, real) {wrong}"
        checked += 1
    if not checked:
        pytest.skip(f"no CPython {version} with its internal headers is installed")


@pytest.mark.parametrize("version", sorted(LAYOUTS, key=lambda v: int(v[2:])))
def test_debug_information(version):
    """asyncio's task, and the queue of executors: no header has them."""
    if not shutil.which("gdb"):
        pytest.skip("gdb is not installed")
    checked = 0
    for python in pythons.installed(version):
        modules = [pythons.ask(python, f"import {m}; print(getattr({m}, '__file__', ''))") for m in ("_asyncio", "_queue")]
        if not all(m and b".debug_info" in Path(m).read_bytes() for m in modules):
            continue
        header = (helpers.ROOT / "tracer/python_layout.h").read_text()
        facts = {"FUTURE_LOOP": int(re.search(r"UB_PYTHON_FUTURE_LOOP\s+(\d+)u", header)[1]), **committed(version)}
        for field, names in [*DEBUG.items(), *DEBUG_QUEUE.items()]:
            module = modules[field in DEBUG_QUEUE]
            real = None
            for name in names.split("|"):
                kind, member = name.split(".", 1)
                out = subprocess.run(["gdb", "-q", "-batch", "-ex", f"print (long)&(({kind} *)0)->{member}", module],
                                     capture_output=True, text=True).stdout
                found = re.search(r"^\$1 = (\d+)", out, re.M)
                if found:
                    real = int(found[1])
                    break
            assert facts[field] == real, f"{python}: {field} is committed as {facts[field]}, really {real}"
        checked += 1
    if not checked:
        pytest.skip(f"no CPython {version} with debug information is installed")


@pytest.mark.parametrize("version", sorted(LAYOUTS, key=lambda v: int(v[2:])))
def test_the_agents_chain_of_frames(version):
    """The agent's own table of how frames are chained says what the tracer's does, which is held against the headers."""
    if version == "3.14":
        pytest.skip("the agent does not read 3.14: no interpreter of it was at hand")
    text = (helpers.ROOT / "agent/python/layout.h").read_text()
    rows = {int(number, 0): [None if value == "UB_PYTHON_NO_CFRAME" else int(value) for value in values]
            for number, *values in re.findall(r"UB_PYTHON_CHAIN\((\w+)" + r",\s*(-?\w+)" * 7 + r"\)", text)}
    minor = int(version[2:])
    facts = committed(version)
    *chain, instruction, owner, entry = rows[0 if minor < 11 else 0x0300 | minor]
    assert chain == [facts[f] for f in ("thread_frame", "cframe_current", "frame_back", "frame_code")]
    if minor >= 11:
        owner_c = int(re.search(r"\.owner_c = (-?\d+)", LAYOUTS[version].read_text())[1])
        assert (instruction, owner, entry) == (facts["frame_instruction"], facts["frame_owner"], owner_c)
    limit = int(re.search(r"UB_CALLS_FRAME\s+(\d+)u", (helpers.ROOT / "common/calls.h").read_text())[1])
    for field in ("frame_code", "frame_instruction", "frame_back", "frame_generator"):
        assert facts[field] is None or facts[field] + 8 <= limit, field
    state, _, frame, last = begun(version)
    assert (state or None) == facts["generator_state"]
    assert state or (frame, last) == (facts["generator_frame"], facts["frame_instruction"])

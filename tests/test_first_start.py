"""What a first start compiles, in which of its two processes, and when."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

import localoss
from localoss.engine import warmup
from localoss.kernels import compiled, layer
from localoss.model import buffers, cpu_layers, forward
from quant.format import kernel_cache

FORM = warmup.KernelForm("f16")


@pytest.fixture
def calls(monkeypatch):
    """The kernels that a run of warm_up calls, by name; what can't be had elsewhere is as it is here."""
    made = set()

    class Noted:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __call__(self, *arguments):
            made.add(self.name)
            return self.kernel(*arguments)

        def __getattr__(self, name):
            return getattr(self.kernel, name)

    listening = {
        name: Noted(name, kernel) for name, kernel in vars(layer).items() if hasattr(kernel, "py_func")
    }
    for module in (forward, cpu_layers):
        monkeypatch.setattr(module, "kernels", SimpleNamespace(**(vars(layer) | listening)))
    return made


def test_the_first_process_calls_all_but_attention(calls):
    warmup._run(FORM, 1)
    whole = set(calls)
    calls.clear()
    warmup._run(FORM, 1, with_attention=False)
    assert calls == whole - {"attend"}


@pytest.fixture
def first_start(monkeypatch, tmp_path):
    """As on a machine on which nothing was compiled, with two cores; what is compiled is the tests' own."""
    warmup._run(FORM, 1)  # whoever runs first compiles: it isn't counted
    folder = kernel_cache.KernelFolder([], "first")
    vars(folder)["path"] = tmp_path
    monkeypatch.setattr(compiled, "FOLDER", folder)
    monkeypatch.setattr(warmup, "usual_threads", lambda: 2)
    return folder


def test_the_second_process_tells_what_it_compiles_and_is_asked_once(first_start, monkeypatch):
    started, real = [], subprocess.Popen

    def popen(command, **options):
        started.append(command)
        return real([sys.executable, "-c", "print('attend'); print('keep_prefix')"], **options)

    monkeypatch.setattr(warmup.subprocess, "Popen", popen)
    names = []
    warmup.warm_up(FORM, 1, names.append)
    assert names == ["attend", "keep_prefix"], "nothing was compiled here"
    assert started[0][3:] == ["f16"] and first_start.has_all(str(FORM))
    warmup.warm_up(FORM, 1, names.append)
    assert len(started) == 1
    warmup.warm_up(warmup.KernelForm("f16", is_exact=True), 1)
    assert len(started) == 2, "another form"


@pytest.mark.parametrize("program", ["", "/no/such/python", "false"])
def test_without_a_second_process_all_is_done_here(program, first_start, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which(program) or program)
    warmup.warm_up(FORM, 1)
    assert first_start.has_all(str(FORM))


def test_kernels_are_compiled_before_an_engine_asks_for_them(model, monkeypatch):
    """Its buffers ask for addresses: what they compiled, the second process had nothing left of."""
    asked = []
    monkeypatch.setattr(warmup, "warm_up", lambda *form: asked.append("warm_up"))
    real = buffers.routines
    monkeypatch.setattr(buffers, "routines", lambda *exact: asked.append("routines") or real(*exact))
    localoss.load(model("short"), context_tokens=64)
    assert asked == ["warm_up", "routines"]

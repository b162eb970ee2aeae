"""The CUDA kernels built as C++ and run on the CPU, behind the launcher's own signature."""

import ctypes
import shutil
import subprocess
from pathlib import Path

from microdreamer_core.render import _cuda_program

HEADER, DRIVER = (Path(__file__).with_name("cuda") / name for name in ("emulate.h", "driver.h"))


def find_compiler():
    return next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)


def build(folder):
    """A :data:`Launch` that runs the kernels on the CPU."""
    entry_point = ctypes.CDLL(_compile(folder, "kernels.so")).launch

    def launch(name, blocks, threads, values, types):
        boxes = [t(v) for v, t in zip(values, types, strict=True)]
        pointers = (ctypes.c_void_p * len(boxes))(*(ctypes.addressof(b) for b in boxes))
        status = entry_point(name.encode(), (ctypes.c_int * 3)(*blocks), threads, pointers, len(boxes))
        assert status == 0, f"{name}: {'unknown kernel' if status == 1 else 'wrong number of arguments'}"

    return launch


def build_driver(folder):
    """Path of a library that passes for CUDA's driver on Linux and runs the kernels on the CPU."""
    return _compile(folder, "driver.so", f'#include "{DRIVER}"', "-Wl,-soname,libcuda.so.1")


def _compile(folder, name, more="", *options):
    names = _cuda_program.KERNELS
    cases = "".join(f'  if (!strcmp(name, "{n}")) return run({n}, blocks, threads, args, count);\n' for n in names)
    signature = 'extern "C" int launch(const char* name, const int* blocks, int threads, void** args, int count)'
    entry = f"{signature} {{\n{cases}  return 1;\n}}\n"
    program, library = folder / f"{name}.cpp", folder / name
    program.write_text(f'#include "{HEADER}"\n{_cuda_program.source()}\n{entry}{more}\n')
    options = "-O2", "-std=c++17", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", "-w", *options
    subprocess.run([find_compiler(), *options, str(program), "-o", str(library)], check=True)
    return str(library)

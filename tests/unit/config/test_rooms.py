"""The settings stand alone: they import no other room of the project, and nothing heavy."""

import subprocess
import sys

import lingu_ray.config

ROOMS = ("evaluation", "runtime", "corpus", "distill", "report", "demo")
HEAVY = ("torch", "ray", "transformers", "mlflow", "datasets", "matplotlib", "numpy")


def test_the_schema_imports_no_other_room():
    """In a fresh process, `import lingu_ray.config` brings neither a room above it nor a large library."""
    code = "import sys, lingu_ray.config; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "lingu_ray.config.run" in loaded
    assert not loaded & {*HEAVY, *(f"lingu_ray.{room}" for room in ROOMS), "tuning"}


def test_the_schema_is_exported():
    """Everything that `lingu_ray.config` promises is there."""
    assert all(hasattr(lingu_ray.config, name) for name in lingu_ray.config.__all__)

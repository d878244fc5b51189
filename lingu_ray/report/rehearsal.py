"""The rehearsal of a report: it is drawn from made-up records at the start, so that it cannot fail at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lingu_ray.config import Config, EvaluationConfig
from lingu_ray.errors import UserError
from lingu_ray.storage import working_folder


def rehearse_report(config: Config) -> None:
    """Draw page, figures and model cards of the run and its controls from made-up records, in its `output_dir`.

    Settings, sources, tasks and models have the run's own names. All files are removed again.

    Raises:
        UserError: something fails.
    """
    with rehearsed(f"output_dir={config.output_dir}", working_folder(config.output_dir)) as scratch:
        from lingu_ray.report.made_up import write_run
        from lingu_ray.report.model_card import front_matter
        from lingu_ray.report.origin import card_metadata
        from lingu_ray.report.run_report import write_run_report
        from lingu_ray.runtime.run_folder.folder import RunFolder

        made_up = config.model_copy(update={"output_dir": scratch})
        write_run_report(made_up, write_run(made_up))
        wanted = front_matter(made_up)
        if card_metadata(str(RunFolder(made_up.run_dir).export)) != wanted:
            raise UserError(f"the model card's front matter differs when it is read back: {wanted}")


def rehearse_evaluation(settings: EvaluationConfig, models: Iterable[str], out_dir: Path) -> None:
    """Draw the page of an evaluation of these models from made-up results, in `out_dir`; all files are removed again.

    Raises:
        UserError: something fails.
    """
    with rehearsed(f"out={out_dir}", out_dir) as scratch:
        from lingu_ray.report.evaluation_page import write_evaluation
        from lingu_ray.report.made_up import write_result

        folder = scratch / out_dir.name
        write_evaluation(write_result(settings, list(models), folder), folder)


@contextmanager
def rehearsed(setting: str, folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside of `folder` to draw in; errors of the block become a UserError with a cure.

    Args:
        setting: the setting that names `folder`, with its value, for the message.
        folder: where the real report will lie.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _import_matplotlib()
        with TemporaryDirectory(prefix=".report-", dir=folder) as scratch:
            yield Path(scratch)
    except Exception as error:
        raise UserError(_explained(setting, error)) from error


def _explained(setting: str, error: Exception) -> str:
    """What failed, and what to do about it."""
    tried = "the report, tried before the work that it is about,"
    again = "install lingu_ray with its dependencies again"
    if isinstance(error, UserError):
        return f"{tried} cannot be drawn: {error}"
    if isinstance(error, OSError) and error.errno is not None:  # a missing template is an OSError without one
        cure = "Make room, shorten the names that it says are too long, or name another folder"
        return f"{setting}: {tried} cannot be written there: {error}. {cure}"
    said = f"{tried} cannot be drawn: {type(error).__module__}.{type(error).__qualname__}: {error}"
    if isinstance(error, ImportError | LookupError):
        return f"{said}. A part is missing: {again}"
    return f"{said}. Change the setting that this names; if it names none, {again}, and report it if it stays"


def _import_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ValueError as error:  # a value in the environment or in matplotlibrc
        raise UserError(f"matplotlib does not start: {error}. Correct MPLBACKEND, or the file matplotlibrc") from error
